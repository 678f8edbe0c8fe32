"""A mixture: the share of tokens of every source, with what it rests on; `mixture.json`.

Equal mixtures give equal bytes: keys are sorted, floats are written with all their digits, and there is no
time in it.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curation.atomic import write_json
from curation.errors import DataError, RecipeError
from mixing.evidence import Evidence, evidence_from, evidence_json
from mixing.projection import epoch_caps, implied_epochs, project

SCHEMA = 1
UNIT = "tokens"
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Mixture:
    """Weights of sources as shares of training tokens.

    weights       : by source, non-negative, sum 1
    intervals     : (low, high) by source at level 0.9, or None when the method gives none
    method        : name of the method that found them
    budget_tokens : number of training tokens they were found for, None when unknown
    epochs        : times each source would be read at that budget, None when unknown
    caps          : greatest share that each source was allowed, None when there was no limit
    seed          : seed of the method's own random numbers
    inputs        : names and hashes of what the weights were computed from
    notes         : sentences that belong beside the weights wherever they are shown
    evidence      : predictions, probabilities, verdict and costs, None when nobody worked them out
    """

    weights: dict[str, float]
    intervals: dict[str, tuple[float, float]] | None = None
    method: str = "given"
    budget_tokens: int | None = None
    epochs: dict[str, float] | None = None
    caps: dict[str, float] | None = None
    seed: int = 0
    inputs: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        check_weights(self.weights, where=f"mixture {self.method!r}")
        for table in (self.intervals, self.epochs, self.caps):
            if table is not None and set(table) != set(self.weights):
                odd = sorted(set(table) ^ set(self.weights))
                raise DataError(
                    f"Intervals, epochs, caps and weights name different sources, such as {odd[0]!r}"
                )

    def check_sources(self, known: Collection[str], where: str = "mixture") -> None:
        """Raise RecipeError when the mixture gives weight to a source that is not among the known ones."""
        for name in sorted(self.weights):
            if name not in known:
                near = difflib.get_close_matches(name, sorted(known), n=1)
                raise RecipeError(
                    f"The mixture names source {name!r}, which is not there",
                    where=where,
                    remedy=f"Did you mean {near[0]!r}?"
                    if near
                    else f"Known sources: {', '.join(sorted(known))}",
                )


def check_weights(weights: Mapping[str, float], *, where: str) -> None:
    """Raise RecipeError unless the weights are finite, not negative and sum to 1 (to 1e-6)."""
    if not weights:
        raise RecipeError(
            "A mixture needs at least one source", where=where, remedy="Name the sources to mix"
        )
    for name, weight in weights.items():
        if not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
            raise RecipeError(
                f"The weight of source {name!r} is {weight}",
                where=where,
                remedy="Weights are finite and not negative",
            )
    total = math.fsum(weights.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise RecipeError(
            f"The weights sum to {total:.6g}, not to 1", where=where, remedy="Divide each weight by their sum"
        )


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights divided by their sum."""
    total = math.fsum(weights.values())
    if not math.isfinite(total) or total <= 0:
        raise RecipeError("The weights have no positive sum", where="weights", remedy="Give positive weights")
    return {name: weight / total for name, weight in weights.items()}


