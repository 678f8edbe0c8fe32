"""The one projection that every method's weights go through before a token is spent on them.

A method proposes weights t; the data allow c_j = max_epochs * available_j / budget at most of source j, and
the user may ask for minimum, maximum and fixed shares. Of all mixtures that keep these bounds we take the one
nearest to t in Kullback-Leibler divergence,

    minimise sum_j w_j log(w_j / t_j)   subject to   l_j <= w_j <= c_j,   sum_j w_j = 1,

whose solution is w_j = clip(mu * t_j, l_j, c_j) with one factor mu (water filling): what a capped source may
not take goes to the others in proportion to their weights.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from curation.errors import RecipeError

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Bounds:
    """Least and greatest share of every source, and how many tokens a share of 1 is."""

    low: dict[str, float]
    high: dict[str, float]
    budget_tokens: float


def project(
    weights: Mapping[str, float],
    *,
    available_tokens: Mapping[str, float] | None,
    budget_tokens: float,
    max_epochs: float | None,
    minimum: Mapping[str, float] | None = None,
    maximum: Mapping[str, float] | None = None,
    fixed: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The nearest mixture in KL that the data and the user's bounds allow; shares of tokens that sum to 1.

    weights          : the proposal, non-negative, any positive sum
    available_tokens : tokens that each source has; None: no limit
    budget_tokens    : tokens to be trained on
    max_epochs       : how many times a source may be read; None: no limit
    minimum, maximum, fixed : shares by source; sources left out are free

    A source with proposed weight 0 stays at 0 (KL would be infinite) unless its minimum asks for more, or the
    others cannot take everything: then sources of weight 0 share what is left equally (the limit of equal,
    vanishing weights).
    Example: {a: .8, b: .1, c: .1}, a has 40 tokens of a budget of 100 and is read once: {a: .4, b: .3, c:
    .3}. Raises RecipeError when nothing fits, with the number of tokens that are missing, and where.
    """
    names = sorted(weights)
    _check_weights(weights)
    bounds = share_bounds(
        names,
        available_tokens=available_tokens,
        budget_tokens=budget_tokens,
        max_epochs=max_epochs,
        minimum=minimum,
        maximum=maximum,
        fixed=fixed,
    )
    positive = [name for name in names if weights[name] > 0]
    zero = [name for name in names if weights[name] <= 0]
    room = math.fsum(bounds.high[n] for n in positive)
    least_elsewhere = math.fsum(bounds.low[n] for n in zero)
    if room + least_elsewhere >= 1:
        shares = {n: bounds.low[n] for n in zero}
        shares |= _water_fill({n: weights[n] for n in positive}, bounds, 1 - least_elsewhere)
    else:
        shares = {n: bounds.high[n] for n in positive}
        shares |= _water_fill(dict.fromkeys(zero, 1.0), bounds, 1 - room)
    return {name: shares[name] for name in weights}


