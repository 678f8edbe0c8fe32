"""The calls that `mixing` offers for a user's own tables, by the evidence that they start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixing.fit.checks import Runs
from mixing.fit.fit import fit_mixture
from mixing.fit.influence_table import InfluenceTable
from mixing.mixture import Mixture


def influence_mixture(
    table: Path | str | InfluenceTable,
    *,
    current: Mapping[str, float] | None = None,
    step: float | None = None,
    runs: Runs | None = None,
    **options: Any,
) -> Mixture:
    """Weights from influence scores (Eqs. 5 and 6; with `step` a bounded move from `current`, or from uniform).

    table   : parquet or CSV with `document, source, tokens, benefit` (`mixing.fit.influence_table`)
    runs    : proxy runs of the same sources, if any: they weigh the mixture, but do not change it
    options : of `fit_mixture`
    """
    return fit_mixture(method="influence", influence=table, current=current, step=step, runs=runs, **options)


def leave_one_out_mixture(runs: Runs, **options: Any) -> Mixture:
    """Weights from runs that leave each source out in turn, in any table of proxy runs.

    runs    : as in `fit`; the base is the mixture that most others are a deletion of
    options : of `fit_mixture`, such as `shrink`
    """
    return fit_mixture(method="leave-one-out", runs=runs, **options)
