"""What a DoReMi run found, as JSON: {"weights": {source: share}, "notes": [sentences]}."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation.errors import DataError
from mixing.fit.proposal import Proposal
from mixing.mixture import check_weights


@dataclass(frozen=True)
class DoremiResult:
    """weights : time average of the domain weights; notes : what the diagnostics say, in sentences."""

    weights: dict[str, float]
    notes: tuple[str, ...] = ()


def read_doremi(path: Path | str) -> DoremiResult:
    """Read the result of a run; DataError for anything else."""
    where = str(path)
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        weights = {str(name): float(share) for name, share in value["weights"].items()}
        notes = tuple(str(note) for note in value.get("notes", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"This is not the result of a DoReMi run: {type(error).__name__} {error}",
            where=where,
            remedy='Give JSON such as {"weights": {"<source>": <share>, ...}}',
        ) from error
    check_weights(weights, where=where)
    return DoremiResult(weights, notes)


def propose_doremi(result: DoremiResult, names: tuple[str, ...]) -> Proposal:
    """The averaged weights; one run of one seed has no interval, and the notes say so."""
    note = (
        "One run of DoReMi: there is no interval; repeat it with other seeds to see how far the weights move"
    )
    return Proposal(np.array([result.weights[name] for name in names]), None, (*result.notes, note))
