"""Proxy runs: small models trained on chosen mixtures and measured on the probes, side by side, each once.

    <run_id>/run.json                    what the run is, and a fingerprint of all that decides its numbers
    <run_id>/train/                      what `training.loop.train` writes: checkpoints, metrics.jsonl, ...
    <run_id>/evaluations/step-N.parquet  for each document: probe, id, source, tokens, bytes, nats
    <run_id>/result.json                 written last: the run is finished
    ratios.csv, metrics.csv              all finished runs of the folder, joined by run_id

Runs with one seed start from the same weights and read each source's documents in the same order, whatever
the mixture (common random numbers): differences between them are paired, which cuts their noise several
times.
"""

from __future__ import annotations

import csv
import fcntl
import io
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from curation.atomic import read_json, write_json, write_text, writing_to
from curation.errors import DataError, MachineError, RecipeError
from curation.workers import Advance, Job, run_jobs
from mixing.evaluations import ProbeSet, metric_rows, read_evaluation
from mixing.proxy import ProxyRun, ProxySettings, check_run, fingerprint_of, run_settings
from training.loop import train
from training.model import Decoder
from training.order import Batch, DataOrder, MixtureSchedule, Phase
from training.tokens import TokenSource

__all__ = [
    "ProxyResult",
    "ProxyRun",
    "ProxySettings",
    "evaluation_steps",
    "read_evaluation",
    "read_result",
    "run_proxies",
    "write_tables",
]

LOCK_SECONDS = 10.0
RATIO_COLUMNS = ("run_id", "seed", "budget_tokens")
METRIC_COLUMNS = ("run_id", "step", "probe", "bits_per_byte", "nats_per_token")


@dataclass(frozen=True)
class ProxyResult:
    """A finished run: where it is, what it cost, and its rows of metrics.csv.

    flops : training, 6 per parameter and token; evaluation_flops : forward passes over the probes
    seconds : of the updates; cpu_seconds : of the attempt that finished, all included
    """

    run: ProxyRun
    folder: Path
    steps: int
    tokens: int
    flops: float
    evaluation_flops: float
    seconds: float
    cpu_seconds: float
    metrics: tuple[dict[str, Any], ...] = field(repr=False)


def run_proxies(
    runs: Sequence[ProxyRun],
    settings: ProxySettings,
    folder: Path | str,
    *,
    workers: int = 1,
    devices: Sequence[str] = (),
    description: str = "proxy runs",
) -> list[ProxyResult]:
    """Make the runs that are not finished, `workers` at a time, and rewrite ratios.csv and metrics.csv.

    devices : where the runs train, by turns, for example ("cuda:0", "cuda:1"); with more workers than GPUs
              several processes share each, which fills it with models too small to do so alone. Empty = as
              settings.train.device says.

    A finished run of the same fingerprint is not repeated; a killed one continues from its checkpoint; one
    whose settings, data or probes have changed is deleted and made anew. Numbers do not depend on `workers`.
    Returns the results in the order of `runs`. Raises RecipeError on impossible runs, MachineError when a
    worker is lost.
    """
    folder = Path(folder)
    inputs = settings.inputs()
    prints = {run.run_id: fingerprint_of(run, settings, inputs) for run in runs}
    for run in runs:
        check_run(run, settings)
    if len(prints) != len(runs):
        double = next(r.run_id for i, r in enumerate(runs) if r.run_id in {o.run_id for o in runs[:i]})
        raise RecipeError(
            f"Two runs are called {double!r}", where=str(folder), remedy="Give each an id of its own"
        )
    waiting = [run for run in runs if not _is_finished(folder / run.run_id, prints[run.run_id])]
    jobs = [
        Job(run.run_id, _train_run, (run, _on_device(settings, devices, i), folder, prints[run.run_id]))
        for i, run in enumerate(waiting)
    ]
    run_jobs(
        jobs,
        workers=workers,
        description=description,
        total=sum(run_settings(run, settings).steps * settings.train.tokens_per_step for run in waiting),
        unit="tokens",
        on_result=lambda job, result: write_tables(folder),
    )
    write_tables(folder)
    return [read_result(folder, run.run_id) for run in runs]


