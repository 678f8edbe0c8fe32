"""A judge's scores of one source, exact where a top share is cut, and what the user should know about them.

A judge in bfloat16 is two to three times as fast as in float32, but its margins are off by up to some tenths, and
documents change places around a cut. So the documents near the cut are scored again in float32. With every
error at most e, the float32 cut lies within e of the bfloat16 cut c, so whatever is more than 2e above c is in
and whatever is more than 2e below is out, in either precision; between them float32 decides. e is not known
beforehand: it is taken as `SAFETY` times the largest error seen among the documents scored in both, at least
`FIRST_RANKS` of them on each side of the cut, and the band grows until it is 2e wide on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import polars as pl

from curation.ask_llm import AskLLM
from curation.score_tables import share_of
from curation.scorer import Scorer

Score = Callable[[Scorer, pl.DataFrame], pl.DataFrame]

SAFETY = 1.5
FIRST_RANKS = 32
MANY = 0.1


def judge_scores(judge: Scorer, wanted: pl.DataFrame, share: float, score: Score) -> pl.DataFrame:
    """Scores of the documents whose ids are in `wanted`; float32 near the top `share` if the judge is bfloat16.

    score : gives the table of a scorer for the ids of a frame, as `score_files` for one source does
    So the top share by margin is that of the float32 judge, up to the assumption on errors that the module's
    text states. The float32 scores have a table of their own, with `-float32` at the end of its name.
    """
    table = score(judge, wanted)
    if not isinstance(judge, AskLLM) or judge.precision == "float32" or not 0 < share < 1 or not table.height:
        return table
    exact = replace(judge, precision="float32", variant="-float32")
    ranked = table.sort(["margin", "id"], descending=[True, False])
    place = share_of(share, ranked.height)
    cut = ranked["margin"][place - 1]
    near = ranked[max(0, place - FIRST_RANKS) : place + FIRST_RANKS]
    while True:
        again = score(exact, near.select("id"))
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
