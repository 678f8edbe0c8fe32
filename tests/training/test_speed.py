"""The line of progress: what it says is what was measured, in 80 columns, at a terminal and in a log."""

from __future__ import annotations

import io
import mmap
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import curation.progress
import training.speed
from curation.progress import set_progress_mode, status_line
from tests.training.test_loop import CONFIG, SETTINGS, make_order
from training.loop import train
from training.run_log import read_rows
from training.speed import StepMeter, measured_peak, measuring_steps, memory_bytes


class Line:
    """A status line that keeps what it is shown."""

    def __init__(self) -> None:
        self.words: Callable[[], str] = str

    def show(self, words: Callable[[], str]) -> None:
        self.words = words


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that the test sets, and a peak of 1000 operations a second."""
    now = [100.0]
    monkeypatch.setattr(training.speed.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(training.speed, "measured_peak", lambda device, precision: 1000.0)
    monkeypatch.setattr(training.speed, "memory_bytes", lambda device: 1_234_567_890)
    yield now
    monkeypatch.undo()


def meter(line: Any, label: str = "proxy-3") -> StepMeter:
    return StepMeter(
        label, steps=1000, tokens_per_step=40, flops_per_token=2.0,
        device=torch.device("cpu"), precision="float32", line=line,
    )  # fmt: skip


def test_says_what_was_measured_since_the_resume(clock: list[float]) -> None:
    line = Line()
    measured = meter(line)
    # Resumed at step 900. Its first update takes 50 s, which count for nothing.
    measured.add({"step": 901, "loss": 3.25}, seconds=50.0, waited=0.0)
    assert line.words() == "proxy-3 step 901/1000 loss 3.250 1.2GB ? left"
    for step in (902, 903):
        clock[0] += 2.0  # of which half are an evaluation
        row = measured.add({"step": step, "loss": 3.0}, seconds=1.0, waited=0.25)
    # 40 tokens/s x 2 operations = 80 of 1000; 97 updates x 2 s.
    assert line.words() == "proxy-3 step 903/1000 loss 3.000 40 tok/s 8% peak data 25% 1.2GB 3m14s left"
    assert row == {"step": 903, "loss": 3.0, "tokens_per_second": 40.0, "data_seconds": 0.25}
    clock[0] += 1.0
    measured.add({"step": 904, "loss": 3.0}, seconds=0.5, waited=0.0)
    assert " 80 tok/s 16% peak data 0% " in line.words()  # of the stretch since the last line


def test_fits_a_terminal(clock: list[float]) -> None:
    line = Line()
    measured = meter(line, "leave-one-out without " + "x" * 90)
    measured.steps, measured.tokens_per_step, measured.flops_per_token = 1_000_000, 4_000_000, 4e-4
    for step in (899_998, 899_999):
        clock[0] += 3.0
        measured.add({"step": step, "loss": 11.25}, seconds=3.0, waited=1.0)
    told = "step 899999/1000000 loss 11.250 1.33M tok/s 53% peak data 33% 1.2GB 3d11h left"
    words = line.words()
    assert len(words) <= 78 and words == told
    measured.steps = 900
    measured.add({"step": 800, "loss": 1.25}, seconds=3.0, waited=1.0)
    words = line.words()
    assert len(words) == 78 and re.match("leave.*… step 800/900 ", words) and words.endswith(" left")


@pytest.mark.parametrize("mode", ["plain", "bar", "quiet"])
def test_a_line_in_a_log_or_redrawn_at_a_terminal(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(curation.progress, "PLAIN_SECONDS", 0.03)
    monkeypatch.setattr(curation.progress, "REDRAW_SECONDS", 0.0)
    set_progress_mode(mode)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    made: list[int] = []
    try:
        with status_line() as line:
            for number in range(8):
                line.show(lambda n=number: made.append(n) or f"step {n} [not markup]")  # type: ignore[misc]
                time.sleep(0.01)
    finally:
        set_progress_mode("quiet")
    if mode == "quiet":
        assert not made and not shown.getvalue()
    elif mode == "bar":
        assert made == list(range(8)) and "step 7 [not markup]" in shown.getvalue()
    else:
        lines = shown.getvalue().splitlines()
        assert 1 <= len(lines) <= 3 and 0 not in made
        assert all(re.fullmatch(r"  step \d \[not markup\]", text) for text in lines)


def test_the_loop_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(curation.progress, "PLAIN_SECONDS", 0.0)
    set_progress_mode("plain")
    try:
        train(CONFIG, make_order(), SETTINGS, tmp_path / "run", progress_label="tiny")
    finally:
        set_progress_mode("quiet")
    lines = shown.getvalue().splitlines()
    assert len(lines) == 24 and all(len(line) <= 80 for line in lines)
    form = r"  tiny step 24/24 loss \d\.\d{3} \S+ tok/s \d+% peak data \d+% \d\.\dGB 0s left"
    assert re.fullmatch(form, lines[-1]), lines[-1]
    assert all(row["data_seconds"] >= 0 for row in read_rows(tmp_path / "run" / "metrics.jsonl"))


def test_the_peak_is_measured_once_and_moves_no_random_number() -> None:
    measured_peak.cache_clear()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    began = time.perf_counter()
    peak = measured_peak("cpu", "float32")
    assert peak > 1e8 and time.perf_counter() - began < 30  # a second where nothing else runs
    assert torch.equal(torch.rand(3), wanted)
    assert measured_peak("cpu", "float32") == peak
    with measuring_steps("x", steps=1, tokens_per_step=1, flops_per_token=1.0,
                         device=torch.device("cpu"), precision="float32") as measured:  # fmt: skip
        assert measured.add({"step": 1, "loss": 1.0}, seconds=1.0, waited=0.0)["tokens_per_second"] == 1.0


def test_memory_is_what_the_process_holds() -> None:
    before = memory_bytes(torch.device("cpu"))
    # Pages of its own: the heap of a long-lived process may hold as much that is free.
    with mmap.mmap(-1, 32 << 20) as kept:
        kept.write(b"x" * (32 << 20))
        assert memory_bytes(torch.device("cpu")) - before > 20 << 20
    assert before > 50 << 20
