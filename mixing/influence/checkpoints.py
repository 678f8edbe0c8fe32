"""Influence at one checkpoint, in parts: whatever is finished survives a kill, and any process may make any part.

The work on a checkpoint has a folder of its own, named by a hash of model, probes, samples and settings:

    directions/<capability>.safetensors, directions.json   the probe directions, made once
    pilot.json                                             the engine that was chosen, and how well it agrees
    parts/<hash of the units>.npy                          tokens read, then targets and k benefits of each unit

From these `benefit_tables` puts the tables `<reference>-<capability>-step-<N>.parquet` with the columns `document,
source, capability, reference, checkpoint, tokens, benefit` together in the order of the units, so that their bytes
do not depend on the number of processes. How a table was made stands in its metadata and in the `.json` beside it,
which is written last. A table whose inputs and settings have not changed is not made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from curation.atomic import read_json, replacing, write_json
from mixing.influence.adapters import adapt
from mixing.influence.averaged_gradients import FORWARDS, averaged_benefits
from mixing.influence.checkpoint_work import CheckpointWork, locked
from mixing.influence.directions import Direction, load_adam_moments, probe_directions
from mixing.influence.loading import load_reference
from mixing.influence.prepared import PreparedScorer
from mixing.influence.samples import spread_over
from mixing.influence.units import make_units

PILOT_RESERVE = 64  # documents beside the pilot that engines may learn from


class OpenCheckpoint:
    """A checkpoint in memory: model, directions, and the engine that its pilot chose."""

    def __init__(self, work: CheckpointWork) -> None:
        self.work, settings = work, work.settings
        self.units = make_units(work.store, settings.group_documents, settings.seed)
        self.model = load_reference(work.job.checkpoint, device=settings.device, dtype=settings.dtype)
        with locked(work.folder):  # one process makes them, the others read them
            self.directions = self._directions()
        self.scorer: PreparedScorer | None = None
        if not (settings.group_documents or settings.cosine):
            count = settings.pilot_documents
            chosen = spread_over(work.store.numbers(), count + PILOT_RESERVE if count else 0)
            documents = [work.store[at] for at in chosen]
            longest = int(work.store.lengths.max(initial=2)) - 1
            self.scorer = PreparedScorer(self.model, self.directions, documents, longest, settings)
        with locked(work.folder):
            self._write_pilot()

    def score(self, units: np.ndarray) -> np.ndarray:
        """Tokens read [its share], targets and k benefits of each unit: float64 [n, 2 + k]."""
        settings = self.work.settings
        groups = [self.units.documents(int(u)) for u in units]
        if self.scorer is not None:
            benefit, targets, read = self.scorer.score([d for group in groups for d in group])
        else:
            benefit, targets, read = averaged_benefits(
                self.model,
                groups,
                self.directions,
                cosine=settings.cosine,
                reduction=settings.reduction,
                context=settings.context,
                windows=settings.windows,
                batch_tokens=settings.batch_tokens,
            )
        return np.column_stack([np.full(len(units), read / max(len(units), 1)), targets, benefit])

    def _directions(self) -> dict[str, Direction]:
        folder = self.work.folder / "directions"
        facts = self.work.folder / "directions.json"
        if not facts.is_file():
            made = self._make_directions()
            for name, direction in made.items():
                with replacing(folder / f"{_safe(name)}.safetensors") as temporary:
                    save_file({n: v.contiguous().cpu() for n, v in direction.vectors.items()}, temporary)
            write_json(facts, {n: {**_facts(d), **d.record()} for n, d in made.items()})
        known = read_json(facts)
        return {
            name: Direction(vectors=load_file(folder / f"{_safe(name)}.safetensors"), **_given(known[name]))
            for name in self.work.probes
        }

    def _make_directions(self) -> dict[str, Direction]:
        work, settings = self.work, self.work.settings
        curvature = spread_over(work.store.numbers(), settings.curvature_documents)
        adam = settings.preconditioner == "adam"
        return probe_directions(
            self.model,
            work.probes,
            settings.preconditioner,
            parameters=settings.parameters,  # type: ignore[arg-type]
            moments=load_adam_moments(Path(work.job.checkpoint)) if adam else None,
            curvature=[work.store[at] for at in curvature],
            damping=settings.damping,
            context=settings.context,
            batch_tokens=settings.batch_tokens,
        )

    def _write_pilot(self) -> None:
        file = self.work.folder / "pilot.json"
        if file.is_file():
            return
        if self.scorer is not None:
            record = self.scorer.record()
        else:
            record = {
                "context": adapt(self.model).context(self.work.settings.context),
                "engine": "explicit, cosine" if self.work.settings.cosine else "averaged gradients",
                "forwards_per_token": FORWARDS,
                "step_of_difference": None,
                "dtype": self.work.settings.dtype,
                "pilot": None,
                "pilot_forward_tokens": 0.0,
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "vocabulary": adapt(self.model).vocabulary,
                "notes": ["Exact gradients were made, so there is nothing for a pilot to compare with"],
            }
        write_json(file, record)


def _facts(direction: Direction) -> dict[str, Any]:
    return {"probe": direction.probe, "forward_tokens": direction.forward_tokens}


def _given(known: Mapping[str, Any]) -> dict[str, Any]:
    names = ("probe", "preconditioner", "probe_documents", "probe_tokens", "probe_loss", "forward_tokens")
    return {name: known[name] for name in names}


def _safe(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


_open: dict[str, OpenCheckpoint] = {}  # the checkpoint that this process has in memory; one at most


def open_checkpoint(work: CheckpointWork) -> OpenCheckpoint:
    """The checkpoint of `work`, kept in this process until another is opened or `close_checkpoint`."""
    key = f"{work.folder} {work.fingerprint}"
    if key not in _open:
        _open.clear()
        _open[key] = OpenCheckpoint(work)
    return _open[key]


def close_checkpoint() -> None:
    """Let go of the model in memory."""
    _open.clear()


def score_units(work: CheckpointWork, units: np.ndarray) -> Path:
    """Score `units` at the checkpoint unless their part is there; returns the part's file.

    One torch thread, so that the numbers do not depend on the machine's cores. Raises DataError for losses that
    are not finite and for tokens that the model does not have.
    """
    file = work.part(units)
    if not file.is_file():
        with one_thread():
            values = open_checkpoint(work).score(units)
        with replacing(file) as temporary, temporary.open("wb") as handle:
            np.save(handle, values)
    return file


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread within the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
