"""Training speed of the three MobileLLM-R1 sizes on one GPU, plain and distilled, with the share of its peak.

    python -m benchmarks.gpu                    # 140M, 360M and 950M, about five minutes on an H200
    python -m benchmarks.gpu --sizes 140m --teacher 8b
    python -m benchmarks.gpu --small            # tiny shapes on a CPU, under a minute: that it runs
    python -m benchmarks.gpu --write            # also into docs/benchmarks.md

Sequences of 2,048 tokens of packed documents, vocabulary 128,256, bfloat16 products, layers compiled, fused
AdamW, the loss in chunks. A step is `training.update.update`, the one that the loop calls. The micro-batch is
the largest power of two that fits. The share is of a product of 8192 x 8192 matrices on the same GPU, and counts
`ModelConfig.flops_per_token`, causal attention over whole sequences included; recomputation would not count.

Distillation: online, with a frozen teacher of the shape asked for (random weights: what it says does not change
the time), and from cached sparse targets of 16 entries a token.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import machine, publish, table
from training.distillation import linear_forward_kl
from training.model import Decoder, ModelConfig, preset
from training.optimizer import build_adamw, set_rate
from training.order import Batch, DataOrder, MixtureSchedule, Phase
from training.prefetch import BatchesAhead
from training.settings import TrainSettings
from training.speed import measured_peak, memory_bytes
from training.tokens import TokenSource
from training.update import Run, update

SIZES = {name: preset(f"mobilellm-r1-{name}") for name in ("140m", "360m", "950m")}
GOALS = {"140m": 50, "360m": 60, "950m": 68}
# Llama 3.1 8B and 3.2 1B: the shapes that decide what a teacher costs.
TEACHERS = {
    "8b": ModelConfig(128_256, 4096, 32, 32, 8, 128, 14336, qk_norm="none", rope_style="half",
                      tied=False, family="llama"),
    "1b": ModelConfig(128_256, 2048, 16, 32, 8, 64, 8192, qk_norm="none", rope_style="half", family="llama"),
}  # fmt: skip
SMALL = ModelConfig(512, 32, 2, 4, 2, 8, 64)
ENTRIES = 16


@dataclass(frozen=True)
class Plan:
    """What is run: sequences of so many tokens, updates measured after so many, micro-batches up to."""

    device: torch.device
    tokens: int
    updates: int
    warmup: int
    largest: int
    compiled: bool


@dataclass(frozen=True)
class Result:
    """Tokens a second, sequences of the micro-batch, and peak memory in bytes."""

    speed: float
    micro_batch: int
    memory: int


Prepare = Callable[[int], Callable[[], object]]


def largest_that_fits(prepare: Prepare, plan: Plan) -> Result:
    """Double the micro-batch until memory is full or speed falls; the fastest is the result."""
    best: Result | None = None
    size = 1
    while size <= plan.largest:
        try:
            found = timed(prepare(size), size, plan)
        except torch.OutOfMemoryError:
            break
        finally:
            release(plan.device)
        if best is not None and found.speed < best.speed:
            break
        best, size = found, 2 * size
    if best is None:
        raise MemoryError("One sequence does not fit the device's memory")
    return best


def timed(step: Callable[[], object], sequences: int, plan: Plan) -> Result:
    """Median time of the updates; on a GPU they are waited for only at both ends of each."""
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.device)
    seconds = []
    for number in range(plan.warmup + plan.updates):
        began = now(plan.device)
        step()
        if number >= plan.warmup:
            seconds.append(now(plan.device) - began)
    speed = sequences * plan.tokens / statistics.median(seconds)
    return Result(speed, sequences, memory_bytes(plan.device))


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def release(device: torch.device) -> None:
    """Give back what the last size held."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def student(config: ModelConfig, plan: Plan) -> tuple[Decoder, torch.optim.Optimizer]:
    """A model with its optimizer on the device, its layers compiled."""
    model = Decoder(replace(config, max_positions=max(config.max_positions, plan.tokens)))
    model = model.init_weights(0).to(plan.device)
    if plan.compiled:
        compile_layers(model)
    optimizer = build_adamw(model, weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-8)
    set_rate(optimizer, 1e-4)
    return model, optimizer


