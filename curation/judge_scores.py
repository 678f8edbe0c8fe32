"""A judge's scores of one source, exact where a top share is cut, and what the user should know about them.

A judge in bfloat16 is two to three times as fast as in float32, but its margins are off by up to some tenths, and
documents change places around a cut. So the documents near the cut are scored again in float32. With every
error at most e, the float32 cut lies within e of the bfloat16 cut c, so whatever is more than 2e above c is in
and whatever is more than 2e below is out, in either precision; between them float32 decides. e is not known
beforehand: it is taken as `SAFETY` times the largest error seen among the documents scored in both, at least
`FIRST_RANKS` of them on each side of the cut, and the band grows until it is 2e wide on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from curation.ask_llm import AskLLM
from curation.documents import Document
from curation.score_tables import score_source, share_of
from curation.scorer import Scorer
from curation.scoring_pool import ScoringPool

SAFETY = 1.5
FIRST_RANKS = 32
MANY = 0.1


def judge_scores(
    documents: Sequence[Document],
    judge: Scorer,
    folder: Path | str,
    share: float,
    *,
    pool: ScoringPool | None = None,
) -> pl.DataFrame:
    """As `score_source`; of a bfloat16 AskLLM, with float32 scores for all documents near the top `share`.

    So the top share by margin is that of the float32 judge, up to the assumption on errors that the module's
    text states. Both tables stay in `folder`; the float32 one has `-float32` at the end of its name.
    """
    table = score_source(documents, judge, folder, pool=pool)
    if not isinstance(judge, AskLLM) or judge.precision == "float32" or not 0 < share < 1 or not table.height:
        return table
    exact = replace(judge, precision="float32", variant="-float32")
    by_id = {document.id: document for document in documents}
    ranked = table.sort(["margin", "id"], descending=[True, False])
    place = share_of(share, ranked.height)
    cut = ranked["margin"][place - 1]
    near = ranked[max(0, place - FIRST_RANKS) : place + FIRST_RANKS]
    while True:
        again = score_source([by_id[i] for i in near["id"]], exact, folder, pool=pool)
        both = near.join(again.select("id", pl.col("margin").alias("exact")), on="id")
        error = SAFETY * float((both["margin"] - both["exact"]).abs().max())  # type: ignore[arg-type]
        wanted = ranked.filter((pl.col("margin") - cut).abs() <= 2 * error)
        if wanted.join(near, on="id", how="anti").is_empty():
            break
        near = pl.concat([near, wanted]).unique("id")
    return pl.concat([table.join(again, on="id", how="anti"), again]).sort("id")


def judge_notes(source: str, table: pl.DataFrame, judge: Scorer) -> list[str]:
    """Sentences for the user about one source's table: documents that were cut, answers that were bounded."""
    notes = []
    cut = int(table["truncated"].sum()) if "truncated" in table.columns else 0
    if cut > MANY * table.height:
        notes.append(
            f"{judge.name} saw only the head of {cut} of the {table.height} documents of {source}: raise "
            "`curation.judge.context`, or cut documents into smaller pieces"
        )
    bounded = int(table["bounded"].sum()) if "bounded" in table.columns else 0
    if bounded:
        notes.append(
            f"For {bounded} of the {table.height} documents of {source}, {judge.name} did not have both answers "
            "among its most probable tokens; their margins are bounds (column `bounded`)"
        )
    return notes
