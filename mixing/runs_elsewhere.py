"""Proxy runs on a Ray cluster or as a Slurm array: a datatrove pipeline in which each task makes one run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datatrove.pipeline.base import PipelineStep

from curation.scoring.blocks import KeepSentence, raise_kept_sentence
from curation.scoring.execution import Runner, Work
from mixing.proxy import ProxyRun, ProxySettings, run_settings
from mixing.run_making import is_finished, make_run
from training.run_log import read_rows

Task = tuple[ProxyRun, ProxySettings, Path, str]
"""What `run_making.make_run` takes: run, settings, folder of the study, fingerprint."""


class MakeRuns(PipelineStep):
    """Make the runs of this task; each is skipped when it is finished, and continues when it was killed."""

    type = "🏋 - TRAINER"
    name = "🏃 Proxy runs"

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.advance: Any = None

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        # As in our own workers: one thread, so that the numbers do not depend on the machine.
        torch.set_num_threads(1)
        for task in self.tasks[rank::world_size]:
            make_run(task, self.advance or _uncounted)
            self.stat_update("runs")
        yield from data or ()


def run_elsewhere(
    tasks: Sequence[Task], runner: Runner, folder: Path, description: str, total: float
) -> None:
    """Make the runs with a runner of `curation.scoring.runners`.

    A task that is lost (killed, out of memory, node gone) starts again as often as the runner allows, and
    continues from its last checkpoint. Raises the sentence of the first run that failed, MachineError when
    tasks were lost too often.
    """
    errors = folder / ".tasks" / "errors"
    shutil.rmtree(errors.parent, ignore_errors=True)
    errors.mkdir(parents=True)

    def missing() -> int:
        return sum(not is_finished(folder / run.run_id, print_) for run, _, _, print_ in tasks)

    work = Work(
        [MakeRuns(tasks), KeepSentence(errors)],
        name=description,
        tasks=len(tasks),
        logs=errors.parent,
        total=int(total),
        missing=missing,
        done=lambda: sum(_tokens_read(task) for task in tasks),
        failed=lambda: any(errors.glob("*.json")),
        unit="tokens",
    )
    runner.run([work])
    raise_kept_sentence(errors)
    shutil.rmtree(errors.parent, ignore_errors=True)


def _tokens_read(task: Task) -> int:
    """Tokens that a run has read so far, from its log."""
    run, settings, folder, fingerprint = task
    if is_finished(folder / run.run_id, fingerprint):
        return run_settings(run, settings).steps * settings.train.tokens_per_step
    rows = read_rows(folder / run.run_id / "train" / "metrics.jsonl")
    return int(rows[-1]["step"]) * settings.train.tokens_per_step if rows else 0


def _uncounted(amount: float) -> None:
    pass
