"""Estimates from n sampled answers to each problem: avg@n, maj@k and pass@k, with how sure they are.

All are means over problems of a value of the problem's own samples. Two errors are told apart: the standard error
*between runs* (other random numbers, the same problems: small for 64 runs) and the bootstrap *over problems* (other
problems of the same kind), which is what decides on 30 problems.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import numpy as np

from curation.errors import DataError, RecipeError
from probes.choice_scores import wilson_interval
from probes.intervals import LEVEL, RESAMPLES, Interval, percentile_interval, ratio_draws

MOST_SAMPLES = 1000  # binomial coefficients of more do not fit float64


@dataclass(frozen=True)
class Estimate:
    """A mean over problems.

    value              : the estimate
    standard_error     : over problems, from the bootstrap; it holds the noise of the sampling too
    interval           : percentile interval over problems
    between_run        : standard deviation of the n runs (run i is sample i of each problem), None for n = 1 or where
                         an estimate is not a mean of runs
    run_standard_error : between_run / sqrt(n)
    """

    value: float
    standard_error: float
    interval: Interval
    between_run: float | None = None
    run_standard_error: float | None = None


def avg_at_n(
    correct: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Estimate:
    """Mean accuracy of n samples a problem, from bool [problems, n].

    >>> round(avg_at_n(np.array([[1, 0], [1, 1]])).value, 3), avg_at_n(np.array([[1, 0], [1, 1]])).between_run
    (0.75, 0.3535533905932738)
    """
    right = _samples(correct)
    runs = right.mean(axis=0)
    spread = float(runs.std(ddof=1)) if len(runs) > 1 else None
    estimate = over_problems(right.mean(axis=1), seed=seed, resamples=resamples, level=level)
    between = None if spread is None else spread / math.sqrt(len(runs))
    return Estimate(estimate.value, estimate.standard_error, estimate.interval, spread, between)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that at least one of k samples, drawn without replacement from n of which c are right, is right.

    1 - C(n - c, k) / C(n, k): the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, eq. 1), as a product.

    >>> pass_at_k(4, 1, 2), pass_at_k(4, 3, 2), pass_at_k(10, 0, 5), round(pass_at_k(200, 3, 100), 6)
    (0.5, 1.0, 0.0, 0.876884)
    """
    _check_k(samples, k)
    if not 0 <= right <= samples:
        raise DataError(f"{right} of {samples} samples cannot be right", where="pass@k")
    if samples - right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / place for place in range(samples - right + 1, samples + 1))


