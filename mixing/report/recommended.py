"""Which of the compared mixtures is the recommended one: two names can share weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mixing.report.records import (
    RunFacts,
)


def uniform(sources: Iterable[str]) -> dict[str, float]:
    """Equal weights."""
    names = list(sources)
    return dict.fromkeys(names, 1 / len(names)) if names else {}


def same_weights(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    """Whether two mixtures are one, to a millionth."""
    return all(abs(a.get(name, 0.0) - b.get(name, 0.0)) < 1e-6 for name in {*a, *b})


def recommended_file(facts: RunFacts) -> str | None:
    """The name under `mixtures/` of the recommended mixture, if it is there."""
    if facts.recommended is None:
        return None
    weights = facts.recommended.weights
    given = [facts.recommendation.mixture] if facts.recommendation else []
    given += [facts.recommended.method.replace("-", "_"), *sorted(facts.mixtures)]
    same = [n for n in given if n in facts.mixtures and same_weights(facts.mixtures[n].weights, weights)]
    return same[0] if same else None


def recommended_name(facts: RunFacts) -> str | None:
    """The name of the recommended mixture in the comparison, if it was trained there; two names can share weights."""
    if facts.recommended is None or facts.comparison is None:
        return None
    compared = set(facts.comparison.mixtures) | {d.mixture for d in facts.comparison.differences}
    weights = facts.recommended.weights
    given = [facts.recommendation.mixture] if facts.recommendation else []
    given += [facts.recommended.method, facts.recommended.method.replace("-", "_")]
    same = [name for name, other in facts.comparison.mixtures.items() if same_weights(other, weights)]
    candidates = [name for name in given if name in same] + same
    if not facts.comparison.mixtures:
        candidates = [name for name in given if name in compared]
    return candidates[0] if candidates else None
