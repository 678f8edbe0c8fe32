"""Proxy runs from `ratios.csv` and `metrics.csv`: ours, Olmix's or RegMix's.

Rows are joined by run id and by nothing else. (Olmix filters both files to their common runs and then pairs
them by position, so a metrics file in another order gives wrong weights without a word.)

ratios.csv  : an id column (`run_id`, else `run`, else `index`, else `name`), the shares of the sources, and
              any of the bookkeeping columns below. Shares sum to 1 within 0.01 and are then divided by their
              sum.
metrics.csv : long (`run_id, step, probe, bits_per_byte, ...`, the last step counts) or wide (one column a
              metric).
Lower metrics are better.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation.errors import DataError, RecipeError

ID_COLUMNS = ("run_id", "run", "index", "name")
COSTS = ("flops", "seconds")
BOOKKEEPING = frozenset(
    {*ID_COLUMNS, "seed", "init_seed", "budget_tokens", "budget_share", "step", "cpu_seconds", "", *COSTS}
)
SHARE_TOLERANCE = 0.01
LONG_COLUMNS = ("probe", "bits_per_byte")


@dataclass(frozen=True)
class ProxyTable:
    """Proxy runs, sorted by run id; rows of all arrays belong together.

    run_ids [n]; sources [m], sorted; weights float64 [n, m], rows sum to 1;
    metrics [k], sorted; losses float64 [n, k], lower is better; seeds [n] or None when the file has no seeds
    flops, seconds : spent on all runs together, None where the tables do not say
    """

    run_ids: tuple[str, ...]
    sources: tuple[str, ...]
    weights: np.ndarray
    metrics: tuple[str, ...]
    losses: np.ndarray
    seeds: tuple[int, ...] | None = None
    flops: float | None = None
    seconds: float | None = None

    def mean_loss(self, objective: np.ndarray) -> np.ndarray:
        """The objective of every run [n]: losses times the weights of the metrics."""
        return self.losses @ objective

    def by_mixture(self) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
        """Runs of one mixture (several seeds) averaged: weights [g, m], losses [g, k], rows of each group."""
        groups: dict[tuple[float, ...], list[int]] = {}
        for row, weights in enumerate(self.weights):
            groups.setdefault(tuple(np.round(weights, 9)), []).append(row)
        rows = [groups[key] for key in sorted(groups)]
        weights = np.stack([self.weights[r[0]] for r in rows])
        return weights, np.stack([self.losses[r].mean(axis=0) for r in rows]), rows


def read_proxy_table(
    ratios: Path | str,
    metrics: Path | str | None = None,
    *,
    sources: Sequence[str] | None = None,
    select: Sequence[str] | None = None,
) -> ProxyTable:
    """Read and join the two files; or one that holds shares and metrics side by side, for which `sources`
    says which columns are which.

    sources : the source columns; None: every column that is not bookkeeping (which must then hold shares)
    select  : the metrics to use; None: all of them
    Raises DataError on duplicate or unmatched run ids, gaps, shares that do not sum to one and columns that
    are not numbers; RecipeError on unknown names in `sources` and `select`.
    """
    if metrics is None:
        if not sources:
            raise RecipeError(
                "One table holds the shares and the metrics, and nobody said which columns are the sources",
                where=str(ratios),
                remedy="Name the sources, or give the metrics in a table of their own",
            )
        ratio_rows, metric_rows = _split(_read_csv(Path(ratios)), sources)
        metrics = ratios
    else:
        ratio_rows, metric_rows = _read_csv(Path(ratios)), _read_csv(Path(metrics))
    identifier = _shared_id(ratio_rows, metric_rows)
    source_names = _source_columns(ratio_rows, sources)
    shares, seeds = _shares(ratio_rows, identifier, source_names)
    if all(column in metric_rows.columns for column in LONG_COLUMNS):
        losses = _long_metrics(metric_rows, identifier)
    else:
        losses = _wide_metrics(metric_rows, identifier)
    names = sorted({metric for row in losses.values() for metric in row})
    if select is not None:
        _check_known(select, names, "metric", str(metrics))
        names = sorted(set(select))
    _check_same_runs(shares, losses, ratio_rows, metric_rows)
    run_ids = tuple(sorted(shares))
    for run in run_ids:
        for name in names:
            if name not in losses[run]:
                raise DataError(
                    f"Run {run!r} has no {name!r}",
                    where=str(metrics),
                    remedy="Evaluate it, or remove the run",
                )
    return ProxyTable(
        run_ids=run_ids,
        sources=tuple(source_names),
        weights=np.array([shares[run] for run in run_ids]),
        metrics=tuple(names),
        losses=np.array([[losses[run][name] for name in names] for run in run_ids]),
        seeds=tuple(seeds[run] for run in run_ids) if seeds else None,
        **{column: _cost(ratio_rows, identifier, column) for column in COSTS},
    )


def _cost(ratios: _Csv, identifier: str, column: str) -> float | None:
    """The sum of a column of costs; of our own runs, what their folders beside the table say."""
    if column in ratios.columns:
        return math.fsum(ratios.number(row, column, row[identifier].strip()) for row in ratios.rows)
    spent = []
    for row in ratios.rows:
        run = row[identifier].strip()
        if Path(run).name != run:  # ids are anybody's; nothing outside the folder is read
            return None
        try:
            value = json.loads((ratios.path.parent / run / "result.json").read_text(encoding="utf-8"))
            spent.append(float(value[column]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return math.fsum(spent)


def _split(table: _Csv, sources: Sequence[str]) -> tuple[_Csv, _Csv]:
    """A table of shares and one of metrics from a table that holds both."""
    _check_known(sources, [c for c in table.columns if c not in BOOKKEEPING], "source", str(table.path))
    keep = [c for c in table.columns if c in sources or c in BOOKKEEPING]
    rest = [c for c in table.columns if c not in sources]

    def part(columns: list[str]) -> _Csv:
        return _Csv(table.path, tuple(columns), [{c: row[c] for c in columns} for row in table.rows])

    return part(keep), part(rest)


@dataclass(frozen=True)
class _Csv:
    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]

    def number(self, row: dict[str, str], column: str, run: str) -> float:
        text = row[column]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(
                f"Run {run!r} has {text.strip()!r} in column {column!r}, which is not a number",
                where=str(self.path),
                remedy=f"Mend the cell, or remove the column (columns that may stand beside: "
                f"{', '.join(sorted(BOOKKEEPING - {''}))})",
            )
        return value


def _read_csv(path: Path) -> _Csv:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, line) for line in reader if any(cell.strip() for cell in line)]
    except OSError as error:
        raise DataError(
            f"The table cannot be read: {error.strerror}", where=str(path), remedy="Check the path"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"This is not a CSV file: {error}", where=str(path), remedy="Save it as UTF-8 CSV"
        ) from error
    double = [name for name, count in Counter(header).items() if count > 1]
    if double or not lines:
        what = f"Column {double[0]!r} is there twice" if double else "The table holds no runs"
        raise DataError(what, where=str(path), remedy="Mend the file")
    for number, line in lines:
        if len(line) != len(header):
            raise DataError(
                f"Line {number} has {len(line)} cells where the header has {len(header)}",
                where=str(path),
                remedy="Mend the line",
            )
    return _Csv(path, tuple(header), [dict(zip(header, line, strict=True)) for _, line in lines])


def _shared_id(ratios: _Csv, metrics: _Csv) -> str:
    for column in ID_COLUMNS:
        if column in ratios.columns and column in metrics.columns:
            return column
    raise DataError(
        "The two tables have no run id in common: one has the columns "
        f"{', '.join(ratios.columns)}, the other "
        f"{', '.join(metrics.columns)}",
        where=f"{ratios.path}, {metrics.path}",
        remedy="Give both a column `run_id`; rows are never joined by position",
    )


def _source_columns(ratios: _Csv, sources: Sequence[str] | None) -> list[str]:
    found = sorted(column for column in ratios.columns if column not in BOOKKEEPING)
    if sources is not None:
        _check_known(sources, found, "source", str(ratios.path))
        odd = sorted(set(found) - set(sources))
        if odd:
            raise DataError(
                f"The table has columns that are neither sources nor bookkeeping: {', '.join(odd)}",
                where=str(ratios.path),
                remedy="Remove them, or add them to the sources",
            )
    if not found:
        raise DataError("The table has no columns of sources", where=str(ratios.path), remedy="Add them")
    return found


def _shares(
    ratios: _Csv, identifier: str, sources: list[str]
) -> tuple[dict[str, list[float]], dict[str, int]]:
    shares: dict[str, list[float]] = {}
    seeds: dict[str, int] = {}
    for row in ratios.rows:
        run = row[identifier].strip()
        if not run:
            raise DataError(
                f"A run has no {identifier}", where=str(ratios.path), remedy="Give every run an id of its own"
            )
        if run in shares:
            raise DataError(
                f"Run {run!r} is there twice",
                where=str(ratios.path),
                remedy="Give each run, also each seed of a mixture, an id of its own",
            )
        values = [ratios.number(row, source, run) for source in sources]
        total = math.fsum(values)
        if min(values) < 0 or abs(total - 1) > SHARE_TOLERANCE:
            what = (
                f"The shares of run {run!r} sum to {total:.4g}, not to 1"
                if min(values) >= 0
                else f"Run {run!r} has a negative share"
            )
            raise DataError(
                what,
                where=str(ratios.path),
                remedy=f"Columns read as sources: {', '.join(sources)}; mend or remove them",
            )
        shares[run] = [value / total for value in values]
        if "seed" in ratios.columns:
            seeds[run] = int(ratios.number(row, "seed", run))
    return shares, seeds


def _long_metrics(metrics: _Csv, identifier: str) -> dict[str, dict[str, float]]:
    """The metrics of each run's last step, which must be there for every probe."""
    rows: dict[tuple[str, float, str], float] = {}
    for row in metrics.rows:
        run, probe = row[identifier].strip(), row["probe"].strip()
        step = metrics.number(row, "step", run) if "step" in metrics.columns else 0.0
        if (run, step, probe) in rows:
            raise DataError(
                f"Run {run!r} has two rows for {probe!r} at step {step:g}",
                where=str(metrics.path),
                remedy="Keep one",
            )
        rows[run, step, probe] = metrics.number(row, "bits_per_byte", run)
    last: dict[str, float] = {}
    for run, step, _ in rows:
        last[run] = max(step, last.get(run, step))
    losses: dict[str, dict[str, float]] = {}
    for (run, step, probe), value in rows.items():
        if step == last[run]:
            losses.setdefault(run, {})[probe] = value
    return losses


