"""What the rows of a batch learn from: their labels alone, a teacher that is asked now, or one that was cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curation.atomic import hash_value
from curation.errors import RecipeError
from training.distillation import DistilledLoss, linear_distillation
from training.distillation_settings import Distillation, check_distillation
from training.losses import linear_cross_entropy
from training.order import Batch, DataOrder, Order
from training.same_tokenizer import check_same_tokenizer, check_teachers_tokenizer
from training.sparse_distillation import linear_sparse_distillation
from training.teacher import Teacher, forward_flops, hash_teacher, load_teacher, resolve_teacher
from training.teacher_cache import TeacherCache, fill_caches, filling, targets_on
from training.teacher_pass import CacheIdentity

CACHE_FOLDER = "teacher_cache"
CHATS = "chats"
"""The one phase of an order of chats, by which its teacher is named."""


@dataclass(frozen=True)
class Lesson:
    """A phase's way to its loss; without settings, the cross-entropy of the labels."""

    settings: Distillation | None = None
    teacher: Teacher | None = None
    caches: Mapping[str, TeacherCache] | None = None
    order: DataOrder | None = None

    def loss(self, hidden: Tensor, weight: Tensor, batch: Batch, z_loss: float) -> DistilledLoss:
        """The loss summed over the labels of `batch`, from the student's hidden states [B, T, D]."""
        states, labels, settings = hidden.flatten(0, 1), batch.labels.flatten(), self.settings
        if settings is None:
            total = linear_cross_entropy(states, weight, labels, z_loss=z_loss)
            return DistilledLoss(total, total.detach(), torch.zeros_like(total.detach()))
        if self.teacher is not None:
            taught = self.teacher.hidden(batch.input_ids, batch.positions, batch.document_ids)
            return linear_distillation(
                states,
                weight,
                labels,
                taught.flatten(0, 1),
                self.teacher.weight,
                direction=settings.direction,
                teacher_share=settings.teacher_share,
                z_loss=z_loss,
                alpha=settings.alpha,
                beta=settings.beta,
                temperature=settings.temperature,
            )
        targets = targets_on(states.device, settings.kind, self._cached(batch))
        return linear_sparse_distillation(
            states,
            weight,
            labels,
            targets,
            alpha=settings.alpha,
            beta=settings.beta,
            temperature=settings.temperature,
            z_loss=z_loss,
        )

    def _cached(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self.caches is not None and self.order is not None
        windows = [self.order.window(batch.first + row) for row in range(len(batch.labels))]
        rows = [self.caches[window.source].read(window.pieces) for window in windows]
        ids, weights, entropy = (np.concatenate(column) for column in zip(*rows, strict=True))
        return ids, weights, entropy


class Lessons:
    """The lessons of a run by phase; made by `open_lessons`."""

    def __init__(self, order: DataOrder, by_phase: Mapping[str, Lesson]) -> None:
        self._order, self._by_phase = order, by_phase

    def stretches(self, batch: Batch) -> Iterator[tuple[Lesson, int, int]]:
        """The rows of `batch`, which lie next to each other in the order, in runs with one lesson each."""
        phases = [self._order.phase_of(batch.first + row).name for row in range(len(batch.labels))]
        begin = 0
        for end in range(1, len(phases) + 1):
            if end == len(phases) or phases[end] != phases[begin]:
                yield self._by_phase.get(phases[begin], PLAIN), begin, end
                begin = end


class OneLesson(Lessons):
    """The same lesson for every row, whatever the order: chats and rollouts."""

    def __init__(self, lesson: Lesson) -> None:
        self._lesson = lesson

    def stretches(self, batch: Batch) -> Iterator[tuple[Lesson, int, int]]:
        """All rows of `batch`."""
        yield self._lesson, 0, len(batch.labels)


PLAIN = Lesson()


def batch_loss(
    hidden: Tensor,
    weight: Tensor,
    batch: Batch,
    z_loss: float,
    lessons: Lessons | None,
    softcap: float | None = None,
) -> DistilledLoss:
    """The loss of `batch`, summed over its labels, from hidden states [B, T, D]; each row by its phase's lesson.

    softcap : of the model's logits, see training.losses
    """
    if softcap is not None:
        if lessons is not None:
            raise RecipeError(
                "A model with softly capped logits cannot be distilled into",
                where="distillation",
                remedy="Train it on labels, or choose another student",
            )
        total = linear_cross_entropy(
            hidden.flatten(0, 1), weight, batch.labels.flatten(), z_loss=z_loss, softcap=softcap
        )
        return DistilledLoss(total, total.detach(), total.new_zeros(()))
    if lessons is None:
        return PLAIN.loss(hidden, weight, batch, z_loss)
    losses = [
        lesson.loss(hidden[begin:end], weight, rows_of(batch, begin, end), z_loss)
        for lesson, begin, end in lessons.stretches(batch)
    ]
    if len(losses) == 1:
        return losses[0]
    return DistilledLoss(*(torch.stack(column).sum() for column in zip(*losses, strict=True)))


def rows_of(batch: Batch, begin: int, end: int) -> Batch:
    """The rows begin ... end - 1 of a batch."""
    if (begin, end) == (0, len(batch.labels)):
        return batch
    return replace(
        batch,
        input_ids=batch.input_ids[begin:end],
        labels=batch.labels[begin:end],
        positions=batch.positions[begin:end],
        document_ids=batch.document_ids[begin:end],
        first=batch.first + begin,
    )


def batch_on(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return replace(
        batch,
        input_ids=batch.input_ids.to(device, non_blocking=True),
        labels=batch.labels.to(device, non_blocking=True),
        positions=batch.positions.to(device, non_blocking=True),
        document_ids=batch.document_ids.to(device, non_blocking=True),
    )


def check_lessons(distillation: Mapping[str, Distillation], order: object) -> None:
    """Raise RecipeError for a lesson that cannot be, or for a phase that the order has not."""
    if not distillation:
        return
    if isinstance(order, DataOrder):
        phases = [phase.name for phase in order.schedule.phases]
    else:
        phases = list(getattr(order, "phases", ()))
    for name, settings in distillation.items():
        if name not in phases:
            raise RecipeError(
                f"There is no phase {name!r} to distil in",
                where="distillation",
                remedy=f"The phases are {', '.join(phases)}" if phases else "Use an order with phases",
            )
        check_distillation(name, settings)
        if not isinstance(order, DataOrder) and settings.cache != "none":
            raise RecipeError(
                "Only token files have caches of what a teacher says; chats and rollouts ask it on every batch",
                where="distillation.cache",
                remedy="Set it to none",
            )


def open_lessons(
    distillation: Mapping[str, Distillation],
    order: Order,
    *,
    sequences: int,
    vocabulary: int,
    folder: Path,
    device: torch.device,
) -> Lessons | None:
    """Load the teachers, and compute what their caches lack; None where no phase has one.

    sequences : how many of the order the run reads; vocabulary : the student's
    folder    : the run's, in which caches are kept that name no other place
    """
    if not distillation:
        return None
    if not isinstance(order, DataOrder):  # chats, whose tokenizer training.sft has compared
        (settings,) = distillation.values()
        where = resolve_teacher(settings.teacher)
        teacher = load_teacher(where, vocabulary=vocabulary, device=device, precision=settings.precision)
        return OneLesson(Lesson(settings, teacher=teacher))
    tokenizer = next(iter(order.sources.values())).tokenizer
    loaded: dict[tuple[Path, str], Teacher] = {}
    by_phase: dict[str, Lesson] = {}
    for phase, settings in distillation.items():
        where = resolve_teacher(settings.teacher)
        check_teachers_tokenizer(where, tokenizer, settings.tokenizer)

        def load(where: Path = where, settings: Distillation = settings) -> Teacher:
            key = (where, settings.precision)
            if key not in loaded:
                loaded[key] = load_teacher(
                    where, vocabulary=vocabulary, device=device, precision=settings.precision
                )
            return loaded[key]

        if settings.cache == "none":
            by_phase[phase] = Lesson(settings, teacher=load())
        else:
            needed = documents_read(order, phase, sequences)
            caches = _open_caches(settings, order, vocabulary, folder, needed, load)
            by_phase[phase] = Lesson(settings, caches=caches, order=order)
    return Lessons(order, by_phase)


def check_teacher_of_chats(teacher: str, tokenizer: Any) -> None:
    """Raise DataError unless the teacher's tokenizer gives the token ids of the student's, which renders the chats."""
    from training.tokenizer import load_tokenizer  # here, because it imports transformers

    folder = resolve_teacher(teacher)
    check_same_tokenizer(tokenizer, load_tokenizer(folder), str(folder))


def documents_read(order: DataOrder, phase: str, sequences: int) -> dict[str, list[int]]:
    """The documents, by source, that a phase reads among the first `sequences` sequences of the order."""
    found: dict[str, set[int]] = {}
    for index in _indices(order, phase, sequences):
        window = order.window(index)
        found.setdefault(window.source, set()).update(piece[0] for piece in window.pieces)
    return {source: sorted(documents) for source, documents in found.items()}


def cache_name(settings: Distillation, sequence_tokens: int, vocabulary: int) -> str:
    """A folder name for the caches of these settings: the same for phases and runs that can share them."""
    identity = _identity(settings, sequence_tokens, vocabulary)
    return f"{settings.cache}-{hash_value(asdict(identity))[:12]}"


def teaching_flops(order: DataOrder, phase: str, settings: Distillation, sequences: int) -> float:
    """Floating-point operations of a phase's teacher; of a cached one as if the cache had been empty."""
    where = resolve_teacher(settings.teacher)
    if settings.cache == "none":
        tokens = order.sequence_tokens * len(_indices(order, phase, sequences))
        return tokens * forward_flops(where, order.sequence_tokens)
    tokens = sum(
        int(np.diff(order.sources[source].offsets)[documents].sum())
        for source, documents in documents_read(order, phase, sequences).items()
    )
    return tokens * forward_flops(where, settings.context or order.sequence_tokens)


def _indices(order: DataOrder, phase: str, sequences: int) -> list[int]:
    """Those of the first `sequences` indices that belong to phases of this name."""
    found: list[int] = []
    first = 0
    for each in order.schedule.phases:
        if each.name == phase:
            found.extend(range(first, min(first + each.sequences, sequences)))
        first += each.sequences
    return found


def _identity(settings: Distillation, sequence_tokens: int, vocabulary: int) -> CacheIdentity:
    return CacheIdentity(
        teacher=hash_teacher(resolve_teacher(settings.teacher)),
        tokenizer="",
        tokens="",
        kind=settings.kind,
        entries=min(settings.entries, vocabulary),
        temperature=settings.temperature,
        context=settings.context or sequence_tokens,
        precision=settings.precision,
        vocabulary=vocabulary,
        seed=settings.seed,
    )


def _open_caches(
    settings: Distillation,
    order: DataOrder,
    vocabulary: int,
    folder: Path,
    needed: dict[str, list[int]],
    load: Callable[[], Teacher],
) -> dict[str, TeacherCache]:
    """The caches of the needed documents' sources, complete."""
    common = _identity(settings, order.sequence_tokens, vocabulary)
    name = cache_name(settings, order.sequence_tokens, vocabulary)
    place = Path(settings.cache_folder or folder / CACHE_FOLDER / name)
    with filling(place):
        caches = {}
        for source in (order.sources[name] for name in needed):
            identity = replace(common, tokenizer=source.tokenizer, tokens=source.hash)
            inside = place / f"{source.name}-{hash_value(source.hash)[:12]}"
            caches[source.name] = TeacherCache(inside, identity, source)
        fill_caches(caches, needed, load)
    return caches
