"""What one model per source gives to the probe texts: the table that MixMin learns from.

Three forms are read, parquet or CSV:
long : `document, source, log_probability`, nats of the whole text under the model of that source
wide : `document` and a column for each source
ours : a folder of proxy runs, of which those on a single source count; their evaluations hold the nats
`tokens` (of the text) makes the unit nats per token, `capability` (or `probe`) groups the texts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curation.errors import DataError
from mixing.fit.columns import read_columns

if TYPE_CHECKING:
    import polars

BESIDE = ("document", "tokens", "capability", "probe", "id")
WHOLE = 1 - 1e-9


@dataclass(frozen=True)
class ProbeLikelihoods:
    """log_probabilities [n, m] nats; tokens [n] or ones; capability of each text; sources [m], sorted."""

    sources: tuple[str, ...]
    capabilities: tuple[str, ...]
    log_probabilities: np.ndarray
    tokens: np.ndarray
    capability: np.ndarray

    def importance(self, objective: np.ndarray) -> np.ndarray:
        """a_x [n]: a capability's texts share its weight [c], and each counts per token."""
        counts = np.bincount(self.capability, minlength=len(self.capabilities))
        return objective[self.capability] / counts[self.capability] / self.tokens


def read_probe_likelihoods(path: Path | str) -> ProbeLikelihoods:
    """Read the table, in any of its forms.

    Raises DataError for texts that some model has not scored or one has scored twice, numbers that are not
    finite, and probabilities above 1.
    """
    path = Path(path)
    frame = _from_runs(path) if path.is_dir() else read_columns(path, ("document",))
    rows = _long(frame, path) if "log_probability" in frame.columns else _wide(frame, path)
    return _assemble(rows, path)


def _long(frame: polars.DataFrame, path: Path) -> list[tuple[str, str, str, float, float]]:
    if "source" not in frame.columns:
        raise DataError(
            "The table has no column `source`", where=str(path), remedy="Name the model that scored"
        )
    group = "capability" if "capability" in frame.columns else "probe" if "probe" in frame.columns else None
    count = len(frame)
    return list(
        zip(
            frame[group].cast(str).to_list() if group else ["all"] * count,
            frame["document"].cast(str).to_list(),
            frame["source"].cast(str).to_list(),
            frame["log_probability"].to_list(),
            frame["tokens"].to_list() if "tokens" in frame.columns else [1.0] * count,
            strict=True,
        )
    )


def _wide(frame: polars.DataFrame, path: Path) -> list[tuple[str, str, str, float, float]]:
    sources = [name for name in frame.columns if name not in BESIDE]
    rows = []
    for record in frame.iter_rows(named=True):
        group = str(record.get("capability") or record.get("probe") or "all")
        for source in sources:
            rows.append((group, str(record["document"]), source, record[source], record.get("tokens") or 1.0))
    return rows


def _assemble(rows: list[tuple[str, str, str, float, float]], path: Path) -> ProbeLikelihoods:
    if not rows:
        raise DataError("The table holds no probabilities", where=str(path), remedy="Score some probe texts")
    sources = tuple(sorted({row[2] for row in rows}))
    capabilities = tuple(sorted({row[0] for row in rows}))
    texts = sorted({(row[0], row[1]) for row in rows})
    place = {text: i for i, text in enumerate(texts)}
    column = {source: j for j, source in enumerate(sources)}
    table = np.full((len(texts), len(sources)), np.nan)
    tokens = np.ones(len(texts))
    for group, document, source, value, count in rows:
        at = (place[group, document], column[source])
        if not np.isnan(table[at]):
            raise DataError(
                f"The model of {source!r} has scored the text {document!r} twice",
                where=str(path),
                remedy="Keep one row",
            )
        number, size = _number(value), _number(count)
        if not np.isfinite(number) or number > 1e-9 or not (np.isfinite(size) and size > 0):
            raise DataError(
                f"The text {document!r} has the log-probability {value} and {count} tokens",
                where=str(path),
                remedy="Give nats, at most 0, and a positive number of tokens",
            )
        table[at], tokens[at[0]] = number, size
    if np.isnan(table).any():
        i, j = np.argwhere(np.isnan(table))[0]
        raise DataError(
            f"The model of {sources[j]!r} has not scored the text {texts[i][1]!r}",
            where=str(path),
            remedy="Score the same texts with every model",
        )
    groups = np.array([capabilities.index(text[0]) for text in texts])
    return ProbeLikelihoods(sources, capabilities, table, tokens, groups)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _from_runs(folder: Path) -> polars.DataFrame:
    """The last evaluation of every run on a single source; several seeds of one are averaged in probability."""
    import polars as pl

    parts = []
    for result in sorted(folder.glob("*/result.json")):
        weights = json.loads(result.read_text(encoding="utf-8"))["run"]["weights"]
        alone = [name for name, weight in weights.items() if weight >= WHOLE]
        steps = sorted(
            result.parent.glob("evaluations/step-*.parquet"), key=lambda file: int(file.stem.split("-")[1])
        )
        if alone and steps:
            scored = pl.read_parquet(steps[-1]).select("probe", "id", "tokens", "nats")
            parts.append(scored.with_columns(pl.lit(alone[0]).alias("source")))
    if not parts:
        raise DataError(
            "No finished run of this folder was trained on a single source",
            where=str(folder),
            remedy="Make proxy runs with weight 1 on one source each, or give a table",
        )
    peak = pl.col("nats").min().over("source", "probe", "id")
    return (
        pl.concat(parts)
        .with_columns(peak.alias("peak"))
        .group_by("source", "probe", "id", maintain_order=True)
        .agg(
            pl.col("tokens").first(),
            (((pl.col("peak") - pl.col("nats")).exp().mean()).log() - pl.col("peak").first()).alias(
                "log_probability"
            ),
        )
        .rename({"id": "document"})
    )
