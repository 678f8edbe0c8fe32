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
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from curation.atomic import read_json, write_text
from curation.errors import DataError, RecipeError
from curation.scoring.execution import Runner
from curation.workers import Job, run_jobs
from mixing.evaluations import read_evaluation
from mixing.proxy import ProxyRun, ProxySettings, check_run, fingerprint_of, run_settings
from mixing.run_making import is_finished, make_run

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
    runner: Runner | None = None,
    description: str = "proxy runs",
) -> list[ProxyResult]:
    """Make the runs that are not finished, `workers` at a time, and rewrite ratios.csv and metrics.csv.

    devices : where the runs train, by turns, for example ("cuda:0", "cuda:1"); with more workers than GPUs
              several processes share each, which fills it with models too small to do so alone. Empty = as
              settings.train.device says.
    runner  : makes the runs on a Ray cluster or as a Slurm array instead (`curation.scoring.runners.open_runner`), a
              task for each run; `folder` and all that the settings name must be on a disk that every node sees

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
    waiting = [run for run in runs if not is_finished(folder / run.run_id, prints[run.run_id])]
    jobs = [
        Job(run.run_id, make_run, (run, _on_device(settings, devices, i), folder, prints[run.run_id]))
        for i, run in enumerate(waiting)
    ]
    total = sum(run_settings(run, settings).steps * settings.train.tokens_per_step for run in waiting)
    if runner is not None and jobs:
        from mixing.runs_elsewhere import run_elsewhere  # needs datatrove

        run_elsewhere([job.argument for job in jobs], runner, folder, description, total)
    else:
        run_jobs(
            jobs,
            workers=workers,
            description=description,
            total=total,
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