def compile_layers(model: Decoder) -> None:
    """As the loop does it, where this version can; else each layer's forward."""
    try:
        from training.compilation import compile_model  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        for layer in model.layers:
            layer.forward = torch.compile(layer.forward)  # type: ignore[method-assign]
    else:
        compile_model(model, "layers")


def batches(config: ModelConfig, plan: Plan, sequences: int) -> Callable[[], Batch]:
    """The data order's batches, one after another, of documents of 50 to 3,000 tokens; made ahead."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(50, 3000, size=500)
    ids = generator.integers(0, config.vocab_size, size=int(lengths.sum())).astype(np.uint32)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    names = [str(i) for i in range(len(lengths))]
    source = TokenSource("random", ids, offsets, names, lengths, "random", "", config.vocab_size)
    schedule = MixtureSchedule((Phase("all", 1_000_000, {"random": 1.0}),))
    order = DataOrder(schedule, {"random": source}, plan.tokens)
    ahead, place = BatchesAhead(order.batch, sequences, plan.device), [0]

    def following() -> Batch:
        place[0] += sequences
        return ahead(place[0] - sequences, sequences)

    return following


def plain(config: ModelConfig, plan: Plan) -> Prepare:
    """The loop's update."""

    def prepare(sequences: int) -> Callable[[], object]:
        model, optimizer = student(config, plan)
        settings = TrainSettings(
            sequence_tokens=plan.tokens, batch_sequences=sequences, steps=1_000_000, learning_rate=1e-4,
            precision="bfloat16", device=str(plan.device),
        )  # fmt: skip
        run, following = Run(model, optimizer, None, 0), batches(config, plan, sequences)
        return lambda: update(run, following(), settings)

    return prepare


Taught = Callable[[Decoder, Batch, Tensor], Tensor]  # model, batch, its hidden states [N, D] -> summed loss


