"""How good a mixture is under a posterior of losses, and what may be said about it in one sentence."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mixing.evidence import LEVEL, Estimate, Evidence
from mixing.fit.loss_posterior import LossPosterior
from mixing.fit.proposal import central_interval

DRAWS = 4000
CLAIM = 0.95
"""Probability of beating uniform from which a mixture is called better: the one-sided 90 % interval's end."""
Z_CLAIM, Z_POWER = 1.6449, 0.8416  # normal quantiles of .95 and .8
SAME = 1e-9


def weigh(
    weights: np.ndarray,
    posterior: LossPosterior,
    objective: np.ndarray,
    metrics: tuple[str, ...],
    rivals: Mapping[str, np.ndarray],
    *,
    runs: int,
    basis: str,
    seed: int,
    doubt: str = "",
    flops: float | None = None,
    seconds: float | None = None,
) -> Evidence:
    """Evidence for a mixture [m], from joint posterior draws of its losses and its rivals'.

    objective : weights [c] of the metrics, sum 1
    rivals    : mixtures to compare with; "uniform" and "proportional" enter `beats`, all enter `best`
    doubt     : why nothing may be claimed whatever the probabilities are; the verdict is then "not separable"

    Every draw is one possible world; probabilities are shares of worlds, a gain is the difference of the
    objective in one world. Rivals that are the mixture itself are left out. The smallest detectable effect is
    (z_.95 + z_.8) times the standard deviation of the difference to uniform.
    """
    others = {n: w for n, w in rivals.items() if np.abs(w - weights).max() > SAME}
    drawn = posterior.samples(np.vstack([weights, *others.values()]), DRAWS, seed)
    values = drawn @ objective
    gains, beats = {}, {}
    detectable = None
    for place, name in enumerate(others, start=1):
        if name not in ("uniform", "proportional"):
            continue
        gain = 100 * (values[:, place] - values[:, 0]) / np.abs(values[:, place]).mean()
        gains[name] = _estimate(gain)
        beats[name] = float(np.mean(gain > 0))
        if name == "uniform":
            detectable = (Z_CLAIM + Z_POWER) * float(gain.std())
    winners = values == values.min(axis=1, keepdims=True)
    parts = (winners / winners.sum(axis=1, keepdims=True)).mean(axis=0)  # a tie is shared
    best = {name: float(part) for name, part in zip(("this", *others), parts, strict=True)}
    return Evidence(
        verdict=verdict(beats.get("uniform"), gains.get("uniform"), detectable, doubt),
        basis=basis,
        runs=runs,
        beats=beats,
        gain_percent=gains,
        best=best if others else {},
        predicted={metric: _estimate(drawn[:, 0, k]) for k, metric in enumerate(metrics)},
        objective=_estimate(values[:, 0]),
        detectable_percent=detectable,
        flops=flops,
        seconds=seconds,
    )


def verdict(beats: float | None, gain: Estimate | None, detectable: float | None, doubt: str = "") -> str:
    """The sentence at the top: what the evidence allows to be said against uniform."""
    if beats is None or gain is None or detectable is None:
        return "This is the uniform mixture"
    if not doubt and beats >= CLAIM:
        return f"Better than uniform: predicted loss lower by {_shown(gain, beats)}"
    if not doubt and beats <= 1 - CLAIM:
        higher = Estimate(-gain.value, -gain.high, -gain.low)
        return f"Worse than uniform: predicted loss higher by {_shown(higher, 1 - beats)}"
    why = f"; {doubt}" if doubt else ""
    return f"Not separable from uniform at this budget (smallest detectable effect {detectable:.2g} %{why})"


def _shown(change: Estimate, probability: float) -> str:
    return (
        f"{change.value:.2g} % ({LEVEL:.0%} interval {change.low:.2g} to {change.high:.2g} %), "
        f"probability {min(probability, 0.99):.2f}"
    )


def _estimate(draws: np.ndarray) -> Estimate:
    low, high = central_interval(draws)
    return Estimate(float(draws.mean()), low, high)
