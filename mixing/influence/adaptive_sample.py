"""Source weights from an adaptive sample: score a few units of each source, look, score more where it matters.

Eq. 6 is linear in the scores: rho_g is a token-weighted mean over source g, so a random sample of g estimates
it. Units (documents, or groups of documents) are taken from each source in a seeded random order; after each
batch the intervals of all weights are computed, and the next units go to the sources to which the widest
interval owes most per token (Neyman's allocation through the derivative of the weights). It stops when the
half-width of every weight's interval is below the wish, or a maximum is reached.

Estimator: the ratio rho_g = sum b s / sum s over the sampled units, its variance (1 - n/N) S^2 / n with S^2
the sample variance of e = s (b - rho_g) / mean(s) (Cochran, Sampling Techniques, 6.4), t-distributed with n - 1
degrees of freedom. The interval of a weight holds the central share of the weights of 20,000 draws of all
densities, since clipping makes the map from densities to weights kinked.

Optional stopping: the error 1 - level is spent over the looks in advance, 10 % at the first (which mostly
serves the plan), 50 % at the second, then 20, 10, 5 ... %, and the interval of look k has the level 1 - its
part. By the union bound the chance that the interval of a weight misses at the look at which it stops is at
most 1 - level, whatever made it stop. Example: at level .95 the looks have levels .995, .975, .99, .995 ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from curation.atomic import hash_value
from curation.errors import RecipeError
from mixing.influence.weights import RowsMap, SourceWeight, positive_rows

DRAWS = 20_000
AIMS = (
    0.92,
    0.88,
    0.8,
    0.7,
)  # share of the wish that the plan after look 1, 2 ... aims at, so that most suffice
GROWTH = 0.25  # least growth of the sample of the source that matters most, if a plan asks for nothing
MIN_UNITS = 8  # of a source, below which its variance is not believed

Measured = dict[str, tuple[np.ndarray, np.ndarray]]  # source -> benefits [n] and tokens [n]
Measure = Callable[[dict[str, np.ndarray]], Measured]


@dataclass(frozen=True)
class Stopping:
    """When an adaptive sample stops.

    half_width : of the interval of every weight, as a share of the mixture: .02 is 2 points
    level      : the chance that the interval of a weight holds what scoring everything would give
    first      : units of each source before the first look
    most       : units of each source at most; 0 for no limit
    looks      : at most so many
    seed       : of the order in which units are taken
    """

    half_width: float = 0.02
    level: float = 0.95
    first: int = 64
    most: int = 0
    looks: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, wrong in (
            ("half_width", not 0 < self.half_width < 1),
            ("level", not 0.5 <= self.level < 1),
            ("first", self.first < MIN_UNITS),
            ("looks", self.looks < 1),
            ("most", self.most < 0 or 0 < self.most < self.first),
        ):
            if wrong:
                raise RecipeError(
                    f"The setting {name} = {getattr(self, name)} of the adaptive sample is not possible",
                    where=f"influence.adaptive.{name}",
                    remedy=f"half_width lies in (0, 1), level in [.5, 1), first is {MIN_UNITS} or more, most is 0 or "
                    "at least first",
                )


@dataclass(frozen=True)
class Look:
    """What one look saw: units scored so far by source, its level, and half the width of each interval."""

    units: dict[str, int]
    level: float
    half_widths: dict[str, float]


@dataclass(frozen=True)
class SampledWeights:
    """Weights from a sample. `reached` says whether every half-width is below the wish; `why` in a sentence."""

    weights: list[SourceWeight]
    looks: list[Look]
    population: dict[str, int]
    reached: bool
    why: str

    @property
    def units(self) -> dict[str, int]:
        """Units that were scored, by source."""
        return self.looks[-1].units

    def record(self) -> dict:
        """For JSON."""
        return {
            "weights": [w.record() for w in self.weights],
            "looks": [asdict(look) for look in self.looks],
            "population": self.population,
            "reached": self.reached,
            "why": self.why,
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> SampledWeights:
        """The inverse of `record`."""
        return SampledWeights(
            [SourceWeight(**row) for row in record["weights"]],
            [Look(**look) for look in record["looks"]],
            dict(record["population"]),
            record["reached"],
            record["why"],
        )


def look_error(error: float, look: int) -> float:
    """The part of `error` that look 1, 2, 3 ... may spend; the parts of all looks sum to it.

    >>> [round(look_error(0.05, look), 5) for look in (1, 2, 3, 4)]
    [0.005, 0.025, 0.01, 0.005]
    """
    return error * (0.1 if look == 1 else 0.5 if look == 2 else 0.4 * 0.5 ** (look - 2))


def random_order(units: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The order in which the units of each source are taken; it depends on the seed and the source's name."""
    return {
        name: np.random.default_rng([seed, int(hash_value(name)[:16], 16)]).permutation(numbers)
        for name, numbers in units.items()
    }


