"""What stands in the metadata of the table of `mixwright influence`: how all checkpoints were scored, and doubts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixing.influence.benefit_tables import read_record
from mixing.influence.samples import SampleStore

WORSE_THAN_GUESSING = 1.0  # nats above a uniform guess, from which the tokenizer is suspected


def checkpoint_records(files: Sequence[Path], capabilities: int) -> list[dict[str, Any]]:
    """One record for each checkpoint, from the tables of its capabilities."""
    found = []
    for at in range(0, len(files), capabilities):
        its = [read_record(file) for file in files[at : at + capabilities]]
        record = {k: v for k, v in its[0].items() if k not in ("direction", "capability")}
        found.append(record | {"directions": {r["capability"]: r["direction"] for r in its}})
    return found


def whole_record(
    inputs: str,
    records: Sequence[Mapping[str, Any]],
    sampled: Mapping[str, Any] | None,
    full_tokens: float,
    notes: Sequence[str],
    store: SampleStore,
) -> dict[str, Any]:
    """The record of the whole table: the first checkpoint's in full, what differs for all of them."""
    first = records[0]
    every = dict.fromkeys([*(n for r in records for n in r["notes"]), *notes, *_suspicions(records)])
    return {
        **first,
        "inputs": inputs,
        "pilot": _worst_pilot(records),
        "checkpoints": [
            {k: r[k] for k in ("checkpoint", "step", "engine", "pilot", "directions", "forward_tokens")}
            for r in records
        ],
        "forward_tokens": sum(r["forward_tokens"] for r in records),
        "flops": sum(r["flops"] for r in records),
        "full_forward_tokens": full_tokens,
        "sample_tokens": int(np.minimum(store.lengths, first["context"] + 1).sum() - len(store))
        if first["windows"] == "first"
        else int(store.lengths.sum() - len(store)),
        "sampled": sampled,
        "notes": list(every),
    }


def _worst_pilot(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The pilot with the least agreement within sources; None where gradients were made."""
    pilots = [r["pilot"] for r in records if r["pilot"]]
    return min(pilots, key=lambda p: (p["within_source"], p["signs_clear"])) if pilots else None


def _suspicions(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A note for a model that is worse on a probe than a guess: its tokenizer is probably another."""
    notes = []
    for record in records:
        for name, direction in record["directions"].items():
            guess = math.log(record["vocabulary"])
            if direction["probe_loss"] > guess + WORSE_THAN_GUESSING:
                notes.append(
                    f"On the probe {name} the model at step {record['step']} loses "
                    f"{direction['probe_loss']:.1f} nats, more than a guess ({guess:.1f}): is it its tokenizer?"
                )
    return notes