def mean_pass_at_k(
    correct: np.ndarray, k: int, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Estimate:
    """Mean of `pass_at_k` over problems, from bool [problems, n]."""
    right = _samples(correct)
    n = right.shape[1]
    values = np.array([pass_at_k(n, int(row.sum()), k) for row in right])
    return over_problems(values, seed=seed, resamples=resamples, level=level)


def maj_at_k(classes: np.ndarray, correct: np.ndarray, k: int) -> float:
    """Probability that the majority of k samples, drawn without replacement from n, is right; exact.

    classes : int [n]; equal numbers are equal answers, a negative one is no answer and casts no vote
    correct : bool [n]; the same for all samples of a class

    Of several answers with the most votes one is drawn at random, so a tie of t answers counts 1/t if one of them
    is right. With no vote at all the answer is wrong. The sum runs over the votes v of the right answer and the
    number of other answers that also have v; cost about n k^2 log k. DataError when a class is both right and wrong.

    >>> maj_at_k(np.array([0, 0, 1, 2]), np.array([1, 1, 0, 0]), 4)
    1.0
    >>> maj_at_k(np.array([0, 1]), np.array([1, 0]), 2), maj_at_k(np.array([0, 0, 1]), np.array([1, 1, 0]), 1)
    (0.5, 0.6666666666666666)
    """
    classes, right = np.asarray(classes), np.asarray(correct).astype(bool)
    n = len(classes)
    if right.shape != classes.shape or classes.ndim != 1:
        raise DataError("Classes and verdicts are not of the same samples", where="maj@k")
    _check_k(n, k)
    voting = classes >= 0
    names, counts = np.unique(classes[voting], return_counts=True)
    verdicts = [set(right[classes == name].tolist()) for name in names]
    if any(len(verdict) > 1 for verdict in verdicts):
        raise DataError("Equal answers are both right and wrong", where="maj@k")
    silent = int(n - voting.sum())
    ways = 0.0
    for at, verdict in enumerate(verdicts):
        if verdict == {True}:
            others = [int(count) for place, count in enumerate(counts) if place != at]
            ways += _winning_ways(int(counts[at]), others, silent, k)
    return min(ways / math.comb(n, k), 1.0)


def mean_maj_at_k(
    classes: np.ndarray,
    correct: np.ndarray,
    k: int,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Mean of `maj_at_k` over problems, from int and bool [problems, n]."""
    right = _samples(correct)
    values = [maj_at_k(row, verdicts, k) for row, verdicts in zip(np.asarray(classes), right, strict=True)]
    return over_problems(np.array(values), seed=seed, resamples=resamples, level=level)


def over_problems(
    values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Estimate:
    """The mean of a value of each problem, from 0 to 1, with the bootstrap over problems.

    Where none is solved, or all are, resampling shows no spread; the interval is Wilson's then: 0 of 6 is no proof.

    >>> over_problems(np.array([0.0, 1.0, 1.0, 1.0])).value
    0.75
    """
    values = np.asarray(values, dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        raise DataError("There is no problem to average over, or one has no value", where="estimates")
    draws = ratio_draws(values[None], np.ones(len(values)), seed=seed, resamples=resamples)[:, 0]
    low, high = percentile_interval(draws, level)
    value = float(values.mean())
    if (values == value).all() and value in (0.0, 1.0):
        z = statistics.NormalDist().inv_cdf(0.5 + level / 2)
        low, high = wilson_interval(round(value * len(values)), len(values), z)
    return Estimate(value, float(draws.std()), Interval(value, low, high, level, len(values)))


def _winning_ways(own: int, others: list[int], silent: int, k: int) -> float:
    """Subsets of size k that an answer with `own` samples wins; one that it shares with t others counts 1 / (t + 1)."""
    total = 0.0
    for votes in range(1, min(own, k) + 1):
        left = k - votes
        # table[t, s]: ways in which the others have s samples in the subset, and t of them as many votes as this one
        table = np.zeros((left // votes + 1, left + 1))
        table[0, 0] = 1.0
        for count in others:
            below = [math.comb(count, taken) for taken in range(min(count, votes - 1, left) + 1)]
            grown = np.zeros_like(table)
            for taken, ways in enumerate(below):
                grown[:, taken:] += ways * table[:, : left + 1 - taken]
            if count >= votes and left >= votes:
                grown[1:, votes:] += math.comb(count, votes) * table[:-1, : left + 1 - votes]
            table = grown
        rest = np.array([float(math.comb(silent, left - taken)) for taken in range(left + 1)])
        shares = 1.0 / np.arange(1, len(table) + 1)
        total += math.comb(own, votes) * float(shares @ (table @ rest))
    return total


def _samples(correct: np.ndarray) -> np.ndarray:
    right = np.asarray(correct).astype(np.float64)
    if right.ndim != 2 or not right.size:
        raise DataError(
            f"Verdicts of shape {right.shape} are not problems by samples",
            where="estimates",
            remedy="Give an array [problems, n] with at least one of each",
        )
    return right


def _check_k(samples: int, k: int) -> None:
    if not 1 <= k <= samples or samples > MOST_SAMPLES:
        raise RecipeError(
            f"{k} of {samples} samples cannot be drawn",
            where="k",
            remedy=f"Choose k from 1 to the number of samples, and at most {MOST_SAMPLES} samples",
        )
