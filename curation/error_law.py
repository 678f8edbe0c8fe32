"""How far a rough score may be from float32's: a law of the differences, learnt from those that were measured.

    rough - exact = a + b (rough - mean) + s Z

a and b are the format's systematic error, which is taken away. Z follows one of `FAMILY`: the normal law, Student's
t of 2 to 20 degrees of freedom, or the normal law with a few differences (0.1 to 10 %) that are 4 or 10 times as
large. Every member is fitted (expectation and maximisation for a scale mixture of normal laws, which is a robust
regression), and all stay in play, weighed by the chance that they give the measured differences. So 32 differences
leave heavy tails possible, hundreds that look normal all but rule them out, and one difference that is far from the
others brings them back. The scale is averaged over a grid around the fitted one, and the error of the fitted line
at the cut is added (Gelman et al., Bayesian Data Analysis, 3rd edition, sections 14.2 and 17.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, ndtr, stdtr

DEGREES = (2.0, 3.0, 4.0, 6.0, 10.0, 20.0, np.inf)
FAMILY: tuple[tuple[float, float, float], ...] = (
    *((degrees, 0.0, 1.0) for degrees in DEGREES),
    *((np.inf, share, times) for share in (0.001, 0.003, 0.01, 0.03, 0.1) for times in (4.0, 10.0)),
)
"""(degrees of freedom, share of larger differences, how many times larger)."""
PRIOR = np.array([0.3 if share else 1.0 for _, share, _ in FAMILY])
"""How likely each is before measuring, up to a factor: 7 parts of heavy tails to 3 of a few larger differences."""
LEAST_SCALE = 1e-6
"""A score's float32 noise: no law is narrower."""
_STEEPEST, _ITERATIONS = 0.5, 25
"""A line less steep than 1 leaves the order of the scores as it is."""
_SCALES = np.linspace(-4, 4, 17)
"""Where the posterior of log s is taken, in its standard deviations 1 / sqrt(2 n), widened a third for heavy tails."""
_DISTANCES = np.concatenate([[0.0], np.geomspace(1e-2, 1e7, 400)])
"""Where tails are computed, in units of the most likely scale; between them their logarithm is linear."""


@dataclass(frozen=True)
class ErrorLaw:
    """What `error_law` learnt from `measured` differences.

    name  : the most likely member of the family;  scale : its s;  weight : its chance
    intercept, slope, centre : the systematic error at a rough score x is intercept + slope (x - centre)
    """

    measured: int
    name: str
    weight: float
    scale: float
    intercept: float
    slope: float
    centre: float
    _tail: np.ndarray

    def shift(self, rough: np.ndarray | float) -> np.ndarray:
        """The systematic error at rough scores; shape kept."""
        return np.asarray(self.intercept + self.slope * (np.asarray(rough) - self.centre))

    def corrected(self, rough: np.ndarray) -> np.ndarray:
        """Rough scores without their systematic error. The order of the scores stays."""
        return np.asarray(rough - self.shift(rough))

    def chance(self, distance: np.ndarray) -> np.ndarray:
        """That an exact score lies on the other side of a cut at `distance` >= 0 from the corrected one; at most .5."""
        tail = np.exp(np.interp(np.asarray(distance) / self.scale, _DISTANCES, self._tail))
        return np.asarray(np.where(np.isfinite(distance), tail, 0.0))


