"""The benchmarks of training run, small, so that they cannot rot."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from benchmarks import gpu, training
from benchmarks.gpu import Plan, Result, largest_that_fits


def test_the_gpu_benchmark_runs_small_on_a_cpu() -> None:
    text = gpu.small()
    lines = [line for line in text.splitlines() if line.startswith("| tiny")]
    assert [line.split(" | ")[1] for line in lines] == [
        "cross-entropy",
        "distilled online, teacher tiny",
        "distilled from a cache",
    ]
    for line in lines[:2]:
        speed = re.match(r"\| tiny \| [^|]+ \| ([\d,]+) \| \d+ % \| [12] \| \d+\.\d GB \|", line)
        assert speed and int(speed[1].replace(",", "")) > 0


def test_the_micro_batch_is_the_largest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def prepare(size: int):  # type: ignore[no-untyped-def]
        tried.append(size)
        if size > 4:
            raise torch.OutOfMemoryError("full")
        return int

    plan = Plan(torch.device("cpu"), 8, 1, 0, 64, False)
    monkeypatch.setattr(gpu, "timed", lambda step, size, plan: Result(10.0 * size, size, 0))
    assert largest_that_fits(prepare, plan).micro_batch == 4 and tried == [1, 2, 4, 8]
    with pytest.raises(MemoryError, match="One sequence"):
        largest_that_fits(lambda size: prepare(8), plan)


def test_trainers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CONFIG", replace(gpu.SMALL, max_positions=256))
    threads = torch.get_num_threads()
    try:
        text = training.compare(rounds=1, steps=1, only="mixwright/HF Trainer, float32")
    finally:
        torch.set_num_threads(threads)
    names = ["mixwright, bfloat16", "mixwright, float32"]
    if "HF Trainer, float32 | cannot be imported" not in text:  # a broken optional package of transformers
        names.append("HF Trainer, float32")
    for name in names:
        assert re.search(rf"\| {name} \| [\d,]+ \| [\d,]+ to [\d,]+ \| \d+ % \| \d+\.\d\d \|", text), text
    assert "| nanochat | not a package" in text


def test_the_error_of_a_trainer_reaches_the_clock() -> None:
    def body(turns: training.Turns) -> None:
        turns.wait()
        raise ZeroDivisionError

    runner = training.Turns(body)
    with pytest.raises(ZeroDivisionError):
        runner.steps(1)
