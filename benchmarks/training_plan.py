"""Planned and spent CPU time of training runs of several shapes, one thread.

    python -m benchmarks.training_plan           # the table, about three minutes
    python -m benchmarks.training_plan --write   # also into docs/benchmarks.md

`training.training_plan.plan_training` measures a few steps and multiplies; the run is `training.loop.train`. What is
compared is the time of the run's updates, which the plan is about; what the start and the end of the run take
(weights, the peak of a matrix product, the checkpoint) is in a column of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import machine, publish, table
from curation.memory import keep_freed_memory
from curation.progress import set_progress_mode
from training import loop
from training.model import ModelConfig
from training.order import DataOrder, MixtureSchedule, Phase
from training.settings import TrainSettings
from training.tokens import TokenSource
from training.training_plan import plan_training

R1 = ModelConfig(8192, 256, 4, heads=4, kv_heads=2, head_dim=64, ffn_dim=768)
NARROW = replace(R1, vocab_size=4096, dim=192, heads=6, head_dim=32, ffn_dim=576)
QWEN3 = replace(NARROW, family="qwen3", rope_style="half", qk_norm="rms_before_rope")
PLAIN = TrainSettings(
    sequence_tokens=256, batch_sequences=8, steps=12, learning_rate=1e-3, device="cpu", resume_every=0
)
LOW = replace(PLAIN, precision="bfloat16")
SHAPES: dict[str, tuple[ModelConfig, TrainSettings]] = {
    "4 x 256, float32": (R1, PLAIN),
    "4 x 256, bfloat16, micro-batches of 2": (R1, replace(LOW, micro_batch_sequences=2)),
    "12 x 192, bfloat16, from depths 1 and 3": (replace(NARROW, layers=12), LOW),
    "Qwen3 style, 6 x 192, float32, from depths 1 and 3": (replace(QWEN3, layers=6), PLAIN),
    "2 x 256, vocabulary 32,768, bfloat16": (replace(R1, vocab_size=32768, layers=2), LOW),
    "8 x 256, bfloat16, Muon, from depths 1 and 3": (replace(R1, layers=8), replace(LOW, optimizer="muon")),
}


def random_order(config: ModelConfig, settings: TrainSettings) -> DataOrder:
    """Random documents of 100 tokens."""
    lengths = np.full(500, 100)
    tokens = np.random.default_rng(0).integers(2, config.vocab_size, lengths.sum()).astype(np.uint32)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = [str(number) for number in range(len(lengths))]
    source = TokenSource("s", tokens, offsets, ids, lengths, "", "", config.vocab_size)
    phase = Phase("all", settings.steps * settings.batch_sequences, {"s": 1.0})
    return DataOrder(MixtureSchedule((phase,)), {"s": source}, settings.sequence_tokens)


def measure(config: ModelConfig, settings: TrainSettings) -> tuple[float, float, float]:
    """CPU seconds: planned, of the run's updates, and of the rest of the run."""
    plan = plan_training(config, settings, clock=time.process_time)
    spent: list[float] = []
    real = loop.update

    def counted(*given: Any) -> dict[str, Any]:
        began = time.process_time()
        row = real(*given)
        spent.append(time.process_time() - began)
        return row

    loop.update = counted
    try:
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            loop.train(config, random_order(config, settings), settings, Path(folder) / "run")
            whole = time.process_time() - began
    finally:
        loop.update = real
    return plan.seconds, sum(spent), whole - sum(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="also into docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_progress_mode("quiet")
    keep_freed_memory()
    rows = []
    for name, (config, settings) in SHAPES.items():
        planned, spent, rest = measure(config, settings)
        rows.append(
            (name, f"{planned:.2f}", f"{spent:.2f}", f"{100 * (planned / spent - 1):+.1f} %", f"{rest:.2f}")
        )
        print(rows[-1], flush=True)
    text = (
        f"## Planned time\n\nCPU seconds of {PLAIN.steps} updates of {PLAIN.batch_sequences} x "
        f"{PLAIN.sequence_tokens} tokens, one thread. {machine('torch')}.\n\n"
        + table(("run", "planned", "spent", "plan is off by", "start and end of the run"), rows)
    )
    publish("training plan", text, write=options.write)


if __name__ == "__main__":
    main()
