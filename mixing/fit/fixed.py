"""Mixtures that need no proxy run: uniform, proportional, temperature, UniMax."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from curation.errors import RecipeError
from mixing.mixture import normalised
from mixing.projection import project


def uniform_weights(sources: Iterable[str]) -> dict[str, float]:
    """The same share for every source: a hard baseline (Aioli: no method beat it consistently)."""
    names = list(sources)
    return {name: 1 / len(names) for name in names}


def temperature_weights(available_tokens: Mapping[str, float], temperature: float) -> dict[str, float]:
    """w_j proportional to n_j ** temperature: 1 is proportional to size, 0 is uniform, .3 to .7 are usual.

    Example: sizes 1 and 16 at temperature .5 give shares 1/5 and 4/5.
    """
    for name, tokens in available_tokens.items():
        if not tokens > 0:
            raise RecipeError(
                f"Source {name!r} has {tokens:g} tokens, so its share cannot follow its size",
                where=name,
                remedy="Leave the source out, or give its tokens",
            )
    largest = max(available_tokens.values())
    return normalised({n: (tokens / largest) ** temperature for n, tokens in available_tokens.items()})


def unimax_weights(
    available_tokens: Mapping[str, float], budget_tokens: float, max_epochs: float
) -> dict[str, float]:
    """UniMax (Chung et al., 2023): as near to uniform as `max_epochs` passes over each source allow.

    Its loop over the sources by size is water filling of the uniform mixture, so it is our projection of
    uniform.
    Example: sizes 10, 100, 100 with a budget of 100 and 1 epoch: .1, .45, .45.
    """
    return project(
        uniform_weights(available_tokens),
        available_tokens=available_tokens,
        budget_tokens=budget_tokens,
        max_epochs=max_epochs,
    )
