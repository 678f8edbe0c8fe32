"""Hierarchical rejection sampling, MobileLLM-R1 section 5.1.1: corpora down to a representative set of each.

    read -> educational score -> Ask-LLM, reasoning -> Ask-LLM, domain -> deduplication across corpora -> N

Each cut looks at score tables only, which stay beside the corpora: with other thresholds nothing that was scored is
scored again. Every document that was read has one verdict, in `verdicts.parquet`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.ask_llm import AskLLM
from curation.atomic import replacing, write_json
from curation.deduplicate import Duplicate, Rule, deduplicate, write_duplicates
from curation.documents import Document
from curation.educational import EducationalClassifier, EducationalRule, few_passed
from curation.errors import DataError
from curation.recheck import decide
from curation.score_tables import score_source, top_share
from curation.scoring_pool import ScoringPool
from curation.top_up import KeptVectors, top_up
from curation.verdicts import STAGES, verdict_table

Embed = Callable[[Sequence[str]], np.ndarray]

REPRESENTATIVE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("educational_score", pa.float32()),
        pa.field("reasoning_margin", pa.float32()),
        pa.field("reasoning_p", pa.float32()),
        pa.field("domain_margin", pa.float32()),
        pa.field("domain_p", pa.float32()),
    ]
)


@dataclass(frozen=True)
class CascadeSettings:
    """The cuts; the defaults are the paper's where it states them.

    educational  : rule for every source; `educational_of` has others for single sources
    reasoning_share, domain_share : parts of each source that the judge's two cuts keep
    threshold, rule : semantic deduplication; unpublished
    documents    : size of each representative set
    top_up       : fill the places that duplicates left in a set with the next-ranked of the domain cut
    """

    educational: EducationalRule
    educational_of: Mapping[str, EducationalRule] = field(default_factory=dict)
    reasoning_share: float = 0.1
    domain_share: float = 0.1
    threshold: float = 0.9
    rule: Rule = "greedy"
    documents: int = 10_000
    top_up: bool = False


@dataclass(frozen=True)
class Scorers:
    """The models of the cascade: the classifier, and the judge with a prompt for each purpose.

    judges : by `reasoning`, the capabilities, and `combined` for sources with several capabilities or none
    embed  : texts to float32 [n, dim] with rows of length 1
    """

    classifier: EducationalClassifier
    judges: Mapping[str, AskLLM]
    embed: Embed


def domain_prompt(capabilities: Sequence[str]) -> str:
    """The domain prompt of a source: its capability's, or `combined` when it has several or none.

    >>> domain_prompt(["code"]), domain_prompt(["code", "mathematics"]), domain_prompt([])
    ('code', 'combined', 'combined')
    """
    return capabilities[0] if len(capabilities) == 1 else "combined"


def select_representative(
    documents: Mapping[str, Sequence[Document]],
    capabilities: Mapping[str, Sequence[str]],
    scorers: Scorers,
    settings: CascadeSettings,
    *,
    scores: Path,
    out: Path,
    pool: ScoringPool | None = None,
) -> list[str]:
    """Write the representative set of every source, and return warnings for the user.

    documents    : by source; the order of the sources is their priority when documents duplicate each other
    capabilities : by source
    scores       : folder of the score tables, `<scores>/<source>/<scorer>.parquet`
    out          : gets `<source>.parquet`, `funnel.json`, `duplicates.parquet` and `verdicts.parquet`

    Top shares are exact, of the documents that reached the cut, with the id as tie-break. A source that ends with
    fewer than `documents` keeps all that passed, and a warning says so.
    """
    _check_ids(documents)
    warnings: list[str] = []
    survivors = {
        source: _judge_source(
            source,
            list(found),
            tuple(capabilities.get(source, ())),
            scorers,
            settings,
            scores / source,
            warnings,
            pool,
        )
        for source, found in documents.items()
    }
    duplicates, kept = _deduplicate(documents, survivors, scorers.embed, settings)
    counts, verdicts = [], []
    for source, found in documents.items():
        cuts = survivors[source]
        unique = cuts["domain"].filter(~pl.col("id").is_in([d.dropped for d in duplicates]))
        final = unique.head(settings.documents)
        missing = min(settings.documents, cuts["domain"].height) - final.height
        cuts |= {"deduplicated": unique, "representative": final, "added": final.clear()}
        if settings.top_up and missing:
            by_id = {document.id: document for document in found}
            fell = cuts["judged"].filter(~pl.col("id").is_in(cuts["domain"]["id"].to_list()))
            cuts["added"] = top_up(fell, missing, by_id, scorers.embed, kept)
            final = pl.concat([final, cuts["added"]])
        counts += _counts(source, cuts)
        verdicts.append(verdict_table(source, cuts, duplicates, settings))
        _write_representative(out / f"{source}.parquet", list(found), final)
        if final.height < settings.documents:
            warnings.append(
                f"{source} has {final.height} representative documents, not {settings.documents}: read more of "
                "it, or loosen the cuts"
            )
    with replacing(out / "verdicts.parquet") as temporary:
        pl.concat(verdicts).write_parquet(temporary, compression="zstd")
    write_duplicates(out / "duplicates.parquet", duplicates)
    write_json(out / "funnel.json", counts)
    return warnings


def _check_ids(documents: Mapping[str, Sequence[Document]]) -> None:
    """Ids are the keys of every table: one id in two sources would drop a document for another's sake."""
    owner: dict[str, str] = {}
    for source, found in documents.items():
        for document in found:
            if owner.setdefault(document.id, source) != source:
                raise DataError(
                    f"The id `{document.id}` is in two sources, {owner[document.id]} and {source}",
                    where=source,
                    remedy="Leave the ids out of the files; then they are made from source and text",
                )


