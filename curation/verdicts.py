"""One verdict for each document that was read: the cut at which it fell, or `kept`, and the reason in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import polars as pl

from curation.deduplicate import Duplicate
from curation.educational import EducationalRule
from curation.errors import DataError
from curation.funnel import EARLY, STAGES

_WHY = {"id": pl.String, "why": pl.String}


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
    @property
    def threshold(self) -> float: ...


def dropped_before(listing: pl.DataFrame, table: pl.DataFrame | None) -> pl.DataFrame:
    """Columns `id, kind, why` of the documents of `listing` that exact or MinHash deduplication dropped.

    table : `dropped, kept_instead, kind, similarity`, of any sources; None means none. DataError for an unknown
        kind, or a document that is dropped twice.
    """
    if table is None:
        return pl.DataFrame(schema={"id": pl.String, "kind": pl.String, "why": pl.String})
    wrong = table.filter(~pl.col("kind").is_in(EARLY))["kind"].unique().sort().to_list()
    if wrong or table["dropped"].n_unique() != table.height:
        what = f"has the kind `{wrong[0]}`" if wrong else "drops a document twice"
        raise DataError(
            f"The table of near duplicates {what}",
            where="near_duplicates",
            remedy=f"Its kinds are {' and '.join(EARLY)}, one row for each dropped document; make it again",
        )
    name = pl.when(kind="exact").then(pl.lit("copy")).otherwise(pl.lit("near duplicate"))
    similarity = pl.col("similarity").cast(pl.Float64).round(4)
    why = pl.format("{} of {}, similarity {}", name, "kept_instead", similarity)
    found = table.select(pl.col("dropped").alias("id"), "kind", why.alias("why"))
    return found.join(listing, on="id", how="semi")


def verdict_table(
    source: str,
    cuts: Mapping[str, pl.DataFrame],
    duplicates: Sequence[Duplicate],
    early: pl.DataFrame,
    settings: Cuts,
) -> pl.DataFrame:
    """Columns `id, source, verdict, reason`, sorted by id, a row for each document of `cuts["read"]`.

    cuts  : the survivors at each of `STAGES`; `spoken` (if there is a cut by language), `rated`, `asked` and
        `judged`, those that a model scored; and
        `added`, those that filled the places of duplicates
    early : what `dropped_before` gives
    """
    reasons = _reasons(source, cuts, duplicates, early, settings)
    verdicts, reached = [], cuts["read"].select("id")
    for stage in STAGES[1:]:
        fell = reached.join(cuts[stage], on="id", how="anti").join(reasons[stage], on="id", how="left")
        verdicts.append(fell.select("id", pl.lit(stage).alias("verdict"), pl.col("why").alias("reason")))
        reached = cuts[stage].select("id")
    verdicts.append(reached.select("id", pl.lit("kept").alias("verdict"), pl.lit("").alias("reason")))
    table = pl.concat(verdicts).sort("id")
    added = pl.col("id").is_in(cuts["added"]["id"].implode())
    filled = pl.concat_str(pl.col("reason"), pl.lit("; taken in place of a duplicate"))
    return table.select(
        "id",
        pl.lit(source).alias("source"),
        pl.when(added).then(pl.lit("kept")).otherwise(pl.col("verdict")).alias("verdict"),
        pl.when(added).then(filled).otherwise(pl.col("reason")).alias("reason"),
    )


def _reasons(
    source: str,
    cuts: Mapping[str, pl.DataFrame],
    duplicates: Sequence[Duplicate],
    early: pl.DataFrame,
    settings: Cuts,
) -> dict[str, pl.DataFrame]:
    """For each cut, `id, why` of the documents that reached it."""
    rule = settings.educational_of.get(source, settings.educational)
    score = pl.col("educational_score").round(3)
    table = {d.dropped: _duplicate(d, settings.threshold) for d in duplicates}
    return {
        **dict.fromkeys(EARLY, early.select("id", "why")),
        "language": _languages(cuts),
        "educational": cuts["rated"].select(
            "id", pl.format("score {}, rule {}", score, pl.lit(str(rule))).alias("why")
        ),
        "reasoning": _ranks(cuts["asked"], settings.reasoning_share, cuts["reasoning"].height),
        "domain": _ranks(cuts["judged"], settings.domain_share, cuts["domain"].height),
        "deduplicated": pl.DataFrame({"id": list(table), "why": list(table.values())}, schema=_WHY),
        "representative": _ranks(cuts["deduplicated"], 1.0, settings.documents),
    }


def _duplicate(found: Duplicate, threshold: float) -> str:
    """SemDeDup's rule drops the end of a chain for its beginning, which it may be less like."""
    through = ", through others that were dropped" if found.cosine < threshold else ""
    return f"duplicate of {found.kept_instead}, cosine {found.cosine:.4f}{through}"


def _languages(cuts: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    if "spoken" not in cuts:
        return pl.DataFrame(schema=_WHY)
    share = pl.col("language_probability").cast(pl.Float64).round(3)
    return cuts["spoken"].select(
        "id", pl.format("language {}, probability {}", "language", share).alias("why")
    )


def _ranks(ranked: pl.DataFrame, share: float, kept: int) -> pl.DataFrame:
    top = f", the top {share:g}" if share < 1 else ""
    place = pl.int_range(1, pl.len() + 1)
    return ranked.select(
        "id",
        pl.format("rank {} of {}; {} are kept{}", place, pl.len(), pl.lit(kept), pl.lit(top)).alias("why"),
    )
