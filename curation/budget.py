"""How much must be read to end with N documents: a pilot's pass rates, with intervals, carried through the funnel.

A funnel is a row of cuts. A *counted* cut (a threshold, a duplicate) lets through an unknown share of what reaches
it; the pilot counted `passed` of `reached`, and what that says about the share is Jeffreys' posterior
Beta(passed + 1/2, reached - passed + 1/2). A *fixed* cut keeps a share by definition ("the top tenth"). For each of
`DRAWS` draws of the shares the funnel is walked backwards: to have n documents behind a counted cut, a random number
must arrive, of mean n / p and variance n (1 - p) / p^2 (the negative binomial's, drawn from a gamma distribution);
before a fixed cut of share f, ceil(n / f). The quantiles of the outcome are an interval for the number that will
really have to be read, not only for its expectation. That it covers what it says is tested by simulation.

A cut that drops duplicates is no constant share: it takes more of a larger corpus. Where the pilot's groups of
duplicates are known, each draw walks through it by a path of `duplicate_growth`; the share of groups that another
source has (which grows, too) stays the pilot's. A cut without groups is a counted one, and a note says that the
numbers to be read are then lower bounds.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import beta

from curation.budget_records import Cost, Cut, Rate, SourceBudget, Verdict
from curation.duplicate_growth import GrowthPaths, growth_paths
from curation.errors import DataError, RecipeError

DRAWS = 20_000
LARGEST = 10**10
"""Up to so many documents the growth of duplicates is followed; what needs more counts as out of reach."""


def pilot_sample(ids: Iterable[str], size: int, seed: int) -> list[str]:
    """`size` ids (all, if there are fewer), drawn uniformly by a seeded hash: the same whatever their order.

    >>> pilot_sample(["c", "a", "b"], 2, 0) == pilot_sample(["a", "b", "c"], 2, 0)
    True
    """
    if size < 1:
        raise RecipeError(
            f"A pilot of {size} documents says nothing", remedy="Give 1 or more; 2,000 is usual"
        )
    keyed = ((hashlib.sha256(f"pilot\0{seed}\0{name}".encode()).digest(), name) for name in ids)
    return [name for _, name in heapq.nsmallest(size, keyed)]


def plan_budget(
    source: str,
    cuts: Sequence[Cut],
    target: int = 10_000,
    *,
    available: int | None = None,
    at_least: bool = False,
    pilot: int | None = None,
    whole: bool = False,
    costs: Sequence[Cost] = (),
    level: float = 0.9,
    seed: int = 0,
) -> SourceBudget:
    """How many documents of a source must be read to end with `target`, and whether it has so many.

    cuts      : in order, from a pilot that is a uniform sample of the source
    available : documents of the source; `at_least` when it may have more
    pilot     : its documents, if not what reached the first cut; `whole` when it is all of the source
    level     : of all intervals

    Raises RecipeError for impossible numbers, DataError for a pilot without documents or cuts that do not fit.
    """
    _check(source, cuts, target, available, level)
    generator = np.random.default_rng([seed, *hashlib.sha256(source.encode()).digest()[:8]])
    shares = [_draws(cut, generator) for cut in cuts]
    growths = [_growth(cut, generator) for cut in cuts]
    tail = (1 - level) / 2
    arriving = np.full(DRAWS, float(target))
    for cut, share, growth in zip(reversed(cuts), reversed(shares), reversed(growths), strict=True):
        arriving = _before(cut, share, growth, arriving, generator)
    rates = tuple(_rate(cut, level) for cut in cuts)
    nothing = any(rate.value == 0 for rate in rates)
    unknown = any(rate.value is None for rate in rates)
    grown = any(growth is not None for growth in growths)
    needed = None if nothing or unknown else target / math.prod(float(rate.value or 0) for rate in rates)
    # Neighbouring order statistics: between a number and no number there is nothing to interpolate.
    low, middle, high = (
        float(value) for value in np.quantile(arriving, [tail, 0.5, 1 - tail], method="closest_observation")
    )
    if grown and needed is not None:
        needed = middle if math.isfinite(middle) else None
    expected, expected_low, expected_high = _yield(cuts, shares, growths, rates, available, tail, generator)
    unbounded = needed is None or not math.isfinite(high)
    if not math.isfinite(low):
        low = float(LARGEST)
    verdict = _verdict(available, at_least, low, None if unbounded else high)
    seconds, flops, unknown_flops = _costs(cuts, rates, costs, needed)
    return SourceBudget(
        source=source,
        target=target,
        level=level,
        pilot=cuts[0].reached if pilot is None else pilot,
        rates=rates,
        needed=None if needed is None else math.ceil(needed),
        # The posterior of few documents leans away from their own rates; the interval holds the estimate all the same.
        low=math.ceil(low if needed is None else min(low, needed)),
        high=None if unbounded or needed is None else math.ceil(max(high, needed)),
        available=available,
        at_least=at_least,
        expected=expected,
        expected_low=expected_low,
        expected_high=expected_high,
        verdict=verdict,
        seconds=seconds,
        flops=flops,
        flops_unknown=unknown_flops,
        notes=_notes(
            source, cuts, target, available, whole, verdict, (expected, expected_low, expected_high)
        ),
    )


def _check(source: str, cuts: Sequence[Cut], target: int, available: int | None, level: float) -> None:
    if target < 1:
        raise RecipeError(
            f"{target} documents are no target", remedy="Give 1 or more; the paper ends with 10,000"
        )
    if not 0 < level < 1:
        raise RecipeError(f"The level of the intervals is {level}", remedy="Give a share such as 0.9")
    if available is not None and available < 0:
        raise RecipeError(f"{available} documents cannot be available", where=f"source {source}")
    if not cuts or cuts[0].reached < 1:
        raise DataError(
            "The pilot has no documents", where=f"source {source}", remedy="Read some of the source first"
        )
    for cut in cuts:
        if not 0 <= cut.passed <= cut.reached:
            raise DataError(
                f"{cut.passed} of {cut.reached} documents cannot have passed the cut `{cut.name}`",
                where=f"source {source}",
            )
        if cut.groups is not None and (sum(cut.groups) != cut.reached or min(cut.groups, default=1) < 1):
            raise DataError(
                f"The groups of the cut `{cut.name}` hold {sum(cut.groups)} documents, not the {cut.reached} that "
                "reached it",
                where=f"source {source}",
            )
        if cut.share is not None and not 0 < cut.share <= 1:
            raise RecipeError(
                f"The cut `{cut.name}` keeps a share of {cut.share}", remedy="Give a share above 0"
            )


def _draws(cut: Cut, generator: np.random.Generator) -> np.ndarray:
    """Draws [DRAWS] of the share that passes."""
    if cut.share is not None:
        return np.full(DRAWS, cut.share)
    drawn = generator.beta(cut.passed + 0.5, cut.reached - cut.passed + 0.5, DRAWS)
    return np.maximum(drawn, 1e-12)


def _growth(cut: Cut, generator: np.random.Generator) -> GrowthPaths | None:
    """The paths of a cut whose groups of duplicates are known."""
    if not cut.groups:
        return None
    return growth_paths(cut.groups, DRAWS, LARGEST, generator)


def _unshared(cut: Cut) -> float:
    """The share of a cut's groups that no other source has."""
    return min(1.0, cut.passed / len(cut.groups or (1,)))


