"""The hyperparameters of the model: their names, places and Gaussian prior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixing.posterior.evidence import Evidence
from mixing.posterior.trend import SIZE

LENGTH = (0.0, 0.7, 0.5)
"""Log lengths: mean (beside log sqrt(m / 2)), sd of what all sources share, sd of each source's own."""
SIGNAL = (0.0, 1.0)
LOADING = 0.4
NOISE = (-1.5, 1.0)
NOISE_LOADING = 0.15
SEED = (-2.0, 1.0)
SCALE = 1.0
ERROR = (-0.4, 0.7)
BIAS = (-1.5, 1.0)


@dataclass(frozen=True)
class Layout:
    """Where each hyperparameter stands in a vector; `mean` and `precision` are those of its Gaussian prior."""

    size: int
    slots: dict[str, slice]
    mean: np.ndarray
    precision: np.ndarray

    def get(self, theta: np.ndarray, name: str) -> np.ndarray:
        """The part of `theta` with that name; empty when the model has none."""
        return theta[self.slots.get(name, slice(0, 0))]


def make_layout(c: int, m: int, coupled: bool, evidence: Evidence) -> Layout:
    """The hyperparameters of c capabilities and m sources, as far as the evidence has a use for them."""
    slots: dict[str, slice] = {}
    means: list[np.ndarray] = []
    deviations: list[np.ndarray] = []

    def add(name: str, count: int, mean: float, sd: float) -> None:
        start = sum(len(part) for part in means)
        slots[name] = slice(start, start + count)
        means.append(np.full(count, mean))
        deviations.append(np.full(count, sd))

    latents = c + (1 if coupled else 0)
    for q in range(latents):
        add(f"length{q}", m, LENGTH[0] + 0.5 * np.log(m / 2), 1.0)
    add("signal", c, *SIGNAL)
    add("trend", c, *SIZE)
    add("noise", c, *NOISE)
    if coupled:
        add("loading", c, 0.0, LOADING)
        add("noise_loading", c, 0.0, NOISE_LOADING)
    if (evidence.seed >= 0).any():
        add("seed", c, *SEED)
    if evidence.derivative.any():
        add("scale", c, 0.0, SCALE)
        add("error", c, *ERROR)
        if c > 1:
            add("bias", 1, *BIAS)
    mean, deviation = np.concatenate(means), np.concatenate(deviations)
    covariance = np.diag(np.square(deviation))
    for q in range(latents):
        at = slots[f"length{q}"]
        covariance[at, at] = LENGTH[1] ** 2 + LENGTH[2] ** 2 * np.eye(m)
    return Layout(len(mean), slots, mean, np.linalg.inv(covariance))