def _on_device(settings: ProxySettings, devices: Sequence[str], turn: int) -> ProxySettings:
    if not devices:
        return settings
    return replace(settings, train=replace(settings.train, device=devices[turn % len(devices)]))


def read_result(folder: Path | str, run_id: str) -> ProxyResult:
    """The result of a finished run. Raises DataError when it is not finished."""
    value = _read_finished(Path(folder) / run_id / "result.json")
    run = ProxyRun(**value["run"])
    costs = {k: value[k] for k in ("steps", "tokens", "flops", "evaluation_flops", "seconds", "cpu_seconds")}
    return ProxyResult(run, Path(folder) / run_id, **costs, metrics=tuple(value["metrics"]))


def evaluation_steps(folder: Path | str, run_id: str) -> tuple[int, ...]:
    """Steps at which a finished run was evaluated, rising; the last is the end of its training."""
    return tuple(sorted({row["step"] for row in read_result(folder, run_id).metrics}))


def write_tables(folder: Path | str) -> None:
    """Write ratios.csv and metrics.csv of all finished runs of a folder, sorted by run id, atomically."""
    folder = Path(folder)
    finished = [_read_finished(path) for path in sorted(folder.glob("*/result.json"))]
    finished.sort(key=lambda value: value["run"]["run_id"])
    sources = sorted({source for value in finished for source in value["run"]["weights"]})
    reserved = sorted(set(sources) & set(RATIO_COLUMNS))
    if reserved:
        raise RecipeError(f"A source may not be called {reserved[0]!r}: ratios.csv has a column of that name")
    ratios = [
        [value["run"]["run_id"], value["run"]["seed"], value["tokens"]]
        + [repr(float(value["run"]["weights"].get(source, 0.0))) for source in sources]
        for value in finished
    ]
    metrics = [
        [row["run_id"], row["step"], row["probe"], repr(row["bits_per_byte"]), repr(row["nats_per_token"])]
        for value in finished
        for row in sorted(value["metrics"], key=lambda row: (row["step"], row["probe"]))
    ]
    write_text(folder / "ratios.csv", _csv([*RATIO_COLUMNS, *sources], ratios))
    write_text(folder / "metrics.csv", _csv(list(METRIC_COLUMNS), metrics))


# ---- in the worker -------------------------------------------------------------------------------


class _CountedOrder(DataOrder):
    """The data order, which tells how many tokens have been asked for."""

    advance: Callable[[float], None]

    def batch(self, first: int, count: int) -> Batch:
        self.advance(count * self.sequence_tokens)
        return super().batch(first, count)


def _train_run(task: tuple[ProxyRun, ProxySettings, Path, str], advance: Advance) -> None:
    run, settings, folder, fingerprint = task
    with _only_process_with(folder, run.run_id):
        _train_alone(run, settings, folder / run.run_id, fingerprint, advance)


def _train_alone(
    run: ProxyRun, settings: ProxySettings, here: Path, fingerprint: str, advance: Advance
) -> None:
    cpu = time.process_time()
    if not _same_fingerprint(here / "run.json", fingerprint):
        shutil.rmtree(here, ignore_errors=True)
        write_json(here / "run.json", {"fingerprint": fingerprint, "run": asdict(run)})
    train_settings = run_settings(run, settings)
    sources = {name: TokenSource.open(settings.tokens[name]) for name in sorted(run.weights)}
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


def _same_fingerprint(path: Path, fingerprint: str) -> bool:
    try:
        return read_json(path)["fingerprint"] == fingerprint
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_finished(folder: Path, fingerprint: str) -> bool:
    return _same_fingerprint(folder / "result.json", fingerprint)


def _read_finished(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"This run is not finished: {error}", where=str(path.parent), remedy="Run the proxy runs first"
        ) from error


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
