"""Leave-one-out: what each capability loses when a source is taken away (MobileLLM-R1, 5.1 and Figure 6).

    delta[c, j] = L_c(trained without j) - L_c(trained with all)

in bits per byte on the same probe documents. Positive: removing the source hurts, so the source helps.
Two readings, and the result states which:

replaced : the total number of tokens stays; the others take the place of source j in proportion (as in the
           paper). A source can look harmful only because it displaces a better one.
missing  : the tokens of source j are not replaced, so the run is shorter and reads just what the full run
           reads of the others. It measures the value of having those tokens at all.

All runs of a seed share the initial weights and every source's order of documents, so differences are paired.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mixing.callable_module import make_callable

if TYPE_CHECKING:
    from mixing.leave_one_out.effects import analyse_leave_one_out
    from mixing.leave_one_out.study import (
        Effect,
        LeaveOneOut,
        LeaveOneOutPlan,
        Trajectory,
        plan_leave_one_out,
        safe_name,
    )
    from mixing.leave_one_out.weights import (
        leave_one_out_json,
        loo_mixture,
        loo_weight_intervals,
        loo_weights,
        read_effects,
        write_leave_one_out,
    )

__all__ = [
    "Effect",
    "LeaveOneOut",
    "LeaveOneOutPlan",
    "Trajectory",
    "analyse_leave_one_out",
    "leave_one_out_json",
    "loo_mixture",
    "loo_weight_intervals",
    "loo_weights",
    "plan_leave_one_out",
    "read_effects",
    "safe_name",
    "write_leave_one_out",
]

_WHERE = {
    "analyse_leave_one_out": "effects",
    **dict.fromkeys(
        ("Effect", "LeaveOneOut", "LeaveOneOutPlan", "Trajectory", "plan_leave_one_out", "safe_name"), "study"
    ),
}


def __getattr__(name: str) -> Any:
    # Training is imported when a study is planned or read, not for weights from a table of somebody's runs.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE.get(name, 'weights')}"), name)


def _call(*arguments: Any, **named: Any) -> Any:
    """`mixing.fit.calls.leave_one_out_mixture`."""
    from mixing.fit.calls import leave_one_out_mixture

    return leave_one_out_mixture(*arguments, **named)


make_callable(__name__)