def make_mixture(
    proposal: Mapping[str, float],
    *,
    method: str,
    available_tokens: Mapping[str, float] | None = None,
    budget_tokens: int | None = None,
    max_epochs: float | None = None,
    minimum: Mapping[str, float] | None = None,
    maximum: Mapping[str, float] | None = None,
    fixed: Mapping[str, float] | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    seed: int = 0,
    inputs: Mapping[str, str] | None = None,
    notes: tuple[str, ...] = (),
) -> Mixture:
    """Project a method's weights onto what the data and the user allow, and record what that implies.

    Intervals are those of the proposal, cut to the caps. A source whose weight the projection changed by more
    than .001 is named in the notes. Raises RecipeError when no mixture fits (`mixing.projection`).
    """
    limited = max_epochs is not None
    if limited and (budget_tokens is None or available_tokens is None):
        raise RecipeError(
            "A limit on epochs needs a budget in tokens, and the tokens that each source has",
            where="max_epochs",
            remedy="Give budget_tokens and available_tokens, or no limit",
        )
    # A solver may leave -1e-18; anything more negative is refused by the projection.
    wanted = normalised({n: 0.0 if -1e-9 < w < 0 else float(w) for n, w in proposal.items()})
    weights = project(
        wanted,
        available_tokens=available_tokens,
        budget_tokens=budget_tokens or 1,
        max_epochs=max_epochs,
        minimum=minimum,
        maximum=maximum,
        fixed=fixed,
    )
    moved = [n for n in sorted(weights) if abs(weights[n] - wanted[n]) > 1e-3]
    if moved:
        changes = ", ".join(f"{n} {wanted[n]:.3f} to {weights[n]:.3f}" for n in moved)
        notes = (*notes, f"The limits on epochs and shares moved these weights: {changes}")
    caps = epoch_caps(weights, available_tokens, budget_tokens or 1, max_epochs) if limited else None
    epochs = None
    if available_tokens is not None and budget_tokens is not None:
        epochs = implied_epochs(weights, available_tokens, budget_tokens)
    cut = None
    if intervals is not None:
        top = caps or dict.fromkeys(weights, 1.0)
        cut = {n: (min(intervals[n][0], top[n]), min(intervals[n][1], top[n])) for n in weights}
    return Mixture(
        weights=weights,
        intervals=cut,
        method=method,
        budget_tokens=budget_tokens,
        epochs=epochs,
        caps=caps,
        seed=seed,
        inputs=dict(inputs or {}),
        notes=notes,
    )


def write_mixture(path: Path | str, mixture: Mixture) -> None:
    """Write `mixture.json`, atomically and with the same bytes for the same mixture."""
    write_json(path, mixture_json(mixture))


def mixture_json(mixture: Mixture) -> dict[str, Any]:
    """The content of `mixture.json`."""
    value: dict[str, Any] = {
        "schema": SCHEMA,
        "unit": UNIT,
        "weights": mixture.weights,
        "intervals": None
        if mixture.intervals is None
        else {name: list(interval) for name, interval in mixture.intervals.items()},
        "method": mixture.method,
        "budget_tokens": mixture.budget_tokens,
        "epochs": mixture.epochs,
        "caps": mixture.caps,
        "seed": mixture.seed,
        "inputs": mixture.inputs,
        "notes": list(mixture.notes),
    }
    if mixture.evidence is not None:
        value["evidence"] = evidence_json(mixture.evidence)
    return value


def read_mixture(path: Path | str) -> Mixture:
    """Read `mixture.json`; a hand-written file with nothing but `{"weights": {...}}` is a mixture too.

    Raises DataError when the file is missing or is not a mixture, RecipeError when its weights do not sum to
    1.
    """
    where = str(path)
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"The mixture cannot be read: {error.strerror}", where=where, remedy="Check the path"
        ) from error
    except ValueError as error:
        raise DataError(
            f"The mixture is not valid JSON: {error}", where=where, remedy="Mend the file or write it again"
        ) from error
    if not isinstance(value, dict) or not isinstance(value.get("weights"), dict):
        raise DataError(
            "The file holds no mixture",
            where=where,
            remedy='It needs {"weights": {"<source>": <share>, ...}}',
        )
    if value.get("schema", SCHEMA) != SCHEMA:
        raise DataError(
            f"The mixture has schema {value['schema']}; this version reads schema {SCHEMA}",
            where=where,
            remedy="Write it again with this version of mixwright",
        )
    if value.get("unit", UNIT) != UNIT:
        raise DataError(
            f"The mixture counts {value['unit']}; weights here are shares of tokens",
            where=where,
            remedy=(
                "Convert it (documents to tokens: multiply each weight by the source's mean "
                "tokens per document)"
            ),
        )
    check_weights(value["weights"], where=where)
    intervals = value.get("intervals")
    return Mixture(
        weights={str(n): float(w) for n, w in value["weights"].items()},
        intervals=None
        if intervals is None
        else {n: (float(i[0]), float(i[1])) for n, i in intervals.items()},
        method=str(value.get("method", "given")),
        budget_tokens=value.get("budget_tokens"),
        epochs=value.get("epochs"),
        caps=value.get("caps"),
        seed=int(value.get("seed", 0)),
        inputs=dict(value.get("inputs", {})),
        notes=tuple(value.get("notes", ())),
        evidence=_read_evidence(value.get("evidence"), where),
    )


def _read_evidence(value: Any, where: str) -> Evidence | None:
    if value is None:
        return None
    try:
        return evidence_from(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"The evidence of the mixture cannot be read: {type(error).__name__} {error}",
            where=where,
            remedy="Remove it from the file, or fit the mixture again",
        ) from error
