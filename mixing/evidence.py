"""What a mixture rests on: predicted losses, probabilities, the verdict against uniform, and what it cost.

A number that is not known is None, and `reasons` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LEVEL = 0.9


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds that hold the true one with the probability `Evidence.level`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evidence:
    """All but the weights themselves that comes out of a method.

    verdict      : one sentence: better or worse than uniform, not separable from it, or not known
    basis        : what probabilities and predictions were computed from
    runs         : number of proxy runs behind them
    level        : of every interval
    beats        : probability of a lower objective than "uniform" and "proportional" (within the limits)
    gain_percent : by how much the objective is lower than theirs, in percent of theirs; positive is better
    best         : probability of the lowest objective among the candidates; "this" is the mixture itself
    predicted    : loss of each metric at the mixture, in the metric's own unit
    objective    : the weighted mean of the metrics that was minimised
    detectable_percent : the smallest true gain over uniform, in percent, that this evidence would show with a
                   probability of .8
    flops, seconds : spent on the proxy runs, where the runs' table or folder says so
    reasons      : why something is missing
    """

    verdict: str
    basis: str = ""
    runs: int = 0
    level: float = LEVEL
    beats: dict[str, float] = field(default_factory=dict)
    gain_percent: dict[str, Estimate] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    predicted: dict[str, Estimate] = field(default_factory=dict)
    objective: Estimate | None = None
    detectable_percent: float | None = None
    flops: float | None = None
    seconds: float | None = None
    reasons: tuple[str, ...] = ()


def unweighed(reason: str) -> Evidence:
    """Evidence of a method that had no proxy runs."""
    return Evidence(verdict="Whether it beats uniform is not known", reasons=(reason,))


def evidence_json(evidence: Evidence) -> dict[str, Any]:
    """For `mixture.json`."""

    def triple(estimate: Estimate) -> dict[str, float]:
        return {"value": estimate.value, "low": estimate.low, "high": estimate.high}

    return {
        "verdict": evidence.verdict,
        "basis": evidence.basis,
        "runs": evidence.runs,
        "level": evidence.level,
        "beats": evidence.beats,
        "gain_percent": {name: triple(e) for name, e in evidence.gain_percent.items()},
        "best": evidence.best,
        "predicted": {name: triple(e) for name, e in evidence.predicted.items()},
        "objective": None if evidence.objective is None else triple(evidence.objective),
        "detectable_percent": evidence.detectable_percent,
        "flops": evidence.flops,
        "seconds": evidence.seconds,
        "reasons": list(evidence.reasons),
    }


def evidence_from(value: Mapping[str, Any]) -> Evidence:
    """The inverse of `evidence_json`; raises KeyError, TypeError or ValueError for anything else."""

    def estimate(row: Mapping[str, Any]) -> Estimate:
        return Estimate(float(row["value"]), float(row["low"]), float(row["high"]))

    return Evidence(
        verdict=str(value["verdict"]),
        basis=str(value.get("basis", "")),
        runs=int(value.get("runs", 0)),
        level=float(value.get("level", LEVEL)),
        beats={str(n): float(p) for n, p in value.get("beats", {}).items()},
        gain_percent={str(n): estimate(row) for n, row in value.get("gain_percent", {}).items()},
        best={str(n): float(p) for n, p in value.get("best", {}).items()},
        predicted={str(n): estimate(row) for n, row in value.get("predicted", {}).items()},
        objective=None if value.get("objective") is None else estimate(value["objective"]),
        detectable_percent=_number(value.get("detectable_percent")),
        flops=_number(value.get("flops")),
        seconds=_number(value.get("seconds")),
        reasons=tuple(str(reason) for reason in value.get("reasons", ())),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
