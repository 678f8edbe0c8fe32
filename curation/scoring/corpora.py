"""The corpora of a cascade: their listings, scores and texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from curation.documents import Document
from curation.score_tables import score_ahead, score_files
from curation.scorer import Scorer
from curation.scoring.corpus import Corpus, spill
from curation.scoring.execution import Runner


class ScoredCorpora:
    """The corpora with their listings, and where they are scored."""

    def __init__(self, corpora: dict[str, Corpus], scores: Path, runner: Runner) -> None:
        self.corpora, self.scores, self.runner = corpora, scores, runner
        self.listings = {source: corpus.listing() for source, corpus in corpora.items()}

    def table(self, scorer: Scorer, source: str, wanted: pl.DataFrame | None = None) -> pl.DataFrame:
        """Scores of the source's documents, or of those whose ids are in `wanted`, sorted by id."""
        listing = self.listings[source]
        if wanted is not None:
            listing = listing.join(wanted, on="id", how="semi")
        corpus, folder = self.corpora[source], self.scores / source
        return score_files(corpus, scorer, folder, runner=self.runner, listing=listing)

    def ahead(self, scorer: Scorer, wanted: Mapping[str, pl.DataFrame]) -> None:
        """Score what `table` will be asked for of several sources, side by side."""
        score_ahead(
            [
                (
                    self.corpora[source],
                    self.scores / source,
                    self.listings[source].join(ids, on="id", how="semi"),
                )
                for source, ids in wanted.items()
            ],
            scorer,
            self.runner,
        )

    def table_of(self, source: str, scorer: Scorer, wanted: pl.DataFrame) -> pl.DataFrame:
        """As `table`, with the source first: for the cuts that ask for more scores near their cut."""
        return self.table(scorer, source, wanted)

    def rows(self, source: str, wanted: pl.DataFrame) -> pl.DataFrame:
        """`id, text, url` of the documents whose ids are in `wanted`."""
        return self.corpora[source].rows(self.listings[source].join(wanted, on="id", how="semi"))

    def texts(self, source: str, ids: Sequence[str]) -> list[str]:
        """Texts in the order of `ids`."""
        return self.corpora[source].texts(self.listings[source], ids)


@contextmanager
def in_files(
    documents: Mapping[str, Corpus | Sequence[Document]], scores: Path
) -> Iterator[dict[str, Corpus]]:
    """Corpora; documents in memory are written to files for the time being."""
    written: list[Path] = []
    try:
        corpora = {}
        for source, found in documents.items():
            if not isinstance(found, Corpus):
                written.append(scores / source / ".documents.parquet")
                found = spill(found, source, written[-1])
            corpora[source] = found
        yield corpora
    finally:
        for file in written:
            file.unlink(missing_ok=True)
