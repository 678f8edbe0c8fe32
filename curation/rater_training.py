"""What the raters' trainings share: settings, split by origin, order of batches, the optimiser's loop."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from curation.errors import DataError
from curation.labels import LabelledExample, balanced, even_shares
from curation.progress import progress

Sides = tuple[list[LabelledExample], list[LabelledExample]]


@dataclass(frozen=True)
class RaterSettings:
    """Size and training of a rater; the defaults train in some 20 to 35 s of one core.

    Chosen by agreement on unseen texts at equal time: small batches, and new texts rather than a second
    epoch,
    in which a model of this size learns the texts by heart.

    examples      : at most so many are trained on, balanced by label and rule (over all tasks, for the judge)
    max_tokens    : of a document; the head that the rater will ever see
    learning_rate : highest of AdamW, reached after a tenth of the steps, then linear to zero
    held_out      : share of the origins kept for measuring agreement, on at most `held_out_examples` a task
    autocast      : matrix products in bfloat16 while training; the weights stay float32
    """

    dim: int = 128
    layers: int = 2
    heads: int = 2
    ffn_dim: int = 256
    examples: int = 2500
    max_tokens: int = 128
    epochs: int = 1
    batch_examples: int = 10
    learning_rate: float = 2e-3
    held_out: float = 0.15
    held_out_examples: int = 200
    autocast: bool = True
    seed: int = 0


def fit(
    model: torch.nn.Module,
    loss_of: Callable[[list[int]], torch.Tensor],
    plan: list[list[int]],
    settings: RaterSettings,
    description: str,
) -> None:
    """AdamW over the batches of `plan`, in order."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    warmup = max(1, len(plan) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (len(plan) - step) / (len(plan) - warmup + 1))
    )
    model.train()
    with progress(description, total=len(plan), unit="steps") as task:
        for batch in plan:
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.autocast):
                loss = loss_of(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            task.advance(1)
    model.eval()


def batch_plan(rows: Sequence[Sequence[int]], settings: RaterSettings) -> list[list[int]]:
    """Indices of `rows` by batch, for all epochs: rows of similar lengths together, batches in random
    order.
    """
    plan: list[list[int]] = []
    size = settings.batch_examples
    for epoch in range(settings.epochs):
        chance = random.Random(f"{settings.seed} {epoch}")
        mixed = chance.sample(range(len(rows)), len(rows))
        batches: list[list[int]] = []
        for start in range(0, len(mixed), size * 16):
            near = sorted(mixed[start : start + size * 16], key=lambda i: len(rows[i]))
            batches += [near[first : first + size] for first in range(0, len(near), size)]
        chance.shuffle(batches)
        plan += batches
    return plan


def split_examples(
    tasks: Mapping[str, Sequence[LabelledExample]], settings: RaterSettings
) -> dict[str, Sides]:
    """Training and held-out examples of each task; all of one origin are on the same side in every task."""
    held_out = _held_out_groups(tasks, settings)
    train: dict[str, list[LabelledExample]] = {task: [] for task in tasks}
    test: dict[str, list[LabelledExample]] = {task: [] for task in tasks}
    for task, members in tasks.items():
        for example in sorted(members, key=lambda e: (e.id, e.rule)):
            (test if example.group in held_out else train)[task].append(example)
        if not train[task] or not test[task]:
            raise DataError(
                f"{len(members)} labelled examples are too few to train a rater and to test it",
                where=task,
                remedy="Widen the rules' `sources` or `pattern`, or read more of the sources",
            )
    limits = even_shares({task: len(found) for task, found in train.items()}, settings.examples)
    return {
        task: (
            balanced(train[task], limits[task], seed=settings.seed),
            balanced(test[task], settings.held_out_examples, seed=settings.seed),
        )
        for task in tasks
    }


def _held_out_groups(tasks: Mapping[str, Sequence[LabelledExample]], settings: RaterSettings) -> set[str]:
    """Origins whose examples only measure: a share of them, by hash, and one at least of each task that has two."""

    def place(group: str) -> float:
        digest = hashlib.sha256(f"{settings.seed}\0{group}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    held_out: set[str] = set()
    for members in tasks.values():
        groups = sorted({example.group for example in members}, key=place)
        chosen = [group for group in groups if place(group) < settings.held_out]
        held_out.update(chosen or groups[: len(groups) > 1])
    return held_out
