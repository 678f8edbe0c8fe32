"""Influence at one checkpoint, in parts: whatever is finished survives a kill, and any process may make any part.

The work on a checkpoint has a folder of its own, named by a hash of model, probes, samples and settings:

    directions/<capability>.safetensors, directions.json   the probe directions, made once
    pilot.json                                             the engine that was chosen, and how well it agrees
    parts/<hash of the units>.npy                          tokens read, then targets and k benefits of each unit

From these the tables `<reference>-<capability>-step-<N>.parquet` with the columns `document, source, capability,
reference, checkpoint, tokens, benefit` are put together in the order of the units, so their bytes do not depend
on the number of processes. How a table was made stands in its metadata and in the `.json` beside it, which is
written last. A table whose inputs and settings have not changed is not made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from curation.atomic import hash_file, hash_value, read_json, replacing, write_json, writing_to
from curation.errors import DataError, RecipeError
from mixing.influence.adapters import adapt
from mixing.influence.averaged_gradients import FORWARDS, averaged_benefits
from mixing.influence.directions import Direction, load_adam_moments, probe_directions
from mixing.influence.documents import SampleDocument, Tokenized
from mixing.influence.loading import hash_reference, load_reference
from mixing.influence.prepared import PreparedScorer
from mixing.influence.samples import SampleStore, documents_hash, spread_over
from mixing.influence.score import BENEFIT_SCHEMA
from mixing.influence.settings import InfluenceSettings
from mixing.influence.units import Units, make_units

PILOT_RESERVE = 64  # documents beside the pilot that engines may learn from
METADATA = b"mixwright"  # key of the record in a table's schema


@dataclass(frozen=True)
class CheckpointJob:
    """One checkpoint and the capabilities whose probes it is asked about.

    checkpoint : a folder `step-N` of the trainer (model.safetensors, optimizer.safetensors, state.json), a Hugging
                 Face folder of a causal model, or a name on the hub
    reference  : the name of the reference model: "domain" for the domain models of the paper, which give each
                 checkpoint one capability; "uniform" for a proxy on the uniform mixture, which gives all of
                 them
    """

    checkpoint: Path | str
    reference: str
    step: int
    capabilities: tuple[str, ...]

    def file(self, out: Path, capability: str) -> Path:
        """Where the benefits for `capability` go."""
        return out / f"{self.reference}-{capability}-step-{self.step}.parquet"


@dataclass(frozen=True)
class CheckpointWork:
    """One checkpoint's share of a run: plain data that travels to workers.

    folder      : where its directions, pilot and parts are kept
    fingerprint : of everything that the numbers depend on
    """

    job: CheckpointJob
    probes: dict[str, list[SampleDocument]]
    store: SampleStore
    folder: Path
    settings: InfluenceSettings
    fingerprint: str

    def part(self, units: np.ndarray) -> Path:
        """The file of the scores of `units`."""
        name = hashlib.sha256(np.ascontiguousarray(units, dtype=np.int64).tobytes()).hexdigest()[:24]
        return self.folder / "parts" / f"{name}.npy"


def make_work(
    job: CheckpointJob,
    probes: Mapping[str, Sequence[Tokenized]],
    store: SampleStore,
    out: Path,
    settings: InfluenceSettings,
) -> CheckpointWork:
    """The work of `job`, whose parts go below `out/.work`.

    Raises RecipeError for a capability without a probe, DataError when a probe document is also a sample.
    """
    wanted = {c: plain(probes[c]) for c in job.capabilities if c in probes}
    missing = sorted(set(job.capabilities) - set(wanted))
    if missing:
        raise RecipeError(
            f"There is no probe set for the capability {missing[0]!r}",
            where="influence",
            remedy=f"Give one, or choose among {', '.join(sorted(probes)) or 'none'}",
        )
    inputs: dict[str, Any] = {
        "model": hash_reference(job.checkpoint),
        "job": [job.reference, job.step, job.capabilities],
        "probes": {c: documents_hash(d) for c, d in wanted.items()},
        "samples": store.hash,
        "settings": asdict(settings),
    }
    optimizer = Path(job.checkpoint) / "optimizer.safetensors"
    if settings.preconditioner == "adam" and optimizer.is_file():
        inputs["optimizer"] = hash_file(optimizer)
    fingerprint = hash_value(inputs)
    return CheckpointWork(job, wanted, store, out / ".work" / fingerprint[:24], settings, fingerprint)


def plain(documents: Sequence[Tokenized]) -> list[SampleDocument]:
    """Records that pickle without what they came from (memory maps, texts)."""
    return [SampleDocument(d.id, d.source, np.asarray(d.ids, dtype=np.int32)) for d in documents]


def check_held_out(probes: Mapping[str, Sequence[Tokenized]], store: SampleStore) -> None:
    """DataError that names a document which is both probe and sample: it would praise itself."""
    for capability, documents in probes.items():
        both = store.shared(d.id for d in documents)
        if both:
            raise DataError(
                f"{len(both)} documents are both probes and samples, among them {both[0]!r}",
                where=f"probe {capability}",
                remedy="Leave the probe documents out of the samples",
            )


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
def locked(folder: Path) -> Iterator[None]:
    """Within the block no other process of this machine is in such a block of the same folder."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread within the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read_part(work: CheckpointWork, units: np.ndarray) -> np.ndarray:
    """The scores of a part: float64 [n, 2 + k], tokens read, targets, benefits."""
    return np.load(work.part(units), allow_pickle=False)


