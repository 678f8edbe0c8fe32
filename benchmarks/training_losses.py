"""Losses over the vocabulary and distillation: time against the plain loss, memory, and what a cache costs.

    python -m benchmarks.training_losses [--write] [--quick]

One thread, CPU time, opponents in turn. `--quick` runs everything small, so that it cannot rot; `--write` puts
the tables into docs/benchmarks.md. Corpora for the comparison of teachers: $MIXWRIGHT_CORPORA, or
../shared/corpora beside the checkout; without them that table is left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import machine, paired, publish, table
from training.distillation import linear_distillation
from training.losses import linear_cross_entropy
from training.model import Decoder, ModelConfig
from training.sparse_distillation import (
    SparseTargets,
    linear_sparse_distillation,
    multinomial_entries,
    sampled_entries,
    top_k_entries,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def problem(tokens: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, an output weight and labels, the first two wanting gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=generator) / width**0.5).requires_grad_()
    return hidden, weight, torch.randint(0, vocabulary, (tokens,), generator=generator)


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """What most trainers do: all logits, then the loss."""
    return F.cross_entropy(F.linear(hidden, weight), labels, reduction="sum")


def ours(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The chunked loss."""
    return linear_cross_entropy(hidden, weight, labels)


def torchs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """torch's own fused loss, with its default options."""
    return F.linear_cross_entropy(hidden, weight, labels, reduction="sum")


def step(loss: Loss, given: tuple[Tensor, Tensor, Tensor], low: bool) -> Callable[[], None]:
    """Forward and backward of a loss, in bfloat16 autocast if `low`."""

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            total = loss(*given)
        total.backward()
        given[0].grad = given[1].grad = None

    return work


def cross_entropy_table(quick: bool) -> str:
    """Time of the chunked loss as a share of the plain one's."""
    rows = []
    sizes = [(2048, 256, 8192), (2048, 576, 8192), (1024, 256, 128_256)]
    for tokens, width, vocabulary in [(512, 64, 1000)] if quick else sizes:
        for low in (False, True):
            given = problem(tokens, width, vocabulary)
            times = paired(
                {"plain": step(plain, given, low), "ours": step(ours, given, low)},
                rounds=5 if vocabulary < 10_000 else 2,
            )
            share = 1 / times["ours"].ratio(times["plain"])
            rows.append(
                (
                    f"{vocabulary:,}",
                    f"{tokens:,} x {width}",
                    "bfloat16" if low else "float32",
                    f"{times['plain'].seconds:.2f} s",
                    f"{times['ours'].seconds:.2f} s",
                    f"{share:.2f}",
                )
            )
    return table(("vocabulary", "tokens x width", "precision", "plain", "chunked", "chunked / plain"), rows)


def against_torch(quick: bool) -> str:
    """Time and error of torch's own chunked loss, where this torch has one."""
    text = ""
    tokens, width, vocabulary = (64, 64, 1000) if quick else (64, 576, 128_256)
    if hasattr(F, "linear_cross_entropy"):
        for low in (False, True):
            given = problem(tokens, width, vocabulary)
            with torch.no_grad():
                exact = F.cross_entropy(given[0].double() @ given[1].double().T, given[2], reduction="sum")
            times = paired(
                {"torch": step(torchs, given, low), "ours": step(ours, given, low)}, rounds=1, warmup=0
            )
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
                errors = [abs(float(loss(*given) / exact) - 1) for loss in (torchs, ours)]
            text += (
                f"\n{tokens} tokens of width {width}, {vocabulary:,} entries, {'bfloat16' if low else 'float32'}: "
                f"F.linear_cross_entropy {times['torch'].seconds:.2f} s (relative error of the loss {errors[0]:.1e}), "
                f"ours {times['ours'].seconds:.2f} s ({errors[1]:.1e}).\n"
            )
    return text