def error_law(rough: np.ndarray, exact: np.ndarray, cut: float) -> ErrorLaw:
    """The law of `rough` - `exact` (each [n], n >= 1); `cut` is where its line must be known."""
    differences = rough - exact
    count, centre = len(rough), float(rough.mean())
    spread = float(rough.std()) or 1.0
    x = (rough - centre) / spread
    fits = [_fit(differences, x, _STEEPEST * spread, law) for law in FAMILY]
    grid = np.exp(_SCALES * 1.3 / np.sqrt(2 * count))
    likelihood = np.array(
        [
            [np.sum(_log_density((differences - a - b * x) / (s * by), law)) - count * np.log(s * by) for by in grid]
            for (a, b, s), law in zip(fits, FAMILY, strict=True)
        ]
    )  # fmt: skip
    weights = np.exp(likelihood - likelihood.max()) * PRIOR[:, None]
    weights /= weights.sum()
    best = int(weights.sum(1).argmax())
    intercept, slope, scale = fits[best]
    steps = float(np.clip((cut - centre) / spread, -10, 10)) if np.isfinite(cut) else 0.0
    unsure = np.sqrt(1 + (1 + steps**2) / count)  # of the line at the cut
    tail = np.zeros(len(_DISTANCES))
    for (_, _, s), law, row in zip(fits, FAMILY, weights, strict=True):
        for by, weight in zip(grid, row, strict=True):
            if weight > 1e-15:
                tail += weight * _upper_tail(_DISTANCES * scale / (s * by * unsure), law)
    return ErrorLaw(
        count, _name(FAMILY[best]), float(weights[best].sum()), scale, intercept, slope / spread, centre,
        np.log(np.maximum(tail, 1e-300)),
    )  # fmt: skip


def _fit(
    differences: np.ndarray, x: np.ndarray, steepest: float, law: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Most likely intercept, slope (of at most `steepest`) and scale of a + b x + s Z."""
    a, b = float(np.median(differences)), 0.0
    scale = max(float(np.median(np.abs(differences - a))) / 0.6745, LEAST_SCALE)
    for _ in range(_ITERATIONS):
        weight = _precision(((differences - a - b * x) / scale) ** 2, law)
        total = weight.sum()
        middle, level = (weight * x).sum() / total, (weight * differences).sum() / total
        variance = (weight * (x - middle) ** 2).sum() / total
        if len(x) > 2 and variance > 1e-9:
            b = float((weight * (x - middle) * (differences - level)).sum() / total / variance)
            b = float(np.clip(b, -steepest, steepest))
        a = float(level - b * middle)
        scale = max(float(np.sqrt((weight * (differences - a - b * x) ** 2).mean())), LEAST_SCALE)
    return a, b, scale


def _precision(square: np.ndarray, law: tuple[float, float, float]) -> np.ndarray:
    """Expected 1 / variance of the normal law that a difference came from, given its square in units of s."""
    degrees, share, times = law
    if not share:
        return np.ones_like(square) if np.isinf(degrees) else (degrees + 1) / (degrees + square)
    odds = np.log((1 - share) * times / share) - square / 2 * (1 - times**-2)
    larger = 1 / (1 + np.exp(np.clip(odds, -500, 500)))
    return np.asarray(1 - larger + larger / times**2)


def _log_density(z: np.ndarray, law: tuple[float, float, float]) -> np.ndarray:
    degrees, share, times = law
    normal = -z * z / 2 - np.log(2 * np.pi) / 2
    if share:
        larger = np.log(share / times) - (z / times) ** 2 / 2 - np.log(2 * np.pi) / 2
        return np.asarray(np.logaddexp(np.log1p(-share) + normal, larger))
    if np.isinf(degrees):
        return normal
    constant = gammaln((degrees + 1) / 2) - gammaln(degrees / 2) - np.log(degrees * np.pi) / 2
    return np.asarray(constant - (degrees + 1) / 2 * np.log1p(z * z / degrees))


def _upper_tail(z: np.ndarray, law: tuple[float, float, float]) -> np.ndarray:
    degrees, share, times = law
    if share:
        return np.asarray((1 - share) * ndtr(-z) + share * ndtr(-z / times))
    return np.asarray(ndtr(-z) if np.isinf(degrees) else stdtr(degrees, -z))


def _name(law: tuple[float, float, float]) -> str:
    degrees, share, times = law
    if share:
        return f"normal with {100 * share:g} % {times:g} times as large"
    return "normal" if np.isinf(degrees) else f"Student's t with {degrees:g} degrees of freedom"
