"""When to stop sampling a prompt: as soon as it is decided whether its solve rate is one to train on.

The rule to save samples against asks for all N of them: keep a prompt if lowest <= solved / N <= highest
(LFM-1.3B-Math keeps 20 to 80 %). The sequential rule looks after some of the samples, and stops where the
chance that all N would decide otherwise is small, by the predictive distribution of the rest under a uniform
prior (beta-binomial). How small is chosen, for keeping and for leaving out, so that for *every* true solve rate
the two rules disagree with probability `error` at most; that probability is computed exactly, by dynamic
programming over the counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from math import comb
from typing import Literal

import numpy as np

from curation.errors import RecipeError

Decision = Literal["keep", "hard", "easy"]
_RATES, _COARSE = np.linspace(0.0, 1.0, 201), np.linspace(0.0, 1.0, 41)


@dataclass(frozen=True)
class StoppingRule:
    """lowest, highest : solve rates to keep, ends included; samples : N; error : see the module's text

    looks : numbers of samples after which to decide, rising, the last is N; None: each from 2 on
    """

    lowest: float = 0.2
    highest: float = 0.8
    samples: int = 13
    error: float = 0.05
    looks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        looks = self.at
        good = 0 <= self.lowest <= self.highest <= 1 and 0 <= self.error < 1 and self.samples >= 1
        if not good or looks[-1] != self.samples or looks[0] < 1 or sorted(set(looks)) != list(looks):
            raise RecipeError(
                f"Solve rates from {self.lowest} to {self.highest} by looks at {looks} of {self.samples} "
                f"samples with an error of {self.error} cannot be",
                where="solve rate",
                remedy="Give 0 <= lowest <= highest <= 1, an error below 1, and rising looks that end at samples",
            )

    @property
    def at(self) -> tuple[int, ...]:
        """The looks."""
        if self.looks is not None:
            return self.looks
        return tuple(range(2, self.samples + 1)) or (self.samples,)

    def decide(self, solved: int, sampled: int) -> Decision | None:
        """The decision after `sampled` samples (one of the looks), None to go on.

        >>> rule = StoppingRule()
        >>> rule.decide(0, 3), rule.decide(0, 9), rule.decide(3, 6), rule.decide(11, 13)
        (None, 'hard', 'keep', 'easy')
        """
        verdict = _verdict(self._kept_chance(solved, sampled), self._tolerances)
        if verdict is None or verdict:
            return None if verdict is None else "keep"
        return "hard" if 2 * solved < sampled * (self.lowest + self.highest) else "easy"

    def disagreement(self, rates: np.ndarray | None = None) -> np.ndarray:
        """Probability, for each true solve rate, that all samples would have decided otherwise."""
        return self._walk(self._tolerances, _RATES if rates is None else rates)[0]

    def expected_samples(self, rates: np.ndarray | None = None) -> np.ndarray:
        """Mean number of samples for each true solve rate."""
        return self._walk(self._tolerances, _RATES if rates is None else rates)[1]

    @cached_property
    def _keeps(self) -> np.ndarray:
        """Whether each final count 0..N is kept; exact in the decimals that the limits print as."""
        low, high = Fraction(repr(float(self.lowest))), Fraction(repr(float(self.highest)))
        return np.array([low <= Fraction(s, self.samples) <= high for s in range(self.samples + 1)])

    @cached_property
    def _tolerances(self) -> tuple[float, float]:
        """The chances of another decision at which to stop, for keeping and for leaving out: of all pairs that
        keep the promise, the one with the fewest samples, on average over the solve rates."""
        chances = [self._kept_chance(s, t) for t in self.at for s in range(t + 1)]
        best, fewest = (0.0, 0.0), np.inf
        for keep in _some({1 - c for c in chances if c > 0.5}):
            for leave in _some({c for c in chances if c < 0.5}):
                wrong, cost = self._walk((keep, leave), _COARSE)
                promising = cost.mean() < fewest and wrong.max() <= self.error + 1e-12
                if promising and self._walk((keep, leave), _RATES)[0].max() <= self.error + 1e-12:
                    best, fewest = (keep, leave), cost.mean()
        return best

    @cache  # noqa: B019 - a rule is small, and lives as long as its run
    def _kept_chance(self, solved: int, sampled: int) -> float:
        rest = self.samples - sampled
        if rest == 0:
            return float(self._keeps[solved])
        failed = sampled - solved
        kept = np.flatnonzero(self._keeps[solved : solved + rest + 1]).tolist()
        # Beta-binomial after a uniform prior; in whole numbers, so that equal chances are equal.
        ways = sum(comb(solved + more, more) * comb(failed + rest - more, rest - more) for more in kept)
        return ways / comb(sampled + rest + 1, rest)

    def _walk(self, tolerances: tuple[float, float], rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(disagreement, expected samples) for each rate, when chances up to `tolerances` stop."""
        reach, before = np.ones((1, len(rates))), 0
        wrong, cost = np.zeros_like(rates), np.zeros_like(rates)
        for t in self.at:
            step = _binomial(t - before, rates.tobytes())
            arrived = np.zeros((t + 1, len(rates)))
            for j in range(t - before + 1):
                arrived[j : j + before + 1] += reach * step[j]
            rest = _binomial(self.samples - t, rates.tobytes())
            for s in range(t + 1):
                verdict = _verdict(self._kept_chance(s, t), tolerances)
                if verdict is not None:
                    later = rest[self._keeps[s : s + len(rest)]].sum(0)
                    wrong += arrived[s] * (1 - later if verdict else later)
                    cost += arrived[s] * t
                    arrived[s] = 0
            reach, before = arrived, t
        return wrong, cost


def _verdict(kept_chance: float, tolerances: tuple[float, float]) -> bool | None:
    """Keep, leave out, or undecided, from the chance that all samples would keep."""
    if 1 - kept_chance <= tolerances[0]:
        return True
    return False if kept_chance <= tolerances[1] else None


def _some(chances: set[float], most: int = 24) -> list[float]:
    """At most `most` of the chances, evenly spread over their ranks."""
    ranked = sorted(chances | {0.0})
    return (
        ranked
        if len(ranked) <= most
        else [ranked[round(i * (len(ranked) - 1) / (most - 1))] for i in range(most)]
    )


@cache
def _binomial(trials: int, rates: bytes) -> np.ndarray:
    """Probabilities [trials + 1, rates] of each count."""
    rate = np.frombuffer(rates)
    return np.stack([comb(trials, s) * rate**s * (1 - rate) ** (trials - s) for s in range(trials + 1)])
