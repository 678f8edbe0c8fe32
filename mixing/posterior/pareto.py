"""The front between capabilities: what a bit per byte of one costs in another.

Mixtures that minimise the posterior mean of many weighed sums of the capabilities' losses lie on the (convex part
of the) front of the mean. Each comes with intervals from joint draws. The price of a capability is the slope
along the front: going from the balanced mixture towards what is best for `gain`, how much the loss of `cost` rises
for each unit that the loss of `gain` falls, with the interval of that ratio over the same draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mixing.fit.search import Simplex
from mixing.posterior.paths import mean_functions, minima, starting_points
from mixing.posterior.posterior import LossPosterior

SCALARISATIONS = 120
SAMPLES = 1000
LEVEL = 0.9
TOWARDS = 0.75
"""Weight of the favoured capability at the end of a price's step; the others share the rest."""


@dataclass(frozen=True)
class FrontPoint:
    """A mixture on the front: weights by source, importance by capability, losses (mean, low, high)."""

    weights: dict[str, float]
    importance: dict[str, float]
    losses: dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Price:
    """What one unit of loss of `gain` costs in loss of `cost`, between two mixtures on the front.

    gained, paid  : (mean, low, high) fall of the loss of `gain` and rise of that of `cost`
    price         : (median, low, high) of paid / gained; None when the draws do not tell that anything is gained
    """

    gain: str
    cost: str
    start: dict[str, float]
    end: dict[str, float]
    gained: tuple[float, float, float]
    paid: tuple[float, float, float]
    price: tuple[float, float, float] | None

    def sentence(self, unit: str = "bit per byte") -> str:
        """The price in words."""
        if self.price is None:
            return f"Whether {self.gain} can still be improved by the mixture is not known at this budget"
        median, low, high = self.price
        if low <= 0 <= high:
            return (
                f"A {unit} of {self.gain} costs {median:.2g} of {self.cost}, which is not separable from nothing "
                f"(90 % interval {low:.2g} to {high:.2g})"
            )
        verb, size = ("costs", 1) if median > 0 else ("also gains", -1)
        ends = sorted((size * low, size * high))
        return (
            f"A {unit} of {self.gain} {verb} {size * median:.2g} of {self.cost} "
            f"(90 % interval {ends[0]:.2g} to {ends[1]:.2g})"
        )


@dataclass(frozen=True)
class ParetoFront:
    """The front: points sorted by the loss of the first capability, the balanced mixture, and the prices."""

    capabilities: tuple[str, ...]
    points: tuple[FrontPoint, ...]
    balanced: FrontPoint
    prices: tuple[Price, ...]

    def record(self) -> dict:
        """For JSON."""
        plain = asdict(self)
        for price, row in zip(self.prices, plain["prices"], strict=True):
            row["sentence"] = price.sentence()
        return plain


def pareto_front(
    posterior: LossPosterior,
    simplex: Simplex,
    *,
    objective: np.ndarray | None = None,
    scalarisations: int = SCALARISATIONS,
    samples: int = SAMPLES,
    seed: int = 0,
) -> ParetoFront:
    """The front of the posterior mean within the bounds of `simplex`.

    objective [c] : importance of the capabilities at the balanced mixture; all equal if not given. Capabilities
                    of importance 0 still are on the front.
    Importances of the other points are drawn from Dirichlet(.7) by `seed`, and the corners are among them.
    """
    names = posterior.capabilities
    c = len(names)
    balance = np.full(c, 1 / c) if objective is None else np.asarray(objective, dtype=np.float64)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xFA2]))
    corners = 0.02 / c + 0.98 * np.eye(c)
    steps = TOWARDS * np.eye(c) + (1 - TOWARDS) * balance
    drawn = rng.dirichlet(np.full(c, 0.7), size=max(scalarisations, 0)) if c > 1 else np.zeros((0, 1))
    importance = np.vstack([balance[None], steps, corners, drawn])
    # Losses that spread more must not decide alone: importance counts in units of each one's spread.
    spread = posterior.losses.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    importance[1:] /= spread
    importance /= importance.sum(axis=1, keepdims=True)
    starts = starting_points(posterior, balance, simplex, seed)
    found = minima(mean_functions(posterior, importance), simplex, starts)
    losses = posterior.samples(found, samples, seed)
    mean = posterior.mean(found)
    keep = _undominated(mean)
    points = [_point(simplex, names, found[i], importance[i], losses[:, i]) for i in keep]
    points.sort(key=lambda point: point.losses[names[0]][0])
    return ParetoFront(
        names,
        tuple(points),
        _point(simplex, names, found[0], importance[0], losses[:, 0]),
        tuple(_prices(simplex, names, found, losses)),
    )


def _prices(simplex: Simplex, names: Sequence[str], found: np.ndarray, losses: np.ndarray) -> list[Price]:
    prices = []
    for g, gain in enumerate(names):
        end = 1 + g
        gained = losses[:, 0, g] - losses[:, end, g]
        for k, cost in enumerate(names):
            if k == g:
                continue
            paid = losses[:, end, k] - losses[:, 0, k]
            price = None
            if np.quantile(gained, (1 - LEVEL) / 2) > 0:
                price = _summary(paid / gained, median=True)
            prices.append(
                Price(
                    gain, cost, _named(simplex, found[0]), _named(simplex, found[end]),
                    _summary(gained), _summary(paid), price,
                )
            )  # fmt: skip
    return prices


def _undominated(losses: np.ndarray) -> list[int]:
    """Rows that no other row beats in all columns; of equal rows the first."""
    kept: list[int] = []
    for i, row in enumerate(losses):
        better = (losses <= row).all(axis=1) & (losses < row).any(axis=1)
        equal = (
            np.all(np.abs(losses[kept] - row) < 1e-9 * np.maximum(np.abs(row), 1), axis=1).any()
            if kept
            else False
        )
        if not better.any() and not equal:
            kept.append(i)
    return kept


def _point(
    simplex: Simplex, names: Sequence[str], weights: np.ndarray, importance: np.ndarray, losses: np.ndarray
) -> FrontPoint:
    return FrontPoint(
        _named(simplex, weights),
        dict(zip(names, importance.tolist(), strict=True)),
        {name: _summary(losses[:, c]) for c, name in enumerate(names)},
    )


def _summary(values: np.ndarray, median: bool = False) -> tuple[float, float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(np.median(values) if median else values.mean()), float(low), float(high)


def _named(simplex: Simplex, weights: np.ndarray) -> dict[str, float]:
    return dict(zip(simplex.sources, weights.tolist(), strict=True))
