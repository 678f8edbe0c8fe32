"""What a run writes besides its JSON lines, and that no logger can stop it."""

from __future__ import annotations

import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curation.errors import RecipeError
from tests.training.test_loop import CONFIG, SETTINGS, make_order
from training.loop import train
from training.run_log import read_rows
from training.sinks import open_sinks

SHORT = replace(SETTINGS, steps=6, checkpoint_steps=(), evaluate_steps=(0, 6), average_from=None)


def evaluate(model: Any, step: int) -> dict[str, Any]:
    return {"probes": {"code": 2.5 + step, "note": "text"}, "flag": True}


class Recorder:
    """A fake of wandb's and trackio's runs."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.begun: list[dict[str, Any]] = []
        self.finished, self.fail_at = 0, fail_at

    def init(self, **settings: Any) -> Recorder:
        self.begun.append(settings)
        return self

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        if len(self.rows) == self.fail_at:
            raise OSError("No space left on device")
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def install(monkeypatch: pytest.MonkeyPatch, name: str, recorder: Recorder) -> None:
    module: Any = types.ModuleType(name)
    module.init, module.finish = recorder.init, recorder.finish
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_every_row_reaches_an_installed_logger(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    install(monkeypatch, name, recorder)
    train(CONFIG, make_order(), replace(SHORT, loggers=(name,)), tmp_path / "run", evaluate=evaluate)
    updates = [(step, values) for step, values in recorder.rows if "train/loss" in values]
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [step for step, _ in updates] == [1, 2, 3, 4, 5, 6]
    assert [values["train/loss"] for _, values in updates] == [row["loss"] for row in rows]
    assert updates[0][1]["train/tokens_per_second"] == rows[0]["tokens_per_second"]
    evaluations = [row for row in recorder.rows if "train/loss" not in row[1]]
    assert evaluations == [(0, {"evaluation/probes/code": 2.5}), (6, {"evaluation/probes/code": 8.5})]
    assert recorder.finished == 1 and recorder.begun[0]["resume"] == "allow"
    assert recorder.begun[0]["config"]["training"]["learning_rate"] == 1e-2


def test_tensorboard_holds_the_curve_of_a_resumed_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sinks = open_sinks(("tensorboard",), tmp_path, step=0, settings={})
    for step in range(1, 5):
        sinks.add("train", {"step": step, "loss": 10.0 + step})
    sinks.close()
    sinks = open_sinks(("tensorboard",), tmp_path, step=2, settings={})
    for step in range(3, 6):
        sinks.add("train", {"step": step, "loss": 20.0 + step})
    sinks.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    curve = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert curve == [(1, 11.0), (2, 12.0), (3, 23.0), (4, 24.0), (5, 25.0)]


def test_a_failing_logger_warns_once_and_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(fail_at=2)
    install(monkeypatch, "trackio", recorder)
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    settings = replace(SHORT, loggers=("wandb", "trackio"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(CONFIG, make_order(), settings, tmp_path, evaluate=evaluate)
    ours = [str(warning.message) for warning in caught if "no more of this run" in str(warning.message)]
    assert len(ours) == 2
    assert "wandb" in ours[0] and "trackio" in ours[1] and "No space left on device" in ours[1]
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 6 and len(recorder.rows) == 2


def test_loggers_are_checked_and_may_change_between_attempts(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="loggers cannot be"):
        train(CONFIG, make_order(), replace(SHORT, loggers=("mlflow",)), tmp_path / "a")
    train(CONFIG, make_order(), SHORT, tmp_path / "b")
    train(CONFIG, make_order(), replace(SHORT, loggers=("tensorboard",)), tmp_path / "b")  # not refused
