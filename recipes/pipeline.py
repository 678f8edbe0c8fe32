"""Stages and the run folder: what ran is not run again, what was killed continues, and nothing is half there.

A stage owns one folder of the run. Its `stage.json` holds a key, the hash of the stage's settings, of the outputs
of the stages it reads, and of the versions that decide its arithmetic. Same key and status `done`: nothing to do.
Same key and status `running`: it was killed, and continues in its folder. Another key: the folder is emptied first.
"""

from __future__ import annotations

import contextlib
import fcntl
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from curation.atomic import hash_file, hash_value, read_json, write_json, writing_to
from curation.errors import DataError, MachineError
from recipes.schema import Recipe

VERSIONED = ("mixwright", "torch", "transformers", "tokenizers", "numpy")
"""Packages whose versions are part of every stage's key."""


@dataclass(frozen=True)
class Run:
    """A recipe bound to its folder."""

    recipe: Recipe
    recipe_file: Path
    folder: Path
    workers: int

    def path(self, *parts: str) -> Path:
        """A path inside the run folder."""
        return self.folder.joinpath(*parts)


@dataclass(frozen=True)
class Spent:
    """What a stage did, for the ledger: floating-point operations and tokens through a model."""

    flops: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    name     : also the argument of `mixwright stage`
    folder   : the folder of the run that the stage owns
    needs    : names of the stages whose outputs it reads
    settings : the part of the recipe that decides its result (a JSON-able value)
    outputs  : globs, relative to the folder, of the files that are the result; equal inputs give equal bytes
    work     : does the work; safe to call again in the folder of a killed attempt
    check    : raises what would stop the stage and can be known before anything has run, such as a missing key
    about    : one line for people who watch
    estimate : what `mixwright plan` expects it to spend
    parallel : whether the estimate is divided among the workers
    fixed_seconds : what `mixwright plan` adds for work that is not arithmetic
    """

    name: str
    folder: str
    needs: tuple[str, ...]
    settings: Callable[[Recipe], Any]
    outputs: tuple[str, ...]
    work: Callable[[Run], Spent]
    about: str = ""
    check: Callable[[Run], None] = field(default=lambda run: None)
    estimate: Callable[[Recipe], Spent] = field(default=lambda recipe: Spent())
    parallel: bool = False
    fixed_seconds: float = 0.0


def read_stage_record(run: Run, stage: Stage) -> dict[str, Any] | None:
    """The stage's `stage.json`, or None when there is none that can be read."""
    try:
        return dict(read_json(run.path(stage.folder, "stage.json")))
    except (OSError, ValueError):
        return None


def stage_key(run: Run, stage: Stage, stages: dict[str, Stage]) -> str:
    """Hash of everything that decides the stage's result."""
    inputs = {name: (read_stage_record(run, stages[name]) or {}).get("outputs", {}) for name in stage.needs}
    return hash_value(
        [stage.name, stage.settings(run.recipe), inputs, {name: version(name) for name in VERSIONED}]
    )


def is_done(run: Run, stage: Stage, stages: dict[str, Stage]) -> bool:
    """Whether the stage's result is there and was made from today's settings and inputs."""
    record = read_stage_record(run, stage)
    if record is None or record.get("status") != "done" or record.get("key") != stage_key(run, stage, stages):
        return False
    return all(run.path(stage.folder, name).is_file() for name in record["outputs"])


def run_stage(run: Run, stage: Stage, stages: dict[str, Stage]) -> bool:
    """Run or continue one stage; False when there was nothing to do."""
    if is_done(run, stage, stages):
        return False
    folder, key = run.path(stage.folder), stage_key(run, stage, stages)
    previous = read_stage_record(run, stage)
    if previous is None or previous.get("key") != key:
        _clear(folder)
        previous = None
    record: dict[str, Any] = {
        "stage": stage.name,
        "status": "running",
        "key": key,
        "settings": stage.settings(run.recipe),
        "inputs": {
            name: (read_stage_record(run, stages[name]) or {}).get("outputs", {}) for name in stage.needs
        },
        "versions": {name: version(name) for name in VERSIONED},
        "seed": run.recipe.seed,
        "started": _now() if previous is None else previous["started"],
        "attempts": 1 if previous is None else previous["attempts"] + 1,
    }
    write_json(folder / "stage.json", record)
    clock, cpu = time.monotonic(), _cpu_seconds()
    spent = stage.work(run)
    record |= {
        "status": "done",
        "finished": _now(),
        "wall_seconds": round(time.monotonic() - clock, 3),
        "cpu_seconds": round(_cpu_seconds() - cpu, 3),
        "flops": spent.flops,
        "tokens": spent.tokens,
        "outputs": _hash_outputs(folder, stage),
    }
    write_json(folder / "stage.json", record)
    return True


def verify(run: Run, stages: dict[str, Stage]) -> list[str]:
    """Sentences for every result of the run whose bytes are not those its `stage.json` records."""
    problems = []
    for stage in stages.values():
        record = read_stage_record(run, stage)
        if record is None or record.get("status") != "done":
            problems.append(f"{stage.name}: not finished")
            continue
        for name, expected in record["outputs"].items():
            path = run.path(stage.folder, name)
            if not path.is_file():
                problems.append(f"{stage.name}: {stage.folder}/{name} is missing")
            elif hash_file(path) != expected:
                problems.append(f"{stage.name}: {stage.folder}/{name} has changed since it was written")
    return problems


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a run folder; the lock goes with the process, however that ends."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MachineError(
                "Another mixwright process works in this run folder",
                where=str(folder),
                remedy="Wait for it, stop it, or choose another folder with --out",
            ) from None
        yield
    finally:
        handle.close()


def _hash_outputs(folder: Path, stage: Stage) -> dict[str, str]:
    found = {
        path.relative_to(folder).as_posix(): hash_file(path)
        for pattern in stage.outputs
        for path in sorted(folder.glob(pattern))
        if path.is_file() and path != folder / "stage.json"
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    if not found:
        raise DataError(
            f"The stage `{stage.name}` left no result",
            where=str(folder),
            remedy="Report this with the stage's log",
        )
    return found


def _clear(folder: Path) -> None:
    with writing_to(folder):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)


def _cpu_seconds() -> float:
    """Seconds of processor time of this process and of its finished children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