def share_bounds(
    names: Iterable[str],
    *,
    available_tokens: Mapping[str, float] | None,
    budget_tokens: float,
    max_epochs: float | None,
    minimum: Mapping[str, float] | None = None,
    maximum: Mapping[str, float] | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Bounds:
    """Least and greatest share of each source; raises RecipeError when no mixture keeps them all."""
    names = sorted(names)
    minimum, maximum, fixed = dict(minimum or {}), dict(maximum or {}), dict(fixed or {})
    _check_shares(names, minimum=minimum, maximum=maximum, fixed=fixed)
    caps = epoch_caps(names, available_tokens, budget_tokens, max_epochs)
    low = {n: fixed.get(n, minimum.get(n, 0.0)) for n in names}
    high = {n: fixed.get(n, min(maximum.get(n, 1.0), caps[n])) for n in names}
    for name in names:
        ceiling = min(caps[name], maximum.get(name, 1.0))
        if low[name] > ceiling + TOLERANCE:
            kind = "fixed" if name in fixed else "minimum"
            if caps[name] < low[name]:
                missing = (low[name] - caps[name]) * budget_tokens
                raise RecipeError(
                    f"The {kind} share {low[name]:.4g} of source {name!r} asks for "
                    f"{low[name] * budget_tokens:,.0f} tokens, "
                    f"but it gives {caps[name] * budget_tokens:,.0f} in {max_epochs:g} epochs: "
                    f"{missing:,.0f} tokens are missing",
                    where=name,
                    remedy="Lower its share or the budget, allow more epochs, or add text to it",
                )
            raise RecipeError(
                f"The {kind} share {low[name]:.4g} of source {name!r} is above its maximum "
                f"{maximum[name]:.4g}",
                where=name,
                remedy="Lower one or raise the other",
            )
        low[name] = min(low[name], high[name])
    least, most = math.fsum(low.values()), math.fsum(high.values())
    if least > 1 + TOLERANCE:
        raise RecipeError(
            f"The minimum and fixed shares sum to {least:.4g}, which is "
            f"{(least - 1) * budget_tokens:,.0f} tokens more than the "
            f"budget of {budget_tokens:,.0f}",
            where=_listed(n for n in names if low[n] > 0),
            remedy="Lower some of them",
        )
    if most < 1 - TOLERANCE:
        raise RecipeError(
            _too_little(names, high, caps, budget_tokens, max_epochs, most), **_advice(names, high)
        )
    return Bounds(low, high, budget_tokens)


def epoch_caps(
    names: Iterable[str],
    available_tokens: Mapping[str, float] | None,
    budget_tokens: float,
    max_epochs: float | None,
) -> dict[str, float]:
    """The greatest share of each source that reading it `max_epochs` times allows, at most 1."""
    names = list(names)
    if not math.isfinite(budget_tokens) or budget_tokens <= 0:
        raise RecipeError(
            f"A budget of {budget_tokens:g} tokens is not possible",
            where="budget_tokens",
            remedy="Give a positive number of tokens",
        )
    if max_epochs is not None and not max_epochs > 0:
        raise RecipeError(
            f"At most {max_epochs:g} epochs is not possible",
            where="max_epochs",
            remedy="Give a positive number, or leave it out for no limit",
        )
    if available_tokens is None or max_epochs is None:
        return dict.fromkeys(names, 1.0)
    for name in names:
        if name not in available_tokens:
            raise RecipeError(
                f"Nobody said how many tokens source {name!r} has",
                where=name,
                remedy=_did_you_mean(name, available_tokens),
            )
        if not math.isfinite(available_tokens[name]) or available_tokens[name] < 0:
            raise RecipeError(
                f"Source {name!r} cannot have {available_tokens[name]:g} tokens",
                where=name,
                remedy="Give the number of tokens that it has",
            )
    return {n: min(1.0, max_epochs * available_tokens[n] / budget_tokens) for n in names}


def implied_epochs(
    weights: Mapping[str, float], available_tokens: Mapping[str, float], budget_tokens: float
) -> dict[str, float]:
    """How many times each source would be read: weight * budget / available."""
    epochs = {}
    for name, weight in weights.items():
        if weight == 0:
            epochs[name] = 0.0
        else:
            if not available_tokens[name] > 0:
                raise RecipeError(
                    f"Source {name!r} has weight {weight:.4g} but no tokens",
                    where=name,
                    remedy="Give it text, or the weight 0",
                )
            epochs[name] = weight * budget_tokens / available_tokens[name]
    return epochs


def _water_fill(weights: Mapping[str, float], bounds: Bounds, total: float) -> dict[str, float]:
    """clip(mu * t_j, l_j, c_j) that sums to `total`: mu is found between two sorted break points, exactly."""
    names = sorted(weights)
    # Relative weights: products with mu then neither overflow nor vanish for weights of any size.
    largest = max(weights.values(), default=1.0)
    t = {n: weights[n] / largest for n in names}

    def filled(mu: float) -> dict[str, float]:
        return {n: min(max(mu * t[n], bounds.low[n]), bounds.high[n]) for n in names}

    breaks = sorted({b / t[n] for n in names for b in (bounds.low[n], bounds.high[n])})
    lower, upper = 0, len(breaks) - 1
    if not names:
        return {}
    while upper - lower > 1:
        middle = (lower + upper) // 2
        if math.fsum(filled(breaks[middle]).values()) <= total:
            lower = middle
        else:
            upper = middle
    at_low, at_high = (math.fsum(filled(breaks[i]).values()) for i in (lower, upper))
    share = 0.0 if at_high <= at_low else min(max((total - at_low) / (at_high - at_low), 0.0), 1.0)
    return filled(breaks[lower] + share * (breaks[upper] - breaks[lower]))


def _check_weights(weights: Mapping[str, float]) -> None:
    if not weights:
        raise RecipeError(
            "A mixture needs at least one source", where="weights", remedy="Name the sources to mix"
        )
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise RecipeError(
                f"The weight of source {name!r} is {weight}",
                where=name,
                remedy="Weights are finite and not negative",
            )
    if not any(weight > 0 for weight in weights.values()):
        raise RecipeError(
            "All weights are zero", where="weights", remedy="Give at least one source a positive weight"
        )


def _check_shares(names: list[str], **kinds: Mapping[str, float]) -> None:
    for kind, shares in kinds.items():
        for name, share in shares.items():
            if name not in names:
                raise RecipeError(
                    f"The {kind} share names source {name!r}, which is not in the mixture",
                    where=kind,
                    remedy=_did_you_mean(name, names),
                )
            if not 0 <= share <= 1:
                raise RecipeError(
                    f"The {kind} share of source {name!r} is {share:g}",
                    where=kind,
                    remedy="Shares lie between 0 and 1",
                )


def _too_little(
    names: list[str],
    high: Mapping[str, float],
    caps: Mapping[str, float],
    budget_tokens: float,
    max_epochs: float | None,
    most: float,
) -> str:
    missing = (1 - most) * budget_tokens
    limits = "; ".join(
        f"{n}: {high[n] * budget_tokens:,.0f}"
        + (" (its text)" if caps[n] <= high[n] else " (its maximum share)")
        for n in names
    )
    read = f" read at most {max_epochs:g} times" if max_epochs is not None else ""
    return (
        f"The sources{read} give {most * budget_tokens:,.0f} of the {budget_tokens:,.0f} tokens "
        "of the budget: "
        f"{missing:,.0f} tokens are missing. At most, in tokens: {limits}"
    )


def _advice(names: list[str], high: Mapping[str, float]) -> dict[str, str]:
    return {
        "where": _listed(n for n in names if high[n] < 1),
        "remedy": "Lower the budget, allow more epochs, raise the maximum shares, or add text",
    }


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known sources: {', '.join(known)}"
