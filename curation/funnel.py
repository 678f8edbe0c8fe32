"""The funnel: what is left of a source at each stage, and the proof that nothing was lost on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from curation.errors import DataError

EARLY = ("exact", "minhash")
"""Stages of documents that were dropped before anything was scored."""
STAGES = ("read", *EARLY, "language", "educational", "reasoning", "domain", "deduplicated", "representative")


def funnel_rows(
    source: str, cuts: Mapping[str, pl.DataFrame], sizes: pl.DataFrame, *, early: bool, language: bool = False
) -> list[dict[str, Any]]:
    """Rows `source, stage, documents, share` (of the documents read) and `tokens` or `bytes`, whichever `sizes` has.

    cuts  : survivors at each of `STAGES`, and `added`, those that filled the places of duplicates; the last row
        counts these too, and says how many as `topped_up`, if any
    sizes : `id` and one column
    early : whether documents were dropped before scoring; else the stages of `EARLY` are left out
    language : whether there is a cut by language; else its stage is left out
    """
    unit = sizes.columns[1]
    read = cuts["read"].height
    rows = []
    absent = (*(() if early else EARLY), *(() if language else ("language",)))
    for stage in [stage for stage in STAGES if stage not in absent]:
        left = cuts[stage].select("id")
        if stage == "representative":
            left = pl.concat([left, cuts["added"].select("id")])
        amount = int(sizes.join(left, on="id", how="semi")[unit].sum())
        share = left.height / read if read else 0.0
        row = {"source": source, "stage": stage, "documents": left.height, "share": share, unit: amount}
        rows.append(row)
    if cuts["added"].height:
        rows[-1]["topped_up"] = cuts["added"].height
    return rows


def audit(source: str, cuts: Mapping[str, pl.DataFrame], verdicts: pl.DataFrame) -> None:
    """Raise DataError unless kept + dropped = read at every stage, and every document has exactly one verdict."""
    if verdicts["id"].n_unique() != verdicts.height or not verdicts["id"].sort().equals(
        cuts["read"]["id"].sort()
    ):
        raise _broken(
            source, "the verdicts", f"{cuts['read'].height} were read, {verdicts.height} have verdicts"
        )
    fell = dict(verdicts.group_by("verdict").len().rows())
    added = cuts["added"].height
    before = "read"
    for stage in STAGES[1:]:
        passed = cuts[stage].join(cuts[before], on="id", how="semi").height
        dropped = fell.get(stage, 0) + (added if stage == "domain" else 0)
        if passed != cuts[stage].height or passed + dropped != cuts[before].height:
            raise _broken(
                source,
                f"the stage `{stage}`",
                f"{cuts[before].height} reached it, {cuts[stage].height} were kept and {dropped} dropped",
            )
        before = stage
    if fell.get("kept", 0) != cuts["representative"].height + added:
        raise _broken(source, "the stage `representative`", "not all that were kept have the verdict `kept`")


def _broken(source: str, where: str, counts: str) -> DataError:
    return DataError(
        f"The documents of {source} do not add up at {where}: {counts}",
        where="representative",
        remedy="This is an error of mixwright, not of yours; remove the folder `representative` and run again, "
        "and report it if it stays",
    )