def _before(
    cut: Cut, share: np.ndarray, growth: GrowthPaths | None, left: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """How many must arrive at a cut for `left` to leave it [DRAWS]; infinite where no number is enough."""
    if growth is not None:
        return np.ceil(growth.needed(left / max(_unshared(cut), 1e-12)))
    reachable = np.isfinite(left)
    found = np.full(DRAWS, np.inf)
    if cut.share is not None:
        found[reachable] = np.ceil(left[reachable] / share[reachable])
    else:
        found[reachable] = _trials(left[reachable], share[reachable], generator)
    return found


def _trials(successes: np.ndarray, share: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """How many must be tried for so many successes: a gamma variable with the negative binomial's mean and variance."""
    failing = np.maximum(1 - share, 1e-12)
    return np.maximum(successes, np.rint(generator.gamma(successes / failing) * failing / share))


def _yield(
    cuts: Sequence[Cut],
    shares: Sequence[np.ndarray],
    growths: Sequence[GrowthPaths | None],
    rates: Sequence[Rate],
    available: int | None,
    tail: float,
    generator: np.random.Generator,
) -> tuple[float | None, float | None, float | None]:
    """Documents behind the last cut when all available ones are read: expectation and interval."""
    if available is None:
        return None, None, None
    left = np.full(DRAWS, available, dtype=np.int64)
    for cut, share, growth in zip(cuts, shares, growths, strict=True):
        if growth is not None:
            left = np.rint(growth.kept(left.astype(np.float64)) * _unshared(cut)).astype(np.int64)
        elif cut.share is not None:
            left = np.ceil(left * share - 1e-9).astype(np.int64)
        else:
            left = generator.binomial(left, share)
    low, high = (float(value) for value in np.quantile(left, [tail, 1 - tail]))
    if any(growth is not None for growth in growths):
        return float(np.median(left)), low, high
    expected = float(available) * math.prod(float(rate.value or 0) for rate in rates)
    return expected, low, high


def _rate(cut: Cut, level: float) -> Rate:
    if cut.share is not None:
        return Rate(cut.name, cut.share, cut.share, cut.share, fixed=True)
    k, n, tail = cut.passed, cut.reached, (1 - level) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return Rate(cut.name, k / n if n else None, low, high, fixed=False)


def _verdict(available: int | None, at_least: bool, low: float, high: float | None) -> Verdict:
    if available is None:
        return "unknown"
    if high is not None and available >= high:
        return "enough"
    if available < low:
        return "unknown" if at_least else "not enough"
    return "perhaps"


def _costs(
    cuts: Sequence[Cut], rates: Sequence[Rate], costs: Sequence[Cost], needed: float | None
) -> tuple[dict[str, float], float | None, tuple[str, ...]]:
    """For reading `needed` documents: thread-seconds of each model, operations of those known, the other models."""
    if needed is None or not costs:
        return {}, None, ()
    names = [cut.name for cut in cuts]
    seconds: dict[str, float] = {}
    known = [cost for cost in costs if cost.flops is not None]
    flops = 0.0 if known else None
    for cost in costs:
        at = names.index(cost.at) if cost.at in names else len(names)
        reading = needed * math.prod(float(rate.value or 0) for rate in rates[:at])
        seconds[cost.model] = seconds.get(cost.model, 0.0) + reading * cost.seconds
        if flops is not None and cost.flops is not None:
            flops += reading * cost.flops
    return seconds, flops, tuple(dict.fromkeys(cost.model for cost in costs if cost.flops is None))


def _notes(
    source: str,
    cuts: Sequence[Cut],
    target: int,
    available: int | None,
    whole: bool,
    verdict: Verdict,
    expected: tuple[float | None, float | None, float | None],
) -> tuple[str, ...]:
    notes = []
    value, low, high = expected
    if verdict == "not enough":
        about = f"about {value:,.0f} ({low:,.0f} to {high:,.0f})"
        notes.append(
            f"{source} cannot give {target:,} documents: from its {available:,} it would give {about}"
        )
    for cut in cuts:
        if cut.share is None and cut.reached and not cut.passed:
            notes.append(
                f"None of the {cut.reached:,} documents of {source} that reached the cut `{cut.name}` passed it, so "
                "no number can be said to be enough: loosen the cut, or take a larger pilot"
            )
        if cut.share is None and not cut.reached:
            notes.append(f"No document of {source} reached the cut `{cut.name}`, so its rate is not known")
        if cut.duplicates and cut.passed < cut.reached:
            met = f"{source}: {cut.reached - cut.passed:,} of {cut.reached:,} were duplicates at `{cut.name}`"
            notes.append(
                f"{met}; more text has more of them, so the number to read is a lower bound"
                if cut.groups is None
                else f"{met}; how many more text has was predicted from these groups"
            )
    if whole:
        notes.append(f"The pilot is the whole of {source}: what it gives is known, not estimated")
    return tuple(notes)