def sample_weights(
    units: Mapping[str, np.ndarray],
    measure: Measure,
    stopping: Stopping | None = None,
    to_weights: RowsMap = positive_rows,
) -> SampledWeights:
    """Weights of the sources of `units` (source -> numbers of its units) within the wished half-width.

    measure    : benefits and tokens of the units that it is given; called with units that it has not seen
    to_weights : densities [n, sources], sources by name, to weights of the same shape
    """
    stopping = stopping or Stopping()
    order = random_order({name: units[name] for name in sorted(units)}, stopping.seed)
    limit = {n: min(len(o), stopping.most or len(o)) for n, o in order.items()}
    taken = dict.fromkeys(order, 0)
    wanted = {name: min(stopping.first, limit[name]) for name in order}
    seen: Measured = {name: (np.zeros(0), np.zeros(0)) for name in order}
    looks: list[Look] = []
    while True:
        fresh = {n: order[n][taken[n] : wanted[n]] for n in order if wanted[n] > taken[n]}
        for name, (benefit, tokens) in measure(fresh).items():
            seen[name] = (np.append(seen[name][0], benefit), np.append(seen[name][1], tokens))
        taken = dict(wanted)
        error = look_error(1 - stopping.level, len(looks) + 1)
        estimate = Estimate(seen, {n: len(o) for n, o in order.items()})
        weights = estimate.weights(to_weights, 1 - error, stopping.seed)
        half = {w.source: (w.high - w.low) / 2 for w in weights}
        looks.append(Look(dict(taken), 1 - error, half))
        # A source of too few units has no variance to believe, unless all of it is scored.
        young = [n for n in order if taken[n] < min(MIN_UNITS, len(order[n]))]
        reached = max(half.values()) <= stopping.half_width and not young
        if reached or taken == limit or len(looks) == stopping.looks:
            why = _why(stopping, reached, half, taken, {n: len(o) for n, o in order.items()})
            return SampledWeights(weights, looks, {n: len(o) for n, o in order.items()}, reached, why)
        aim = AIMS[min(len(looks), len(AIMS)) - 1] * stopping.half_width
        spends = (error, look_error(1 - stopping.level, len(looks) + 1))
        wanted = estimate.plan(to_weights, half, aim, spends, limit)


