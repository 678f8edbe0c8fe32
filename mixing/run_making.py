"""The making of one proxy run, wherever that happens; a killed one continues from its checkpoint."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from curation.atomic import read_json, write_json, writing_to
from curation.errors import MachineError
from curation.workers import Advance
from mixing.evaluations import ProbeSet, metric_rows
from mixing.proxy import ProxyRun, ProxySettings, open_sources, run_settings
from training.loop import train
from training.model import Decoder
from training.order import Batch, DataOrder, MixtureSchedule, Phase

LOCK_SECONDS = 10.0


class _CountedOrder(DataOrder):
    """The data order, which tells how many tokens have been asked for."""

    advance: Callable[[float], None]

    def batch(self, first: int, count: int) -> Batch:
        self.advance(count * self.sequence_tokens)
        return super().batch(first, count)


def make_run(task: tuple[ProxyRun, ProxySettings, Path, str], advance: Advance) -> None:
    """Make (run, settings, folder of the study, fingerprint) if it is not finished; `advance` counts tokens."""
    run, settings, folder, fingerprint = task
    with _only_process_with(folder, run.run_id):
        if not is_finished(folder / run.run_id, fingerprint):
            _train_alone(run, settings, folder / run.run_id, fingerprint, advance)


def _train_alone(
    run: ProxyRun, settings: ProxySettings, here: Path, fingerprint: str, advance: Advance
) -> None:
    cpu = time.process_time()
    if not same_fingerprint(here / "run.json", fingerprint):
        shutil.rmtree(here, ignore_errors=True)
        write_json(here / "run.json", {"fingerprint": fingerprint, "run": asdict(run)})
    train_settings = run_settings(run, settings)
    sources = open_sources(run, settings)
    phase = Phase("proxy", train_settings.steps * train_settings.batch_sequences, dict(run.weights))
    order = _CountedOrder(
        MixtureSchedule((phase,), seed=run.seed, block=settings.block),
        sources,
        train_settings.sequence_tokens,
    )
    order.advance = advance
    probes = ProbeSet.load(settings)

    def evaluate(model: Decoder, step: int) -> dict[str, float]:
        return probes.evaluate(model, here / "evaluations" / f"step-{step}.parquet")

    done = train(
        settings.model,
        order,
        train_settings,
        here / "train",
        evaluate=evaluate,
        init_from=settings.init_from,
    )
    metrics = metric_rows(here, run.run_id, train_settings.evaluate_steps)
    _clear_checkpoints(here / "train", run.keep or settings.keep)
    evaluated = sum(row.pop("tokens") for row in metrics)
    write_json(
        here / "result.json",
        {
            "schema": 1,
            "fingerprint": fingerprint,
            "run": asdict(run),
            "steps": done.steps,
            "tokens": done.tokens,
            "flops": done.flops,
            "evaluation_flops": evaluated * settings.model.flops_per_token(settings.evaluation_context) / 3,
            "seconds": done.seconds,
            "cpu_seconds": time.process_time() - cpu,
            "epochs": {name: order.epochs(name) for name in sources},
            "metrics": metrics,
        },
    )


@contextmanager
def _only_process_with(folder: Path, run_id: str) -> Iterator[None]:
    """Hold the run's lock; that of a killed study's worker is free once the kernel has buried it."""
    path = folder / f".{run_id}.lock"
    with writing_to(path):
        folder.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    with handle:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise MachineError(
                        f"Another process is making the run {run_id!r}",
                        where=str(folder),
                        remedy="Wait for it or stop it, or choose another folder",
                    ) from error
                time.sleep(0.1)
        yield


def _clear_checkpoints(train_folder: Path, keep: str) -> None:
    if keep == "none":
        shutil.rmtree(train_folder / "checkpoints", ignore_errors=True)
    elif keep == "weights":
        for file in sorted(train_folder.glob("checkpoints/*/optimizer.safetensors")):
            file.unlink()


def same_fingerprint(path: Path, fingerprint: str) -> bool:
    """Whether the JSON file at `path` is of a run with this fingerprint."""
    try:
        return read_json(path)["fingerprint"] == fingerprint
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_finished(folder: Path, fingerprint: str) -> bool:
    """Whether the run of this folder is finished and is the one that was asked for."""
    return same_fingerprint(folder / "result.json", fingerprint)
