"""Several proxy models at once: one thread each, two threads one after another, or one batched model.

    python -m benchmarks.proxies [--models 4] [--rounds 5] [--write]

The shape is the quickstart's: 4 layers of 128, 2,048 entries, 8 sequences of 256 tokens, bfloat16. A round is
one update (forward, backward, clipping, AdamW) of each of the models; what counts is CPU time for the tokens of
all, because a machine that is full has nothing else to give. The batched way stacks the models' weights
(torch.func.stack_module_state) and lets vmap run all of them in one forward pass; attention is then made of
plain products, since neither the fused layer nor torch's kernel can be mapped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from benchmarks.measure import machine, paired, publish, table
from training.losses import IGNORED
from training.model import Decoder, preset
from training.optimizer import build_adamw, set_rate
from training.order import Batch
from training.settings import TrainSettings
from training.update import Run, update

SETTINGS = TrainSettings(
    sequence_tokens=256,
    batch_sequences=8,
    steps=1_000_000,
    learning_rate=4e-3,
    schedule="constant",
    precision="bfloat16",
    device="cpu",
)
ADAM = {"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8}


def random_batch(seed: int) -> Batch:
    """A batch of one document for each row."""
    shape = (SETTINGS.batch_sequences, SETTINGS.sequence_tokens)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 2048, shape, generator=generator)
    labels = ids.roll(-1, 1)
    labels[:, -1] = IGNORED
    positions = torch.arange(shape[1]).expand(shape).contiguous()
    return Batch(ids, labels, positions, torch.zeros_like(ids))


def new_model(seed: int) -> Decoder:
    """A proxy model of the quickstart's shape."""
    return Decoder(preset("tiny", vocab_size=2048)).init_weights(seed)


def alone(models: int, threads: int) -> Callable[[], None]:
    """Each model's update after the other's, as the training loop makes it."""
    runs = []
    for seed in range(models):
        model = new_model(seed)
        runs.append(Run(model, build_adamw(model, **ADAM), None, 0))
    batches = [random_batch(seed) for seed in range(models)]

    def work() -> None:
        torch.set_num_threads(threads)
        for run, batch in zip(runs, batches, strict=True):
            update(run, batch, SETTINGS)
        torch.set_num_threads(1)

    return work


def batched(models: int, threads: int) -> Callable[[], None]:
    """All models as one, whose weights have a leading dimension."""
    decoders = [new_model(seed) for seed in range(models)]
    weights, _ = stack_module_state(decoders)
    shell = new_model(0)
    shell.attention = "eager"
    # Decay as for matrices of one model; the gains' decay is left out as well.
    optimizer = torch.optim.AdamW(weights.values(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batches = [random_batch(seed) for seed in range(models)]
    ids, labels, positions, documents = (
        torch.stack([getattr(batch, name) for batch in batches])
        for name in ("input_ids", "labels", "positions", "document_ids")
    )

    def loss(
        own: dict[str, Tensor], ids: Tensor, labels: Tensor, positions: Tensor, documents: Tensor
    ) -> Tensor:
        hidden = functional_call(shell, own, (ids, positions, documents))
        logits = F.linear(hidden, own[shell.output_weight_name]).flatten(0, 1)
        return F.cross_entropy(logits.float(), labels.flatten(), ignore_index=IGNORED)

    def work() -> None:
        torch.set_num_threads(threads)
        with torch.autocast("cpu", torch.bfloat16):
            losses = vmap(loss)(weights, ids, labels, positions, documents)
        losses.sum().backward()
        norms = torch.stack([w.grad.flatten(1).norm(dim=1) for w in weights.values()]).norm(dim=0)  # type: ignore[union-attr]
        scale = (1.0 / norms).clamp(max=1.0)
        for weight in weights.values():
            assert weight.grad is not None
            weight.grad.mul_(scale.view(-1, *(1 for _ in weight.shape[1:])))
        set_rate(optimizer, 4e-3)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.set_num_threads(1)

    return work


def main() -> None:
    """Measure and print; --write puts the table into docs/benchmarks.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    count = options.models
    contestants = {
        "one thread each": alone(count, 1),
        "two threads, one after another": alone(count, 2),
        f"{count} batched, one thread": batched(count, 1),
        f"{count} batched, two threads": batched(count, 2),
    }
    timings = paired(contestants, rounds=options.rounds)
    base, tokens = timings["one thread each"], count * SETTINGS.tokens_per_step
    rows = [
        [name, f"{tokens / t.seconds:,.0f}", f"{t.ratio(base):.2f}", f"{tokens / min(t.wall):,.0f}"]
        for name, t in timings.items()
    ]
    text = f"## Proxy models side by side\n\n{machine('torch')}\n\n" + table(
        ["way", "tokens per CPU second", "times one thread each", "best tokens per wall second"], rows
    )
    publish("Proxy models side by side", text, write=options.write)


if __name__ == "__main__":
    main()
