"""What decided the fate of documents: the ranked tables of each cut, put together from what the cascade left.

Everything is read from the folders `scores`, `representative` and `near_duplicates` of a run; nothing is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from curation.errors import DataError
from curation.funnel import STAGES

ADDED = "taken in place of a duplicate"
TITLES = {
    "educational": "Educational score",
    "reasoning": "Ask-LLM, reasoning",
    "domain": "Ask-LLM, domain",
    "representative": "Place in the representative set",
}


@dataclass(frozen=True)
class CutTable:
    """The documents of one source that reached one cut, best first.

    name   : a stage of the funnel
    score  : what ranks them, such as `margin`
    table  : `id, value, rank, passed`; the rank begins at 1
    kept   : how many passed
    """

    name: str
    score: str
    table: pl.DataFrame
    kept: int

    @property
    def last_kept(self) -> float | None:
        """The lowest value that passed."""
        value = self.table.filter("passed")["value"].min()
        return None if value is None else float(value)  # type: ignore[arg-type]

    @property
    def first_dropped(self) -> float | None:
        """The highest value that did not pass."""
        value = self.table.filter(~pl.col("passed"))["value"].max()
        return None if value is None else float(value)  # type: ignore[arg-type]

    def around(self, count: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The `count` worst that passed, nearest to the cut first, and the `count` best that did not."""
        above = self.table.filter("passed").tail(count).reverse()
        return above, self.table.filter(~pl.col("passed")).head(count)


def verdicts_of(run: Path) -> pl.DataFrame:
    """`id, source, verdict, reason`, or DataError when the cascade has not run."""
    file = run / "representative" / "verdicts.parquet"
    if not file.is_file():
        raise DataError("The run has no verdicts yet", where=str(run), remedy="Run `mixwright curate` first")
    return pl.read_parquet(file)


def cut_tables(run: Path, source: str, capabilities: Sequence[str], verdicts: pl.DataFrame) -> list[CutTable]:
    """The cuts of a source in order, as far as their score tables are there.

    capabilities : of the source; they decide which domain prompt it was judged by
    verdicts     : of all sources, see `verdicts_of`
    """
    from curation.judge_prompt import domain_prompt  # here, since it brings torch

    own = verdicts.filter(pl.col("source") == source).with_columns(
        pl.col("verdict")
        .replace_strict({name: at for at, name in enumerate(STAGES)}, default=len(STAGES))
        .alias("end"),
        pl.col("reason").str.ends_with(ADDED).alias("added"),
    )
    folder = run / "scores" / source
    wanted = (
        ("educational", "educational", "educational_score"),
        ("reasoning", "ask_llm-reasoning*", "margin"),
        ("domain", f"ask_llm-{domain_prompt(capabilities)}*", "margin"),
        ("representative", f"ask_llm-{domain_prompt(capabilities)}*", "margin"),
    )
    found = []
    for stage, pattern, column in wanted:
        file = _newest(folder, pattern)
        if file is None:
            continue
        place = STAGES.index(stage)
        reached = own.filter(pl.col("end") >= place)
        if stage == "representative":
            reached = reached.filter(~pl.col("added"))
        passed = (pl.col("end") > place) & ~(pl.col("added") if stage == "domain" else pl.lit(False))
        table = (
            reached.select("id", passed.alias("passed"))
            .join(
                pl.read_parquet(file, columns=["id", column]).rename({column: "value"}), on="id", how="inner"
            )
            .sort([-pl.col("value"), "id"])
            .with_row_index("rank", offset=1)
            .select("id", "value", "rank", "passed")
        )
        found.append(CutTable(stage, column, table, table.filter("passed").height))
    return found


def duplicates_of(run: Path, name: str) -> list[dict[str, object]]:
    """Rows `kind, kept_instead, similarity` of a document that was dropped as a duplicate: exact, minhash, semantic."""
    rows: list[dict[str, object]] = []
    early = run / "near_duplicates" / "near_duplicates.parquet"
    if early.is_file():
        table = pl.scan_parquet(early).filter(pl.col("dropped") == name).collect()
        rows += table.select("kind", "kept_instead", "similarity").to_dicts()
    late = run / "representative" / "duplicates.parquet"
    if late.is_file():
        table = pl.scan_parquet(late).filter(pl.col("dropped") == name).collect()
        rows += [
            {"kind": "semantic", "kept_instead": row["kept_instead"], "similarity": row["cosine"]}
            for row in table.to_dicts()
        ]
    return rows


def _newest(folder: Path, pattern: str) -> Path | None:
    """The score table of that name; the newest where prompts of several versions were tried."""
    files = [file for file in folder.glob(f"{pattern}.parquet") if not file.name.startswith(".")]
    return max(files, key=lambda file: (file.stat().st_mtime_ns, file.name), default=None)
