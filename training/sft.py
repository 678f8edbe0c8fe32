"""Supervised fine-tuning on chats: loss on what the assistant said, and on nothing else.

Chats are packed into rows; a token sees only its own chat, at the positions it would have alone. The loss of
an update is the mean over all assistant tokens in it, whatever the rows or the micro-batches. Rows and their
order are a pure function of the data and the seed, so the data state of a checkpoint is one integer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from curation.atomic import hash_value, write_json
from curation.errors import DataError, RecipeError
from curation.progress import note
from training.chat import MaskMethod, RenderedChat, Rewritten, Turns, read_chats
from training.chat_packing import chat_batch, check_labels, pack_chats
from training.checkpoint import load_checkpoint_model
from training.distillation_settings import Distillation
from training.distributed import check_ranks, join_ranks
from training.huggingface import read_generation
from training.lessons import CHATS, check_teacher_of_chats
from training.loop import TrainSettings, train
from training.order import Batch
from training.schedules import Schedule
from training.start import policy_config, save_policy, start_tokenizer


@dataclass(frozen=True)
class SftSettings:
    """How to fine-tune; the defaults are those of MobileLLM-R1's reasoning stage (arXiv 2509.24945, table 8),
    but for the sizes.

    sequence_tokens   : length of a packed row
    batch_sequences   : rows of an update;  micro_batch_sequences : rows of one forward pass
    warmup_share      : share of the updates over which the rate rises; then `schedule` to the end
    too_long          : a chat longer than a row is dropped and counted, or cut at the row's end
    mask              : how the assistant's tokens are found (training.chat)
    turns             : learn from all of the assistant's turns or from the last of each chat. With a template that
                        rewrites earlier turns the former takes a row for each (training.chat_rows)
    recompute_every   : each so many-th layer recomputes its activations in the backward pass (1 = all), which lets
                        rows of 32k tokens fit; None = no layer. Changes no bit
    checkpoint_every  : updates between checkpoints that serve to continue after a kill
    device            : "cpu", "cuda", or "auto" for the GPU where there is one
    distillation      : a teacher of the student's tokenizer, from whose distributions the assistant's tokens are
                        also, or only, learnt (logit-level distillation)
    """

    sequence_tokens: int = 2048
    batch_sequences: int = 16
    micro_batch_sequences: int = 4
    epochs: int = 4
    learning_rate: float = 8e-5
    warmup_share: float = 0.1
    schedule: Schedule = "linear_to_zero"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    too_long: Literal["drop", "truncate"] = "drop"
    mask: MaskMethod = "auto"
    turns: Turns = "all"
    checkpoint_every: int = 50
    seed: int = 0
    device: str = "auto"
    recompute_every: int | None = None
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        for name in (
            "sequence_tokens",
            "batch_sequences",
            "micro_batch_sequences",
            "epochs",
            "checkpoint_every",
        ):
            if getattr(self, name) < 1:
                raise RecipeError(
                    f"{name} is {getattr(self, name)}", where="sft", remedy="Give a positive number"
                )
        choices = {"too_long": ("drop", "truncate"), "turns": get_args(Turns), "mask": get_args(MaskMethod)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise RecipeError(
                    f"{name} is {getattr(self, name)!r}", where="sft", remedy=f"Choose {' or '.join(known)}"
                )
        if not 0 <= self.warmup_share < 1:
            raise RecipeError(
                f"warmup_share is {self.warmup_share}",
                where="sft",
                remedy="Give a share of at least 0 and below 1",
            )

    def train_settings(self, steps: int) -> TrainSettings:
        """The same for training.loop, for a run of `steps` updates."""
        return TrainSettings(
            sequence_tokens=self.sequence_tokens,
            batch_sequences=self.batch_sequences,
            steps=steps,
            learning_rate=self.learning_rate,
            warmup_steps=min(int(self.warmup_share * steps), steps - 1),
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            beta1=self.beta1,
            beta2=self.beta2,
            epsilon=self.epsilon,
            clip=self.clip,
            precision=self.precision,
            seed=self.seed,
            micro_batch_sequences=self.micro_batch_sequences,
            resume_every=self.checkpoint_every,
            device=self.device,
            recompute_every=self.recompute_every,
            distillation={CHATS: self.distillation} if self.distillation else {},
        )

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what a run leaves behind."""
        # `turns` is left out where it is the default, so that folders from before there was a choice can be continued.
        without = {"recompute_every"} | ({"turns"} if self.turns == "all" else set())
        return {key: value for key, value in asdict(self).items() if key not in without}


@dataclass(frozen=True)
class SftResult:
    """What a run came to: the model's folder, updates, chats that trained, chats that did not fit.

    rewritten : chats that are several rows, which `chats` and `left_out` count, since the template rewrites turns
    """

    final: Path
    steps: int
    chats: int
    left_out: int
    rewritten: Rewritten = field(default_factory=Rewritten)