def distilled(config: ModelConfig, plan: Plan, taught: Taught) -> Prepare:
    """An update whose loss is half the labels' and half what `taught` returns."""

    def prepare(sequences: int) -> Callable[[], object]:
        model, optimizer = student(config, plan)
        following = batches(config, plan, sequences)

        def step() -> object:
            batch = on_device(following(), plan.device)
            with torch.autocast(plan.device.type, torch.bfloat16):
                hidden = model(batch.input_ids, batch.positions, batch.document_ids).flatten(0, 1)
                loss = taught(model, batch, hidden) / batch.labels.numel()
            loss.backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, norm, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        return step

    return prepare


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch there, copied while the GPU works."""
    return replace(
        batch,
        input_ids=batch.input_ids.to(device, non_blocking=True),
        labels=batch.labels.to(device, non_blocking=True),
        positions=batch.positions.to(device, non_blocking=True),
        document_ids=batch.document_ids.to(device, non_blocking=True),
    )


def online(teacher_config: ModelConfig, plan: Plan) -> Taught:
    """KL(teacher || student), the teacher's hidden states made anew in every step."""
    teacher = Decoder(replace(teacher_config, max_positions=max(teacher_config.max_positions, plan.tokens)))
    teacher = teacher.to(device=plan.device, dtype=torch.bfloat16).requires_grad_(False)
    if plan.compiled:
        compile_layers(teacher)

    def taught(model: Decoder, batch: Batch, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            states = teacher(batch.input_ids, batch.positions, batch.document_ids).flatten(0, 1)
        return linear_forward_kl(
            hidden, model.output_weight, states, teacher.output_weight, batch.labels.flatten()
        )

    return taught


def cached(config: ModelConfig, plan: Plan) -> Taught | str:
    """Cross-entropy and divergence to sparse targets; a sentence where this version has none."""
    try:
        from training.sparse_distillation import (  # type: ignore[import-not-found,unused-ignore]
            SparseTargets,
            linear_sparse_distillation,
        )
    except ImportError:
        return "not there yet"

    def taught(model: Decoder, batch: Batch, hidden: Tensor) -> Tensor:
        ids = torch.randint(0, config.vocab_size, (len(hidden), ENTRIES), device=plan.device)
        weights = torch.full(ids.shape, 1 / ENTRIES, device=plan.device)
        entropy = torch.zeros(len(hidden), device=plan.device)
        targets = SparseTargets("sampled", ids, weights, entropy)
        labels = batch.labels.flatten()
        loss: Any = linear_sparse_distillation(
            hidden, model.output_weight, labels, targets, alpha=0.5, beta=0.5
        )
        return loss.total

    return taught


def measure(sizes: dict[str, ModelConfig], teacher: ModelConfig, teacher_name: str, plan: Plan) -> str:
    """The table, as Markdown."""
    peak = measured_peak(str(plan.device), "bfloat16")
    rows: list[tuple[object, ...]] = []
    for name, config in sizes.items():
        flops = config.flops_per_token(plan.tokens)
        result = largest_that_fits(plain(config, plan), plan)
        goal = f"{GOALS[name]} %" if name in GOALS else ""
        rows.append((name, "cross-entropy", *columns(result, flops / peak), goal))
        # What a teacher's forward pass costs counts as work that had to be done.
        both = flops + teacher.flops_per_token(plan.tokens) / 3
        result = largest_that_fits(distilled(config, plan, online(teacher, plan)), plan)
        rows.append((name, f"distilled online, teacher {teacher_name}", *columns(result, both / peak), ""))
        sparse = cached(config, plan)
        if isinstance(sparse, str):
            rows.append((name, "distilled from a cache", sparse, "", "", "", ""))
        else:
            result = largest_that_fits(distilled(config, plan, sparse), plan)
            rows.append((name, "distilled from a cache", *columns(result, flops / peak), ""))
    where = torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else "CPU"
    return (
        f"Training on {where}, {plan.tokens:,} tokens a sequence, bfloat16, "
        f"{'layers compiled' if plan.compiled else 'not compiled'}. {machine('torch')}. Peak measured by a "
        f"product: {peak / 1e12:.3f} TFLOP/s.\n\n"
        + table(("size", "loss", "tokens/s", "share of peak", "micro-batch", "memory", "goal"), rows)
    )


def columns(result: Result, seconds_per_token: float) -> tuple[str, str, int, str]:
    """Speed, share, micro-batch and memory; `seconds_per_token` is what a token takes at the peak."""
    share = 100 * result.speed * seconds_per_token
    return f"{result.speed:,.0f}", f"{share:.0f} %", result.micro_batch, f"{result.memory / 1e9:.1f} GB"


def small() -> str:
    """The whole of it with tiny models on a CPU: shows that it runs, and nothing else."""
    plan = Plan(torch.device("cpu"), tokens=64, updates=2, warmup=1, largest=2, compiled=False)
    return measure({"tiny": SMALL}, replace(SMALL, dim=48), "tiny", plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--teacher", choices=tuple(TEACHERS), default="8b")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--write", action="store_true", help="also into docs/benchmarks.md")
    options = parser.parse_args()
    if options.small:
        print(small())
        return
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU here; --small runs tiny models on the CPU")
    torch.set_float32_matmul_precision("high")
    plan = Plan(
        torch.device("cuda", 0), tokens=2048, updates=options.updates, warmup=3, largest=64,
        compiled=not options.no_compile,
    )  # fmt: skip
    sizes = {name: SIZES[name] for name in options.sizes}
    text = measure(sizes, TEACHERS[options.teacher], options.teacher, plan)
    publish("gpu training", text, write=options.write)


if __name__ == "__main__":
    main()
