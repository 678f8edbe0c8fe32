"""One verdict for each document that was read: the cut at which it fell, or `kept`, and the reason in
words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import polars as pl

from curation.deduplicate import Duplicate
from curation.educational import EducationalRule

STAGES = ("read", "educational", "reasoning", "domain", "deduplicated", "representative")


class Cuts(Protocol):
    """What of the cascade's settings a reason mentions."""

    @property
    def educational(self) -> EducationalRule: ...
    @property
    def educational_of(self) -> Mapping[str, EducationalRule]: ...
    @property
    def reasoning_share(self) -> float: ...
    @property
    def domain_share(self) -> float: ...
    @property
    def documents(self) -> int: ...


def verdict_table(
    source: str, cuts: Mapping[str, pl.DataFrame], duplicates: Sequence[Duplicate], settings: Cuts
) -> pl.DataFrame:
    """Columns `id, source, verdict, reason`, sorted by id, a row for each document of `cuts["read"]`.

    cuts : the survivors at each of `STAGES`, and `added`, those that filled the places of duplicates
    """
    reasons = _reasons(source, cuts, duplicates, settings)
    table = cuts["read"].select("id", pl.lit(source).alias("source"))
    table = table.with_columns(pl.lit("kept").alias("verdict"), pl.lit("").alias("reason"))
    for stage in reversed(STAGES[1:]):
        passed = pl.col("id").is_in(cuts[stage]["id"].to_list())
        table = table.join(reasons[stage], on="id", how="left").with_columns(
            pl.when(passed).then(pl.col("verdict")).otherwise(pl.lit(stage)).alias("verdict"),
            pl.when(passed).then(pl.col("reason")).otherwise(pl.col("why")).alias("reason"),
        )
        table = table.drop("why")
    added = pl.col("id").is_in(cuts["added"]["id"].to_list())
    filled = pl.concat_str(pl.col("reason"), pl.lit("; taken in place of a duplicate"))
    return table.with_columns(
        pl.when(added).then(pl.lit("kept")).otherwise(pl.col("verdict")).alias("verdict"),
        pl.when(added).then(filled).otherwise(pl.col("reason")).alias("reason"),
    ).sort("id")


def _reasons(
    source: str, cuts: Mapping[str, pl.DataFrame], duplicates: Sequence[Duplicate], settings: Cuts
) -> dict[str, pl.DataFrame]:
    """For each cut, `id, why` of the documents that reached it."""
    rule = settings.educational_of.get(source, settings.educational)
    score = pl.col("educational_score").round(3)
    table = {d.dropped: f"duplicate of {d.kept_instead}, cosine {d.cosine:.4f}" for d in duplicates}
    return {
        "educational": cuts["read"].select(
            "id", pl.format("score {}, rule {}", score, pl.lit(str(rule))).alias("why")
        ),
        "reasoning": _ranks(cuts["asked"], settings.reasoning_share, cuts["reasoning"].height),
        "domain": _ranks(cuts["judged"], settings.domain_share, cuts["domain"].height),
        "deduplicated": pl.DataFrame(
            {"id": list(table), "why": list(table.values())}, schema={"id": pl.String, "why": pl.String}
        ),
        "representative": _ranks(cuts["deduplicated"], 1.0, settings.documents),
    }


def _ranks(ranked: pl.DataFrame, share: float, kept: int) -> pl.DataFrame:
    top = f", the top {share:g}" if share < 1 else ""
    place = pl.int_range(1, pl.len() + 1)
    return ranked.select(
        "id",
        pl.format("rank {} of {}; {} are kept{}", place, pl.len(), pl.lit(kept), pl.lit(top)).alias("why"),
    )