class Estimate:
    """Densities of the sources and their standard errors, from the units seen so far."""

    def __init__(self, seen: Measured, population: Mapping[str, int]) -> None:
        self.names = sorted(seen)
        self.count = np.array([len(seen[n][0]) for n in self.names])
        self.population = np.array([population[n] for n in self.names])
        self.tokens = np.array([seen[n][1].mean() if len(seen[n][1]) else 1.0 for n in self.names])
        pairs = [_ratio(*seen[name]) for name in self.names]
        self.rho = np.array([rho for rho, *_ in pairs])
        self.spread = np.array([spread for _, spread, _ in pairs])
        self.skewness = np.array([skew for *_, skew in pairs]) / np.sqrt(np.maximum(self.count, 1))

    def errors(self, count: np.ndarray) -> np.ndarray:
        """Standard errors of the densities if `count` units of each source were seen."""
        left = 1 - count / self.population
        return self.spread * np.sqrt(np.maximum(left, 0) / np.maximum(count, 1))

    def draws(self, seed: int) -> np.ndarray:
        """Densities [DRAWS, sources] around the estimate; the same random numbers at every call."""
        generator = np.random.default_rng([seed, 1])
        free = np.maximum(self.count - 1, 1)
        noise = np.stack([generator.standard_t(f, DRAWS) for f in free], axis=1)
        return self.rho + wider_for_skewness(noise, self.skewness) * self.errors(self.count)

    def weights(self, to_weights: RowsMap, level: float, seed: int) -> list[SourceWeight]:
        """One entry per source with its intervals at `level`."""
        drawn = self.draws(seed)
        ends = [(1 - level) / 2, (1 + level) / 2]
        rho = np.quantile(drawn, ends, axis=0)
        spans = np.quantile(to_weights(drawn), ends, axis=0)
        found = to_weights(self.rho[None])[0]
        return [
            SourceWeight(
                name,
                float(self.rho[g]),
                float(rho[0, g]),
                float(rho[1, g]),
                float(found[g]),
                # The estimate belongs to its interval, also where clipping pushes all draws to one side.
                min(float(spans[0, g]), float(found[g])),
                max(float(spans[1, g]), float(found[g])),
                bool(self.rho[g] < 0),
            )
            for g, name in enumerate(self.names)
        ]

    def plan(
        self,
        to_weights: RowsMap,
        half: Mapping[str, float],
        aim: float,
        errors: tuple[float, float],
        limit: Mapping[str, int],
    ) -> dict[str, int]:
        """Units of each source that should bring every half-width to `aim`, at the least tokens.

        half   : half-widths now, which calibrate the linear approximation used here
        errors : what this look and the next one may spend
        """
        slope = self._slopes(to_weights)
        now, later = (NormalDist().inv_cdf(1 - e / 2) for e in errors)
        linear = now * np.sqrt((slope**2) @ self.errors(self.count) ** 2)
        seen_half = np.array([half[n] for n in self.names])
        unfair = np.where(linear > 0, seen_half / np.where(linear > 0, linear, 1), 1.0).clip(0.5, 3.0)
        most = np.array([limit[n] for n in self.names])
        count = self.count.copy()
        while True:
            # What the linear approximation misses, most of all skewness, fades as the sample grows.
            rest = 1 + (unfair - 1) * np.sqrt(self.count.sum() / count.sum())
            wide = rest * later * np.sqrt((slope**2) @ self.errors(count) ** 2)
            worst = int(np.argmax(wide))
            if wide[worst] <= aim or np.all(count >= most):
                break
            step = np.minimum(np.maximum(count // 10, 4), most - count)
            gain = slope[worst] ** 2 * (self.errors(count) ** 2 - self.errors(count + step) ** 2)
            price = np.where(step > 0, gain / (np.maximum(step, 1) * self.tokens), -1.0)
            best = int(np.argmax(price))
            if price[best] <= 0:
                break
            count[best] += step[best]
        if np.array_equal(count, self.count):
            # Nothing was asked for, yet it is not there: the approximation is off. Grow what matters most.
            share = (slope[int(np.argmax(seen_half))] ** 2) * self.errors(self.count) ** 2
            share = np.where(count < most, share, -1.0)
            at = int(np.argmax(share))
            count[at] = min(most[at], count[at] + max(4, int(GROWTH * count[at])))
        return {name: int(count[g]) for g, name in enumerate(self.names)}

    def _slopes(self, to_weights: RowsMap) -> np.ndarray:
        """d weight_h / d rho_g [h, g], the mean slope within a standard error, which smooths the kinks of clipping."""
        size = np.maximum(self.errors(self.count), 1e-12 + 1e-6 * np.abs(self.rho).max())
        ups, downs = self.rho + np.diag(size), self.rho - np.diag(size)
        return ((to_weights(ups) - to_weights(downs)) / (2 * size[:, None])).T


def wider_for_skewness(noise: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Standardised errors of a mean [n, sources] for t-distributed `noise`, stretched where the terms are skewed.

    skewness : of the mean [sources], that of its terms over sqrt(n)
    Inverts Hall's transformation (J. Royal Stat. Soc. B 54, 1992) of the studentised mean, and keeps whichever
    of that and `noise` is farther out: a correction estimated from few units never narrows an interval.
    """
    g = np.where(np.abs(skewness) > 1e-9, skewness, 1e-9)
    hall = -3 / g * (np.cbrt(1 + g * (-noise - g / 6)) - 1)
    return np.where(noise > 0, np.maximum(hall, noise), np.minimum(hall, noise))


def _ratio(benefit: np.ndarray, tokens: np.ndarray) -> tuple[float, float, float]:
    """Token-weighted mean, and the standard deviation and skewness of its linearised terms."""
    total = tokens.sum()
    if total == 0:
        return 0.0, 0.0, 0.0
    rho = float((benefit * tokens).sum() / total)
    terms = tokens * (benefit - rho) / tokens.mean()
    spread = float(terms.std(ddof=1)) if len(terms) > 1 else 0.0
    return rho, spread, float((terms**3).mean() / spread**3) if spread > 0 else 0.0


def _why(
    stopping: Stopping,
    reached: bool,
    half: Mapping[str, float],
    taken: Mapping[str, int],
    population: Mapping[str, int],
) -> str:
    widest = max(half, key=lambda name: half[name])
    points = f"{100 * half[widest]:.2g} points"
    if taken == population:
        return "Everything was scored, so the weights are those of the full scoring"
    if reached:
        return f"The widest interval is ± {points} ({widest}), within the ± {100 * stopping.half_width:g} asked for"
    if stopping.most and all(taken[n] >= min(stopping.most, population[n]) for n in taken):
        limit = f"the maximum of {stopping.most} units of each source is scored"
    else:
        limit = f"{stopping.looks} looks are over"
    return f"Stopped because {limit}: the widest interval is ± {points} ({widest}), not ± {100 * stopping.half_width:g}"