def _counts(source: str, cuts: Mapping[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """The funnel of one source; the last row says how many of its documents came from topping up, if any."""
    added = cuts["added"].height
    rows: list[dict[str, Any]] = [
        {"source": source, "stage": stage, "documents": cuts[stage].height} for stage in STAGES
    ]
    if added:
        rows[-1] |= {"documents": cuts["representative"].height + added, "topped_up": added}
    return rows


def _judge_source(
    source: str,
    documents: list[Document],
    capabilities: tuple[str, ...],
    scorers: Scorers,
    settings: CascadeSettings,
    folder: Path,
    warnings: list[str],
    pool: ScoringPool | None,
) -> dict[str, pl.DataFrame]:
    """The survivors of each cut of one source, with the scores so far; those of `domain` are ranked.

    `asked` and `judged` hold all that reached the reasoning and the domain cut, ranked.
    """
    by_id = {document.id: document for document in documents}

    def of(table: pl.DataFrame) -> list[Document]:
        return [by_id[identifier] for identifier in table["id"].to_list()]

    read = score_source(documents, scorers.classifier, folder, pool=pool)
    rule = settings.educational_of.get(source, settings.educational)
    decision = decide(documents, read, rule, scorers.classifier, folder, pool=pool)
    read, taught = decision.scores.select("id", "educational_score"), decision.passing
    if decision.recheck is not None:
        warnings.append(decision.recheck.sentence(source))
    if warning := few_passed(source, taught.height, read.height, rule):
        warnings.append(warning)
    asked = top_share(
        _asked(taught, of(taught), scorers.judges["reasoning"], "reasoning", folder, pool),
        "reasoning_margin",
        1.0,
    )
    reasoned = top_share(asked, "reasoning_margin", settings.reasoning_share)
    judge = scorers.judges[domain_prompt(capabilities)]
    judged = top_share(_asked(reasoned, of(reasoned), judge, "domain", folder, pool), "domain_margin", 1.0)
    chosen = top_share(judged, "domain_margin", settings.domain_share)
    found = {"read": read, "educational": taught, "asked": asked, "reasoning": reasoned}
    return found | {"judged": judged, "domain": chosen}


def _asked(
    table: pl.DataFrame,
    documents: list[Document],
    judge: AskLLM,
    name: str,
    folder: Path,
    pool: ScoringPool | None,
) -> pl.DataFrame:
    """`table` with the judge's margin and calibrated probability as `<name>_margin` and `<name>_p`."""
    scores = score_source(documents, judge, folder, pool=pool)
    wanted = scores.select(
        "id", pl.col("margin").alias(f"{name}_margin"), pl.col("p1_calibrated").alias(f"{name}_p")
    )
    return table.join(wanted, on="id", how="inner")


def _deduplicate(
    documents: Mapping[str, Sequence[Document]],
    survivors: Mapping[str, Mapping[str, pl.DataFrame]],
    embed: Embed,
    settings: CascadeSettings,
) -> tuple[list[Duplicate], KeptVectors]:
    chosen: list[Document] = []
    scores: dict[str, float] = {}
    for source, found in documents.items():
        table = survivors[source]["domain"]
        margins = dict(zip(table["id"].to_list(), table["domain_margin"].to_list(), strict=True))
        chosen += [document for document in found if document.id in margins]
        scores |= margins
    if not chosen:
        return [], KeptVectors(np.zeros((0, 0), dtype=np.float32), settings.threshold)
    priority = {source: place for place, source in enumerate(documents)}
    vectors = embed([document.text for document in chosen])
    _, duplicates = deduplicate(
        chosen, vectors, settings.threshold, rule=settings.rule, priority=priority, scores=scores
    )
    dropped = {duplicate.dropped for duplicate in duplicates}
    kept = vectors[[document.id not in dropped for document in chosen]]
    return duplicates, KeptVectors(kept, settings.threshold)


def _write_representative(path: Path, documents: list[Document], table: pl.DataFrame) -> None:
    by_id = {document.id: document for document in documents}
    rows = []
    for row in table.iter_rows(named=True):
        document = by_id[row["id"]]
        rows.append(row | {"text": document.text, "source": document.source, "url": document.url})
    columns = {name: [row.get(name) for row in rows] for name in REPRESENTATIVE_SCHEMA.names}
    with replacing(path) as temporary:
        pq.write_table(
            pa.Table.from_pydict(columns, schema=REPRESENTATIVE_SCHEMA), temporary, compression="zstd"
        )