def peak_megabytes(kind: str, tokens: int, width: int, vocabulary: int, low: bool) -> float:
    """Peak resident memory that one forward and backward adds, in a process of its own."""
    code = (
        "from curation.memory import peak_memory; import torch; torch.set_num_threads(1)\n"
        f"from benchmarks.training_losses import {kind}, problem, step\n"
        f"given = problem({tokens}, {width}, {vocabulary})\n"
        f"step({kind}, problem(8, {width}, 64), {low})()\n"
        "given[0].grad, given[1].grad = torch.zeros_like(given[0]), torch.zeros_like(given[1])\n"
        "given[0].grad = given[1].grad = None\n"
        "before = peak_memory()\n"
        f"step({kind}, given, {low})()\n"
        "print((peak_memory() - before) / 1e6)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(result.stdout)


def memory_table(quick: bool) -> str:
    """Extra memory of both losses; the weight's gradient itself is part of it."""
    rows = []
    width, vocabulary = (64, 2000) if quick else (256, 128_256)
    for tokens in (4096,):
        for low in (False, True):
            peaks = [peak_megabytes(kind, tokens, width, vocabulary, low) for kind in ("plain", "ours")]
            rows.append(
                (f"{tokens:,}", "bfloat16" if low else "float32", *(f"{peak:,.0f} MB" for peak in peaks))
            )
    gradient = width * vocabulary * 4 / 2**20
    note = f"\nOf each, {gradient:,.0f} MB are the weight's gradient in float32; its scaled copy is as large again.\n"
    note += f"Up to {gradient:,.0f} MB that was free before (the weight's first draft) is not counted, in either.\n"
    return table(("tokens", "precision", "plain", "chunked"), rows) + note


def targets_of(kind: str, teacher: Tensor, entries: int) -> SparseTargets:
    """Entries of the distributions with these logits."""
    p = teacher.softmax(-1)
    generator = torch.Generator().manual_seed(2)
    if kind == "top_k":
        ids, weights = top_k_entries(p, entries)
    elif kind == "sampled":
        ids, weights = sampled_entries(p, entries, torch.rand(len(p), generator=generator))
    else:
        ids, weights = multinomial_entries(p, entries, torch.rand(len(p), entries, generator=generator))
    return SparseTargets(kind, ids, weights.float(), -torch.xlogy(p, p).sum(-1))  # type: ignore[arg-type]


def distillation_table(quick: bool) -> str:
    """Time of the distilled losses as a share of cross-entropy's alone."""
    rows = []
    sizes = [(256, 64, 1000)] if quick else [(2048, 256, 8192), (256, 256, 128_256)]
    for tokens, width, vocabulary in sizes:
        given = problem(tokens, width, vocabulary)
        generator = torch.Generator().manual_seed(1)
        taught, head = torch.randn(tokens, width, generator=generator), given[1].detach()
        small = targets_of("sampled", torch.randn(64, vocabulary, generator=generator) * 3, 12)
        repeat = tokens // 64
        sparse = {
            kind: SparseTargets(
                kind,
                torch.cat((small.ids[:, :-1], torch.full((64, 1), vocabulary)), 1).repeat(repeat, 1)
                if kind == "top_k"
                else small.ids.repeat(repeat, 1),
                small.weights.repeat(repeat, 1),
                small.entropy.repeat(repeat),
            )
            for kind in ("sampled", "top_k")
        }

        def cached(kind: str, temperature: float, sparse: dict[str, SparseTargets] = sparse) -> Loss:
            return lambda h, w, y: (
                linear_sparse_distillation(
                    h, w, y, sparse[kind], alpha=0.3, beta=0.7, temperature=temperature
                ).total
            )

        losses: dict[str, Loss] = {
            "cross-entropy": ours,
            "sampled": cached("sampled", 1.0),
            "sampled, temperature 2": cached("sampled", 2.0),
            "top_k": cached("top_k", 1.0),
        }
        for direction in ("forward", "reverse", "jensen_shannon"):
            losses[f"online {direction}"] = lambda h, w, y, d=direction, t=taught, o=head: (
                linear_distillation(  # type: ignore[misc]
                    h, w, y, t, o, alpha=0.3, beta=0.7, direction=d
                ).total
            )
        times = paired(
            {name: step(loss, given, True) for name, loss in losses.items()},
            rounds=3 if vocabulary < 10_000 else 2,
        )
        base = times["cross-entropy"]
        rows += [
            (f"{vocabulary:,}", name, f"{time.seconds:.2f} s", f"{1 / time.ratio(base):.2f}")
            for name, time in times.items()
        ]
    return table(("vocabulary", "loss", "time", "/ cross-entropy"), rows)


def step_table(quick: bool) -> str:
    """A whole training step with a cached teacher against one without: 4 layers x 256, 8,192 entries."""
    config = ModelConfig(
        8192, 256, 1 if quick else 4, heads=4, kv_heads=2, head_dim=64, ffn_dim=768, max_positions=512
    )
    model = Decoder(config).init_weights(0)
    tokens = torch.randint(0, 8192, (8, 256), generator=torch.Generator().manual_seed(0))
    targets = targets_of(
        "sampled", torch.randn(2048, 8192, generator=torch.Generator().manual_seed(1)) * 3, 12
    )
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def update(loss: Loss) -> Callable[[], None]:
        def work() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                total = loss(model(tokens).flatten(0, 1), model.output_weight, tokens.flatten())
            (total / tokens.numel()).backward()
            optimizer.step()
            optimizer.zero_grad()

        return work

    def cached(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return linear_sparse_distillation(hidden, weight, labels, targets, alpha=0.3, beta=0.7).total

    times = paired({"plain": update(ours), "cached": update(cached)}, rounds=1 if quick else 7)
    speed = {name: tokens.numel() / time.seconds for name, time in times.items()}
    return (
        f"A training step, 4 x 256 with 8,192 entries, bfloat16, 8 x 256 tokens: "
        f"cross-entropy {speed['plain']:,.0f} tokens/s, "
        f"with 12 cached entries {speed['cached']:,.0f} ({times['cached'].ratio(times['plain']):.2f} of it).\n"
    )


def variance_table() -> str:
    """Squared error of the gradient with respect to the logits, mean over tokens, of a Zipf-like teacher."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, tokens = 8192, 512
    rows = []
    for name, logits in {
        "peaked": torch.randn(tokens, vocabulary, generator=generator) * 4,
        "flat": torch.randn(tokens, vocabulary, generator=generator) * 2,
    }.items():
        p = logits.softmax(-1).double()
        for entries in (4, 12, 50):
            errors = []
            for kind in ("sampled", "multinomial", "top_k"):
                found = targets_of(kind, logits, entries)
                said = torch.zeros(tokens, vocabulary + 1, dtype=torch.float64)
                said.scatter_add_(1, found.ids, found.weights.double())
                errors.append((said[:, :vocabulary] - p).square().sum(-1).mean().item())
            rows.append((name, entries, *(f"{error:.1e}" for error in errors)))
    return table(("teacher", "entries", "sampled", "multinomial", "top_k (tail left out)"), rows)


def main() -> None:
    """Measure, print, and with --write publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick = arguments.quick
    sections: list[Callable[[], str]] = [
        lambda: (
            f"## Losses over the vocabulary\n\nOne thread, CPU time, forward and backward. {machine('torch')}.\n"
        ),
        lambda: cross_entropy_table(quick),
        lambda: "Losses with a teacher, in bfloat16; online without the teacher's own layers:\n",
        lambda: distillation_table(quick),
        lambda: step_table(quick),
        lambda: "Squared error of the gradient by the logits from a cache, against the whole distribution:\n",
        variance_table,
        lambda: (
            "Peak memory added by one forward and backward, width 256, 128,256 entries, in a process of its own:\n"
        ),
        lambda: memory_table(quick),
        lambda: against_torch(quick),
    ]
    done = []
    for section in sections:
        done.append(section())
        print(done[-1], file=sys.stderr, flush=True)
    text = "\n".join(done)
    publish("training losses", text, write=arguments.write and not arguments.quick)


if __name__ == "__main__":
    main()