def _wide_metrics(metrics: _Csv, identifier: str) -> dict[str, dict[str, float]]:
    names = [column for column in metrics.columns if column not in BOOKKEEPING]
    if not names:
        raise DataError("The table has no columns of metrics", where=str(metrics.path), remedy="Add them")
    losses: dict[str, dict[str, float]] = {}
    for row in metrics.rows:
        run = row[identifier].strip()
        if run in losses:
            raise DataError(
                f"Run {run!r} is there twice", where=str(metrics.path), remedy="Keep one row a run"
            )
        losses[run] = {name: metrics.number(row, name, run) for name in names}
    return losses


def _check_same_runs(
    shares: dict[str, list[float]], losses: dict[str, dict[str, float]], ratios: _Csv, metrics: _Csv
) -> None:
    for missing, where in (
        (sorted(set(shares) - set(losses)), metrics.path),
        (sorted(set(losses) - set(shares)), ratios.path),
    ):
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise DataError(
                f"{len(missing)} runs are not in this table: {', '.join(missing[:3])}{more}",
                where=str(where),
                remedy=(
                    "Both tables must hold the same runs; remove them from the other one, or add them here"
                ),
            )


def _check_known(asked: Iterable[str], known: Sequence[str], kind: str, where: str) -> None:
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise RecipeError(
                f"There is no {kind} {name!r}",
                where=where,
                remedy=f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}",
            )
