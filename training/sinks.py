"""Where a run's rows go besides its JSON lines: TensorBoard, Weights & Biases, trackio.

The JSON lines are the record; these are for watching. So nothing here may stop a run: a logger that is not
installed, has no network or a full disk says so once, and is left out from then on.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

LOGGERS = ("tensorboard", "wandb", "trackio")


class Sink(Protocol):
    """Something that takes the numbers of an update or an evaluation."""

    def add(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Sinks:
    """The loggers of one run; a failing one is dropped with one warning."""

    def __init__(self, opened: dict[str, Sink]) -> None:
        self._sinks = opened

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Pass on the numbers of `row`, which has a "step", as "<kind>/<name>"; nested ones as <name>/<name>."""
        if not self._sinks:
            return
        values = {f"{kind}/{name}": value for name, value in _numbers(row) if name != "step"}
        self._each(lambda sink: sink.add(values, row["step"]))

    def close(self) -> None:
        """Let every logger finish."""
        self._each(lambda sink: sink.close())

    def _each(self, work: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                work(sink)
            except Exception as error:  # whatever a logger does wrong, the run goes on
                del self._sinks[name]
                _warn(name, error)


def open_sinks(loggers: Iterable[str], out: Path, *, step: int, settings: dict[str, Any]) -> Sinks:
    """The loggers of the run in `out`, which goes on after update `step`.

    loggers  : of LOGGERS; W&B and trackio take their project and server from their own environment variables
    settings : what the run is, for the loggers that show it

    A run that is continued goes on in the same curves: they know it by its folder.
    """
    opened: dict[str, Sink] = {}
    for name in dict.fromkeys(loggers):
        try:
            opened[name] = _OPENERS[name](out, step, settings)
        except Exception as error:  # not installed, no network, not logged in, a full disk
            _warn(name, error)
    return Sinks(opened)


class TensorBoard:
    """Event files in <out>/tensorboard; those of updates after `step`, to be made again, are hidden."""

    def __init__(self, out: Path, step: int, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def add(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One W&B run for one folder; project from WANDB_PROJECT, offline by WANDB_MODE=offline."""

    def __init__(self, out: Path, step: int, settings: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=_project("WANDB_PROJECT"), name=out.name, id=_identity(out), resume="allow",
            dir=str(out), config=settings,
        )  # fmt: skip

    def add(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """One trackio run for one folder; project from TRACKIO_PROJECT."""

    def __init__(self, out: Path, step: int, settings: dict[str, Any]) -> None:
        import trackio

        self._run = trackio.init(
            project=_project("TRACKIO_PROJECT"), name=f"{out.name}-{_identity(out)}", resume="allow",
            config=settings, embed=False,
        )  # fmt: skip
        self._finish = trackio.finish

    def add(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._finish()


_OPENERS: dict[str, Callable[[Path, int, dict[str, Any]], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def _project(variable: str) -> str:
    return os.environ.get(variable, "mixwright")


def _identity(out: Path) -> str:
    """The same for every attempt at a run, and another for every folder."""
    return hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:12]


def _numbers(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)


def _warn(name: str, error: Exception) -> None:
    reason = str(error).strip().splitlines()
    warnings.warn(
        f"{name} gets no more of this run ({type(error).__name__}: {reason[0] if reason else 'no reason given'}); "
        "training goes on, and metrics.jsonl has everything",
        stacklevel=2,
    )
