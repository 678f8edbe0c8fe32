"""Hierarchical rejection sampling, MobileLLM-R1 section 5.1.1: corpora down to a representative set of each.

    read (-> exact and MinHash duplicates dropped before) (-> language) -> educational score
        -> Ask-LLM, reasoning -> Ask-LLM, domain -> deduplication across corpora -> N

Each cut looks at score tables only, which stay beside the corpora: with other thresholds nothing that was scored is
scored again. Texts are read by the scorers, a unit at a time, and again for the survivors alone; memory grows with
the number of documents, not with their text. Every document that was read has one verdict, in `verdicts.parquet`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from curation.atomic import replacing, write_json
from curation.cascade_cuts import judged_cuts
from curation.cascade_settings import CascadeSettings, Scorers
from curation.deduplicate import write_duplicates
from curation.documents import Document
from curation.funnel import audit, funnel_rows
from curation.scorer import Scorer
from curation.scoring.corpora import ScoredCorpora, in_files
from curation.scoring.corpus import Corpus, check_ids
from curation.scoring.execution import Execution, Runner
from curation.scoring.runners import open_runner
from curation.sizes import ByteCount
from curation.survivors import choose, deduplicated_survivors, write_representative
from curation.verdicts import dropped_before, verdict_table


def select_representative(
    documents: Mapping[str, Corpus | Sequence[Document]],
    capabilities: Mapping[str, Sequence[str]],
    scorers: Scorers,
    settings: CascadeSettings,
    *,
    scores: Path,
    out: Path,
    runner: Runner | None = None,
    already_dropped: pl.DataFrame | None = None,
    size: Scorer | None = None,
) -> list[str]:
    """Write the representative set of every source, and return warnings for the user.

    documents    : by source, in files or, when they are few, in memory; the order of the sources is their
        priority when documents duplicate each other
    capabilities : by source
    scores       : folder of the score tables, `<scores>/<source>/<scorer>.parquet`
    out          : gets `<source>.parquet`, `funnel.json`, `duplicates.parquet` and `verdicts.parquet`
    runner       : where scoring runs, see `scoring.runners.open_runner`; this process when None
    already_dropped : documents that are not to be scored, `dropped, kept_instead, kind, similarity` with kind
        `exact` or `minhash`; the funnel then has these two stages after `read`
    size         : scorer whose one column the funnel sums, `sizes.TokenCount`; by default UTF-8 bytes

    Top shares are exact, of the documents that reached the cut, with the id as tie-break. A source that ends with
    fewer than `documents` keeps all that passed, and a warning says so. Raises DataError when one id is in two
    sources, or when what was kept and dropped is not what was read.
    """
    if runner is None:
        with open_runner(Execution()) as here:
            return select_representative(
                documents, capabilities, scorers, settings, scores=scores, out=out, runner=here,
                already_dropped=already_dropped, size=size,
            )  # fmt: skip
    with in_files(documents, scores) as corpora:
        scoring = ScoredCorpora(corpora, scores, runner)
        check_ids(scoring.listings)
        sizes = {source: scoring.table(size or ByteCount(), source) for source in corpora}
        early = {s: dropped_before(table, already_dropped) for s, table in scoring.listings.items()}
        warnings: list[str] = []
        cuts = judged_cuts(scoring, capabilities, scorers, settings, early, warnings)
        duplicates, kept = deduplicated_survivors(scoring, cuts, scorers, settings, warnings)
        funnel, verdicts = [], []
        for source in corpora:
            choose(cuts[source], partial(scoring.texts, source), duplicates, scorers.embed, kept, settings)
            verdicts.append(verdict_table(source, cuts[source], duplicates, early[source], settings))
            audit(source, cuts[source], verdicts[-1])
            funnel += funnel_rows(
                source,
                cuts[source],
                sizes[source],
                early=already_dropped is not None,
                language=bool(settings.language_of),
            )
            final = pl.concat([cuts[source]["representative"], cuts[source]["added"]])
            write_representative(out / f"{source}.parquet", final, scoring, source)
            if final.height < settings.documents:
                warnings.append(
                    f"{source} has {final.height:,} of the {settings.documents:,} representative documents that were "
                    "wanted: read more of it, or loosen the cuts"
                )
    with replacing(out / "verdicts.parquet") as temporary:
        pl.concat(verdicts).write_parquet(temporary, compression="zstd")
    write_duplicates(out / "duplicates.parquet", duplicates)
    write_json(out / "funnel.json", funnel)
    return warnings
