"""One checkpoint's share of a scoring run: what is asked of it, the folder of its work, and whether it is finished."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.atomic import hash_file, hash_value, read_json, writing_to
from curation.errors import DataError, RecipeError
from mixing.influence.documents import SampleDocument, Tokenized
from mixing.influence.loading import hash_reference
from mixing.influence.samples import SampleStore, documents_hash
from mixing.influence.settings import InfluenceSettings


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


def finished(work: CheckpointWork, out: Path) -> bool:
    """Whether all tables of a checkpoint are there and were made from today's inputs."""

    def whole(file: Path) -> bool:
        beside = file.with_suffix(".json")
        return file.is_file() and beside.is_file() and read_json(beside).get("inputs") == work.fingerprint

    return all(whole(work.job.file(out, capability)) for capability in work.job.capabilities)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block no other process of this machine is in such a block of the same folder."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def read_part(work: CheckpointWork, units: np.ndarray) -> np.ndarray:
    """The scores of a part: float64 [n, 2 + k], tokens read, targets, benefits."""
    return np.load(work.part(units), allow_pickle=False)
