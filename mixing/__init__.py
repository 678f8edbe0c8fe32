"""Leave-one-out, influence, mixture weights, comparison and report.

Four calls need no file but a user's own, and import nothing until they are used:

    mixing.fit(runs, method="gaussian-process", ...)   a mixture with its evidence, by any method
    mixing.leave_one_out(runs, ...)                    from runs that leave a source out each
    mixing.influence_mixture(table, ...)               from a table of influence scores
    mixing.report(mixture or run folder, ...)          a page

`runs` is a folder with ratios.csv and metrics.csv, the two paths as a tuple, or one CSV with `sources=[...]`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixing.fit.calls import influence_mixture as influence_mixture

__all__ = ["fit", "influence_mixture", "leave_one_out", "report"]


def __getattr__(name: str) -> Any:
    if name == "influence_mixture":
        return importlib.import_module("mixing.fit.calls").influence_mixture
    if name in __all__:
        return importlib.import_module(f"mixing.{name}")
    raise AttributeError(f"module 'mixing' has no attribute {name!r}")
