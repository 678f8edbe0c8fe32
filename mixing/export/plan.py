"""What an export needs beyond the weights, and the arithmetic of units: tokens, sequences, documents.

Our weights are shares of tokens. A trainer that draws sequences of one length takes them as they are; one
that draws documents needs shares of documents, p ∝ w / (mean tokens per document). Counts are whole numbers
by largest remainders (Hamilton), so that no source is more than one sequence or document from its share.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from curation.errors import RecipeError
from mixing.mixture import Mixture


@dataclass(frozen=True)
class ExportPlan:
    """Facts about the training run that the weights are for.

    paths               : by source, where the other trainer finds its data; a source without one gets a
                          placeholder that the notes name
    budget_tokens       : tokens to train on; None takes the mixture's own
    sequence_length     : tokens of a training sequence
    batch_tokens        : tokens of a global batch
    seed                : seed of the other trainer's order
    available_tokens    : by source, tokens there are; None derives them from the mixture's epochs, if it has them
    tokens_per_document : by source, mean; needed by formats that count documents
    """

    paths: Mapping[str, str] = field(default_factory=dict)
    budget_tokens: int | None = None
    sequence_length: int = 2048
    batch_tokens: int | None = None
    seed: int = 0
    available_tokens: Mapping[str, float] | None = None
    tokens_per_document: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Share:
    """One source of an export: its share of tokens, path, tokens of the budget, epochs (None: not known)."""

    source: str
    weight: float
    path: str
    tokens: int | None
    epochs: float | None


def shares(mixture: Mixture, plan: ExportPlan) -> tuple[list[Share], tuple[str, ...]]:
    """The sources that have weight, by name, and what must be said about them.

    A source of weight zero is left out, since several trainers refuse it. Tokens are whole sequences.
    Raises RecipeError for names that the mixture does not have, and for settings out of range.
    """
    for table, what in (
        (plan.paths, "paths"),
        (plan.available_tokens or {}, "available_tokens"),
        (plan.tokens_per_document or {}, "tokens_per_document"),
    ):
        _check_names(table, mixture, what)
    if plan.sequence_length < 1:
        raise RecipeError(
            f"The sequence length is {plan.sequence_length}",
            where="sequence_length",
            remedy="Give a positive number of tokens",
        )
    names = [name for name in sorted(mixture.weights) if mixture.weights[name] > 0]
    budget = plan.budget_tokens if plan.budget_tokens is not None else mixture.budget_tokens
    tokens: dict[str, int] = {}
    if budget is not None:
        sequences = budget // plan.sequence_length
        if sequences < 1:
            raise RecipeError(
                f"A budget of {budget} tokens holds no sequence of {plan.sequence_length}",
                where="budget_tokens",
                remedy="Give a larger budget or a shorter sequence",
            )
        counts = largest_remainder({name: mixture.weights[name] for name in names}, sequences)
        tokens = {name: count * plan.sequence_length for name, count in counts.items()}
    available = plan.available_tokens or derived_tokens(mixture)
    notes = []
    left_out = [name for name in sorted(mixture.weights) if mixture.weights[name] == 0]
    if left_out:
        notes.append(f"Left out, since their weight is zero: {', '.join(left_out)}")
    unplaced = [name for name in names if name not in plan.paths]
    if unplaced:
        notes.append(f"Nobody said where these are, so the paths are placeholders: {', '.join(unplaced)}")
    return [
        Share(
            source=name,
            weight=mixture.weights[name],
            path=plan.paths.get(name, f"PATH/TO/{_plain(name)}"),
            tokens=tokens.get(name),
            epochs=tokens[name] / available[name] if name in tokens and available.get(name) else None,
        )
        for name in names
    ], tuple(notes)


def derived_tokens(mixture: Mixture) -> dict[str, float]:
    """Tokens of each source that the mixture's epochs imply (weight × budget ÷ epochs), where they do."""
    if mixture.epochs is None or mixture.budget_tokens is None:
        return {}
    return {
        name: mixture.weights[name] * mixture.budget_tokens / epochs
        for name, epochs in mixture.epochs.items()
        if epochs > 0
    }


def document_probabilities(rows: list[Share], plan: ExportPlan) -> dict[str, float]:
    """Shares of documents that give the wanted shares of tokens: p ∝ w / (mean tokens per document).

    >>> rows = [Share("short", 0.5, "s", None, None), Share("long", 0.5, "l", None, None)]
    >>> document_probabilities(rows, ExportPlan(tokens_per_document={"short": 100, "long": 300}))
    {'short': 0.75, 'long': 0.25}
    """
    means = plan.tokens_per_document or {}
    for row in rows:
        mean = means.get(row.source)
        if mean is None:
            raise RecipeError(
                f"This format counts documents, and nobody said how long those of {row.source!r} are",
                where="tokens_per_document",
                remedy="Give the mean number of tokens in a document for each source",
            )
        if not math.isfinite(mean) or mean <= 0:
            raise RecipeError(
                f"Documents of {row.source!r} cannot have {mean} tokens on average",
                where="tokens_per_document",
                remedy="Give a positive number",
            )
    parts = {row.source: row.weight / means[row.source] for row in rows}
    total = math.fsum(parts.values())
    return {name: part / total for name, part in parts.items()}


def largest_remainder(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers that sum to `total` and are each less than 1 from weight × total (Hamilton's method).

    >>> largest_remainder({"a": 0.5, "b": 0.3, "c": 0.2}, 7)
    {'a': 4, 'b': 2, 'c': 1}
    """
    whole = math.fsum(weights.values())
    exact = {name: weight / whole * total for name, weight in weights.items()}
    counts = {name: math.floor(value) for name, value in exact.items()}
    missing = total - sum(counts.values())
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[:missing]:
        counts[name] += 1
    return counts


def _check_names(table: Mapping[str, object], mixture: Mixture, what: str) -> None:
    for name in table:
        if name not in mixture.weights:
            near = difflib.get_close_matches(name, sorted(mixture.weights), n=1)
            raise RecipeError(
                f"The mixture has no source {name!r}",
                where=what,
                remedy=f"Did you mean {near[0]!r}?"
                if near
                else f"Its sources: {', '.join(sorted(mixture.weights))}",
            )


def _plain(name: str) -> str:
    """The name with everything but letters, digits, dot, dash and underscore replaced."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
