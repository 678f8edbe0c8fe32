"""Bounded steps, each followed by scoring again: the density says where to move a little, not how far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from curation.errors import DataError, RecipeError
from mixing.influence.weights import same_sources, trust_region_weights

Score = Callable[[int, Mapping[str, float]], Mapping[str, float]]


@dataclass(frozen=True)
class Round:
    """One step: densities at the mixture `before`, and the mixture `after` it."""

    number: int
    before: dict[str, float]
    densities: dict[str, float]
    after: dict[str, float]
    moved: float

    def record(self) -> dict:
        """For JSON."""
        return asdict(self)


def iterate(
    current: Mapping[str, float],
    score: Score,
    *,
    step: float = 1.0,
    rounds: int = 2,
    shrink: float = 1.0,
    tolerance: float = 0.005,
    done: list[Round] | None = None,
) -> list[Round]:
    """Up to `rounds` bounded steps (`trust_region_weights`) from the mixture `current`.

    score     : (round from 0, mixture) -> density of every source at a model of that mixture. It trains such a
                model, or trains the last one on for a phase, or takes the next checkpoint, scores the samples there,
                and returns `densities(joint_benefit(...))` or those of an adaptive sample.
    step      : largest change of a log weight in the first round; round n takes step * shrink**n
    tolerance : stops when no weight moves by more than this (a share of the mixture)
    done      : rounds of a run that was stopped; it goes on after them. New rounds are appended, each as soon as it
                is over, so that the caller may keep them.
    The paper's mid-training takes two rounds. Raises DataError when `score` leaves a source out.
    """
    if step <= 0 or rounds < 1 or not 0 < shrink <= 1:
        raise RecipeError(
            f"{rounds} rounds of step {step:g} and shrinking {shrink:g} are not possible",
            where="influence.iterate",
            remedy="Give one round or more, a positive step, and a shrinking in (0, 1]",
        )
    found = done if done is not None else []
    total = sum(current.values())
    if total <= 0 or min(current.values()) < 0:
        raise DataError(
            "The mixture to start from has no positive weight, or a negative one",
            where="influence.iterate",
            remedy="Give weights of at least 0, not all 0",
        )
    mixture = {name: weight / total for name, weight in current.items()}
    if found:
        mixture = dict(found[-1].after)
    for number in range(len(found), rounds):
        if found and found[-1].moved <= tolerance:
            break
        rho = dict(score(number, mixture))
        same_sources(mixture, rho)
        after = trust_region_weights(mixture, rho, step * shrink**number)
        moved = max(abs(after[name] - mixture[name]) for name in mixture)
        found.append(Round(number, mixture, rho, after, moved))
        mixture = after
    return found