def sft(
    start: Path | str,
    data: Path | str | Sequence[Path | str],
    out: Path | str,
    settings: SftSettings | None = None,
    *,
    tokenizer: Any = None,
    generation: dict[str, Any] | None = None,
) -> SftResult:
    """Fine-tune the model of `start` on the chats of `data`; writes a Hugging Face folder `out/model`.

    start      : a Hugging Face model folder, or a checkpoint of training.loop
    data       : .jsonl[.gz|.zst] or .parquet with {"messages"} or {"prompt", "answer" or "response"}; several
                 files are one data set, shuffled together
    tokenizer  : a tokenizer or its folder; needed when `start` holds none
    generation : entries of the model's generation_config.json, before those of `start`

    The updates are those of training.loop, whose files `out` gets too: metrics.jsonl (loss in nats per
    assistant token), checkpoints/. A finished `out` returns at once; a killed run continues and ends with the
    same bytes. Called by every process that torchrun has started, it trains one model with all of them (copies):
    each reads its part of every update.
    """
    settings = settings or SftSettings()
    out, start = Path(out), Path(start)
    ranks = join_ranks(settings.device)
    check_ranks(ranks, settings.batch_sequences)
    tokenizer = start_tokenizer(start, tokenizer)
    config = policy_config(start)
    if settings.distillation:
        check_teacher_of_chats(settings.distillation.teacher, tokenizer)
    files = [data] if isinstance(data, Path | str) else list(data)
    read = [read_chats(file, tokenizer, method=settings.mask, turns=settings.turns) for file in files]
    all_chats = [chat for part in read for chat in part.chats]
    rewritten = sum((part.rewritten for part in read), Rewritten())
    note(rewritten.told())
    where = ", ".join(str(file) for file in files)
    chats, left_out = fit_chats(all_chats, settings, config.max_positions, where)
    order = ChatOrder(chats, settings)
    result = train(
        config,
        order,
        settings.train_settings(order.steps),
        out,
        init_from=start,
        progress_label="fine-tuning",
    )
    final = out / "model"
    generation = read_generation(start) | (generation or {})
    report = {
        "chats": len(chats),
        "left_out": left_out,
        "rewritten": asdict(rewritten),
        "broken": [asdict(b) for part in read for b in part.broken],
        "steps": order.steps,
        "settings": asdict(settings),
    }

    def finish() -> None:
        save_policy(load_checkpoint_model(result.final), final, tokenizer, generation)
        write_json(out / "sft.json", report)

    ranks.from_main(finish)
    return SftResult(final, order.steps, len(chats), left_out, rewritten)


class ChatOrder:
    """The rows of all epochs in their order, as training.loop reads a data order: pure functions."""

    def __init__(self, chats: Sequence[RenderedChat], settings: SftSettings) -> None:
        self.chats, self.settings = chats, settings
        lengths = [len(chat.ids) - 1 for chat in chats]
        self.rows = [
            row
            for epoch in range(settings.epochs)
            for row in pack_chats(lengths, settings.sequence_tokens, settings.seed, epoch)
        ]

    @property
    def sources(self) -> dict[str, ChatOrder]:
        """Itself, as the loop asks for the vocabulary of every source."""
        return {"chats": self}

    @property
    def vocab_size(self) -> int:
        """The smallest vocabulary that holds all tokens."""
        return 1 + max(max(chat.ids) for chat in self.chats)

    @property
    def sequence_tokens(self) -> int:
        """Tokens of a row."""
        return self.settings.sequence_tokens

    @property
    def phases(self) -> tuple[str, ...]:
        """The one phase, by whose name a teacher is given."""
        return (CHATS,)

    @property
    def sequences(self) -> int:
        """Rows that the updates ask for; the last update may find fewer."""
        return self.steps * self.settings.batch_sequences

    @property
    def steps(self) -> int:
        """Updates in all epochs; the last may be a smaller one."""
        return math.ceil(len(self.rows) / self.settings.batch_sequences)

    def fingerprint(self) -> str:
        """A hash of all that the rows depend on."""
        chats = [(chat.ids, chat.assistant) for chat in self.chats]
        # The teacher is told apart by its weights, in the settings of training.loop, not by where it lies.
        deciding = {key: value for key, value in self.settings.deciding().items() if key != "distillation"}
        return hash_value([chats, deciding])

    def batch(self, first: int, count: int) -> Batch:
        """Rows first ... first + count - 1, or as many as there are: a rank's part of the last update may be none."""
        rows = self.rows[first : first + count]
        batch = chat_batch(self.chats, rows, self.settings.sequence_tokens)
        if rows:
            check_labels(batch)
        return batch


def fit_chats(
    chats: Sequence[RenderedChat], settings: SftSettings, context: int, where: str
) -> tuple[list[RenderedChat], int]:
    """The chats that fit a row, cut or dropped as `too_long` says, and how many are left out.

    A row holds one token more than the model reads, since the last token is only predicted. A cut chat in
    which the assistant has not begun is left out. Raises DataError when nothing is left, RecipeError when
    rows are longer than the model's context.
    """
    if settings.sequence_tokens > context:
        raise RecipeError(
            f"Rows of {settings.sequence_tokens} tokens are longer than the model's context of {context}",
            where="sft.sequence_tokens",
            remedy="Make them shorter",
        )
    most = settings.sequence_tokens + 1
    kept: list[RenderedChat] = []
    for chat in chats:
        if len(chat.ids) > most and settings.too_long == "truncate":
            chat = RenderedChat(chat.ids[:most], chat.assistant[:most])
        if len(chat.ids) <= most and any(chat.assistant[1:]):
            kept.append(chat)
    if not kept:
        raise DataError(
            f"None of {len(chats)} chats fits into rows of {settings.sequence_tokens} tokens",
            where=where,
            remedy='Give a larger sequence_tokens, or too_long = "truncate"',
        )
    return kept, len(chats) - len(kept)
