"""Statistics of paired training runs: t intervals, exact sign-flip tests, detectable effects, Holm's
correction.

The unit of replication is a training seed. Documents of a probe are never counted as replicates of training:
their resampling says how far the choice of the probe matters, not whether another seed would give the same
difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

MOST_ENUMERATED = 20
SAMPLED_FLIPS = 1 << 20


def t_interval(differences: Sequence[float], level: float = 0.9) -> tuple[float, float] | None:
    """Interval of the mean of paired differences, Student's t with n - 1 degrees; None with fewer than two.

    Example: (1, 2, 3) at .9: 2 +- 2.920 * 1 / sqrt(3) = (.314, 3.686).
    """
    n = len(differences)
    if n < 2:
        return None
    half = stats.t.ppf((1 + level) / 2, n - 1) * np.std(differences, ddof=1) / math.sqrt(n)
    mean = float(np.mean(differences))
    return mean - float(half), mean + float(half)


def t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t test; None with fewer than two differences."""
    n = len(differences)
    if n < 2:
        return None
    sd, mean = float(np.std(differences, ddof=1)), float(np.mean(differences))
    if sd == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / (sd / math.sqrt(n)), n - 1))


def sign_flip_test(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided exact p: the share of all 2^n sign patterns whose |mean| is at least the observed one.

    Exact if differences are symmetric about zero under no effect, as differences of exchangeable runs are.
    The least p that n pairs can give is 2 / 2^n: .25 with 3 seeds, .031 with 6. Above 20 pairs a million
    patterns are drawn by `seed` instead (the observed one counts among them).
    Example: (1, 2, 3): only +++ and --- reach |sum| 6, so p = 2 / 8.
    """
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    if n == 0:
        return 1.0
    threshold = abs(values.sum()) * (1 - 1e-12) - 1e-300
    if n <= MOST_ENUMERATED:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= threshold))
    rng = np.random.default_rng(np.random.SeedSequence([seed, n]))
    hits, done = 1, 1
    while done < SAMPLED_FLIPS:
        count = min(1 << 16, SAMPLED_FLIPS - done)
        signs = 1 - 2 * rng.integers(0, 2, size=(count, n))
        hits += int((np.abs(signs @ values) >= threshold).sum())
        done += count
    return hits / done


def equivalence_test(differences: Sequence[float], margin: float) -> float | None:
    """p of the two one-sided paired t tests (TOST) that the true mean lies within ±margin; None below two pairs.

    Small p: equivalent. p <= .05 is the same as the 90 % t interval lying inside the margin.
    Example: (-.1, .1) and margin 1: t = 1 / .1 = 10 with one degree of freedom, p = .032.
    """
    n = len(differences)
    if n < 2:
        return None
    mean, error = float(np.mean(differences)), float(np.std(differences, ddof=1)) / math.sqrt(n)
    if error == 0:
        return 0.0 if abs(mean) < margin else 1.0
    return float(stats.t.sf((margin - abs(mean)) / error, n - 1))


def crossed_bootstrap(
    nats: np.ndarray, size: np.ndarray, *, seed: int = 0, resamples: int = 2000
) -> tuple[np.ndarray, float]:
    """Draws of a mean difference in bits per byte over seeds and documents, and its two-sided p.

    nats [seeds, documents] : nats of one mixture minus those of the other, same seed, same document
    size [documents]        : bytes of each document
    Seeds and documents are crossed (every seed is measured on the same documents), so each draw resamples both, on
    its own; the deviation of few seeds is widened by sqrt(n / (n - 1)), since a bootstrap of n values has a
    spread that is too small by that. With one seed the draws know of documents alone, and p is 1: nothing is
    known about another training.
    """
    seeds, documents = nats.shape
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xC205]))
    estimate = float(nats.mean(axis=0).sum() / size.sum() / math.log(2))
    draws = np.empty(resamples)
    widen = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    for i in range(resamples):
        chosen = rng.multinomial(documents, np.full(documents, 1 / documents))
        per_seed = nats @ chosen / (size @ chosen) / math.log(2)
        centre = per_seed.mean()
        resampled = per_seed[rng.integers(0, seeds, seeds)].mean()
        draws[i] = centre + widen * (resampled - centre)
    if seeds < 2:
        return draws, 1.0
    below = (1 + int((draws <= 0).sum())) / (1 + resamples)
    above = (1 + int((draws >= 0).sum())) / (1 + resamples)
    return draws, 0.0 if estimate != 0 and np.ptp(draws) == 0 else min(1.0, 2 * min(below, above))


@lru_cache
def detectable_factor(pairs: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """k such that a true mean difference of k standard deviations is found with `power` by a two-sided paired
    t test.

    From the noncentral t distribution: 3.26 for 3 pairs, 1.68 for 5, 1.44 for 6, .89 for 12.
    """
    if pairs < 2:
        return math.inf
    critical = stats.t.ppf(1 - alpha / 2, pairs - 1)
    # The noncentral t by its definition, averaged over the estimated deviation (SciPy's own is NaN far out).
    shares = (np.arange(4000) + 0.5) / 4000
    spread = np.sqrt(stats.chi2.ppf(shares, pairs - 1) / (pairs - 1))

    def lacking(k: float) -> float:
        shift = k * math.sqrt(pairs)
        found = stats.norm.sf(critical * spread - shift) + stats.norm.cdf(-critical * spread - shift)
        return float(found.mean()) - power

    return float(optimize.brentq(lacking, 1e-6, 100.0))


def smallest_detectable(
    differences: Sequence[float], alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The true mean difference that as many pairs of this spread would find; None with fewer than two."""
    if len(differences) < 2:
        return None
    return detectable_factor(len(differences), alpha, power) * float(np.std(differences, ddof=1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order; they control the chance of any false claim.

    Example: (.01, .04, .03) become (.03, .06, .06).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def student_draws(per_seed: np.ndarray, *, seed: int, resamples: int) -> np.ndarray:
    """Draws of the error of a mean over seeds, `[resamples, ...]` for per-seed values `[seeds, ...]`.

    Each draw combines the seeds' deviations with common random numbers, so that draws of different cells keep
    the correlation that the seeds show; each cell's draws follow Student's t with seeds - 1 degrees, scaled
    to the standard error. Resampling three seeds with replacement instead would give intervals that are far
    too narrow. Zeros with one seed.
    """
    seeds = per_seed.shape[0]
    if seeds < 2:
        return np.zeros((resamples, *per_seed.shape[1:]))
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x57D7]))
    normal = rng.standard_normal((resamples, seeds))
    widen = np.sqrt((seeds - 1) / rng.chisquare(seeds - 1, size=resamples))
    deviations = per_seed - per_seed.mean(axis=0)
    factor = normal * widen[:, None] / math.sqrt(seeds * (seeds - 1))
    return np.tensordot(factor, deviations, axes=1)