def assemble(work: CheckpointWork, parts: Sequence[np.ndarray], out: Path) -> list[Path]:
    """The tables of a checkpoint from its parts, one per capability, written part by part."""
    units = make_units(work.store, work.settings.group_documents, work.settings.seed)
    record = work_record(work, parts)
    files = []
    for at, capability in enumerate(work.job.capabilities):
        file = work.job.file(out, capability)
        own = {**record, "direction": record["directions"][capability], "capability": capability}
        own.pop("directions")
        tables = (partial(part_table, work, units, part, [(at, capability)]) for part in parts)
        write_benefits(file, (make() for make in tables), own)
        files.append(file)
    return files


def part_table(
    work: CheckpointWork, units: Units, part: np.ndarray, wanted: Sequence[tuple[int, str]]
) -> pa.Table:
    """Rows of `BENEFIT_SCHEMA` for one part, for the given capabilities (position, name)."""
    values = read_part(work, part)
    names = [units.name(int(u)) for u in part]
    tables = []
    for at, capability in wanted:
        columns: list[Any] = [
            [name for name, _ in names],
            [source for _, source in names],
            [capability] * len(names),
            [work.job.reference] * len(names),
            [work.job.step] * len(names),
            values[:, 1].astype(np.int64),
            values[:, 2 + at],
        ]
        arrays = [pa.array(c, t) for c, t in zip(columns, BENEFIT_SCHEMA.types, strict=True)]
        tables.append(pa.table(arrays, schema=BENEFIT_SCHEMA))
    return pa.concat_tables(tables)


def work_record(work: CheckpointWork, parts: Sequence[np.ndarray]) -> dict[str, Any]:
    """How the scores of a checkpoint were made and what they cost, for the metadata of its tables."""
    pilot, directions = read_json(work.folder / "pilot.json"), read_json(work.folder / "directions.json")
    read = sum(float(read_part(work, part)[:, 0].sum()) for part in parts)
    made = sum(d["forward_tokens"] for d in directions.values())
    forward_tokens = pilot["forwards_per_token"] * read + pilot["pilot_forward_tokens"] + made
    whole = work.settings.windows == "all"
    cut = 0 if whole else int((work.store.lengths > pilot["context"] + 1).sum())
    return {
        **pilot,
        "directions": {
            n: {k: v for k, v in d.items() if k != "forward_tokens"} for n, d in directions.items()
        },
        "reduction": work.settings.reduction,
        "windows": work.settings.windows,
        "documents": sum(len(part) for part in parts),
        "documents_cut": cut,
        "tokens_read": read,
        "forward_tokens": forward_tokens,
        "flops": 2.0 * pilot["parameters"] * forward_tokens,
        "capabilities_scored_together": list(work.job.capabilities),
        "checkpoint": Path(work.job.checkpoint).name,
        "reference": work.job.reference,
        "step": work.job.step,
        "settings": asdict(work.settings),
        "inputs": work.fingerprint,
        "notes": pilot["notes"] + work.store.notes + _cut_note(work, pilot["context"], cut),
    }


def write_benefits(file: Path, tables: Iterable[pa.Table], record: Mapping[str, Any]) -> None:
    """The parquet file, its record in the schema's metadata, and then, as the sign that it is whole, the JSON
    beside it."""
    schema = BENEFIT_SCHEMA.with_metadata({METADATA: json.dumps(record, sort_keys=True)})
    with replacing(file) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(schema))
    write_json(file.with_suffix(".json"), {**record, "table": hash_file(file)})


def read_record(file: Path | str) -> dict[str, Any]:
    """How a table was made, from the table itself."""
    metadata = pq.read_schema(file).metadata or {}
    if METADATA not in metadata:
        raise DataError(
            "The table does not say how it was made",
            where=str(file),
            remedy="Give a table that mixwright influence has written",
        )
    return json.loads(metadata[METADATA])


def read_benefits(files: Iterable[Path]) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The rows of several files as one table, and the pilot agreement of each."""
    tables, pilots = [], []
    for file in files:
        tables.append(pq.read_table(file).cast(BENEFIT_SCHEMA))
        pilots.append({"file": Path(file).name, **(read_record(file)["pilot"] or {})})
    if not tables:
        raise DataError(
            "There are no influence files", where="influence", remedy="Score some checkpoints first"
        )
    return pa.concat_tables(tables), pilots


def finished(work: CheckpointWork, out: Path) -> bool:
    """Whether all tables of a checkpoint are there and were made from today's inputs."""

    def whole(file: Path) -> bool:
        beside = file.with_suffix(".json")
        return file.is_file() and beside.is_file() and read_json(beside).get("inputs") == work.fingerprint

    return all(whole(work.job.file(out, capability)) for capability in work.job.capabilities)


def _cut_note(work: CheckpointWork, context: int, cut: int) -> list[str]:
    """What the reader should know about documents that are longer than a row."""
    if not cut:
        return []
    why = (
        "the model has positions for no more" if context < work.settings.context else "the context asked for"
    )
    return [
        f"{cut} of {len(work.store)} documents are longer than {context} tokens ({why}): of those only the first "
        f'{context} are scored and counted (windows "all" reads them in pieces)'
    ]
