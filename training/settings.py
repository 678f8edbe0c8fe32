"""How to train: the settings of a run, and what cannot be asked of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from curation.errors import RecipeError
from training.distillation_settings import Distillation, deciding_distillation
from training.lessons import check_lessons
from training.model import ModelConfig
from training.optimizer import OptimizerName
from training.order import Order
from training.schedules import RatePhase, Schedule, check_phases, check_schedule, phased_rate, rate_factor
from training.sinks import LOGGERS


@dataclass(frozen=True)
class TrainSettings:
    """How to train; the data and the model are described apart from it.

    batch_sequences, sequence_tokens, steps : an update reads so many sequences of so many tokens
    learning_rate, warmup_steps, schedule   : see training.schedules
    rate_phases   : stretches of the run with rates and schedules of their own, in place of the three above
    weight_decay, beta1, beta2, epsilon     : AdamW; the defaults are MobileLLM-R1's
    optimizer     : "adamw", or "muon" for the matrices of the layers with AdamW for the rest, see training.muon
    clip          : largest norm of the gradient of all weights together, None = do not clip
    precision     : "bfloat16" makes matrix products in bfloat16 (autocast); weights and moments stay float32
    seed          : of the initial weights; the data order has its own
    checkpoint_steps, evaluate_steps : numbers of updates after which to keep a checkpoint, and to evaluate;
                    0 is before the first. A checkpoint is always kept after the last.
    average_from  : the part of the run, in [0, 1), after which the weights of each update enter a mean, which
                    is then what is evaluated and loaded; None = no mean
    micro_batch_sequences : sequences per forward pass, None = all; saves memory, changes no gradient
    resume_every  : updates between checkpoints that only serve to continue after a kill; 0 = none
    keep          : how many of the newest checkpoints can be gone back to; those of `checkpoint_steps` stay
                    for ever
    z_loss        : see training.losses
    device        : "cpu", "cuda", or "auto" for the GPU where there is one
    loggers       : of "tensorboard", "wandb" and "trackio": where the log goes besides its JSON lines
    distillation  : by the name of a phase, the teacher it learns from; the others learn from the labels alone
    parallel      : what several ranks (torchrun) do: "ddp" copies the model to all, "fsdp" shards it
    recompute_every : each so many-th layer recomputes its activations in the backward pass (1 = all of them),
                    which saves memory, costs time and changes no bit; None = no layer
    compile       : "layers" or "model" go through torch.compile, which needs a compiler
    """

    sequence_tokens: int
    batch_sequences: int
    steps: int
    learning_rate: float
    warmup_steps: int = 0
    schedule: Schedule = "linear_to_tenth"
    rate_phases: tuple[RatePhase, ...] = ()
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip: float | None = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    checkpoint_steps: tuple[int, ...] = ()
    evaluate_steps: tuple[int, ...] = ()
    average_from: float | None = None
    micro_batch_sequences: int | None = None
    resume_every: int = 200
    keep: int = 1
    z_loss: float = 0.0
    device: str = "auto"
    optimizer: OptimizerName = "adamw"
    loggers: tuple[str, ...] = ()
    distillation: Mapping[str, Distillation] = field(default_factory=dict)
    parallel: Literal["ddp", "fsdp"] = "ddp"
    recompute_every: int | None = None
    compile: Literal["none", "layers", "model"] = "none"

    @property
    def tokens_per_step(self) -> int:
        """Tokens that an update reads."""
        return self.batch_sequences * self.sequence_tokens

    def rate(self, step: int) -> float:
        """The learning rate of update number `step`, from 0."""
        if self.rate_phases:
            return phased_rate(self.rate_phases, step)
        return self.learning_rate * rate_factor(
            self.schedule, step, steps=self.steps, warmup_steps=self.warmup_steps
        )


# How often a run can be interrupted, and on what it computes: these may differ when it goes on. The last three
# change numbers by rounding, as another machine does.
FREE_SETTINGS = ("resume_every", "keep", "loggers", "recompute_every", "device", "parallel", "compile")


def deciding_settings(settings: TrainSettings) -> dict[str, Any]:
    """The settings that decide what the run leaves behind."""
    left_out = [*FREE_SETTINGS, "distillation"]
    if settings.optimizer == "adamw":
        left_out.append("optimizer")  # folders from before there was a choice can be continued
    deciding = {key: value for key, value in asdict(settings).items() if key not in left_out}
    if settings.distillation:
        described = {phase: deciding_distillation(d) for phase, d in settings.distillation.items()}
        deciding["distillation"] = described
    return deciding


def check_settings(settings: TrainSettings, config: ModelConfig, order: Order) -> None:
    """Raise RecipeError for settings that cannot be, or that do not fit the data or the model."""
    check_schedule(settings.schedule, steps=settings.steps, warmup_steps=settings.warmup_steps)
    check_lessons(settings.distillation, order)
    check_phases(settings.rate_phases, settings.steps)
    needed = settings.steps * settings.batch_sequences
    vocabulary = max(source.vocab_size for source in order.sources.values())
    late = [s for s in (*settings.checkpoint_steps, *settings.evaluate_steps) if not 0 <= s <= settings.steps]
    average = settings.average_from
    wrong = {
        "batch_sequences": settings.batch_sequences < 1,
        "micro_batch_sequences": (settings.micro_batch_sequences or 1) < 1,
        "resume_every": settings.resume_every < 0,
        "keep": settings.keep < 1,
        "parallel": settings.parallel not in ("ddp", "fsdp"),
        "recompute_every": settings.recompute_every is not None and settings.recompute_every < 1,
        "compile": settings.compile not in ("none", "layers", "model"),
        "learning_rate": not (math.isfinite(settings.learning_rate) and settings.learning_rate > 0),
        "clip": settings.clip is not None and not settings.clip > 0,
        "precision": settings.precision not in ("float32", "bfloat16"),
        "optimizer": settings.optimizer not in ("adamw", "muon"),
        "loggers": not set(settings.loggers) <= set(LOGGERS),
        "average_from": average is not None and not 0 <= average < 1,
    }
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        raise RecipeError(
            f"{name} cannot be {getattr(settings, name)!r}",
            where=name,
            remedy="See TrainSettings for its range",
        )
    if late:
        raise RecipeError(
            f"Step {late[0]} is to be evaluated or kept, but the run has {settings.steps}",
            where="checkpoint_steps, evaluate_steps",
            remedy="Name steps from 0 to the last",
        )
    if settings.sequence_tokens != order.sequence_tokens or settings.sequence_tokens > config.max_positions:
        raise RecipeError(
            f"Sequences of {settings.sequence_tokens} tokens do not fit a data order of "
            f"{order.sequence_tokens}, or a model of {config.max_positions} positions",
            where="sequence_tokens",
            remedy="Use one length for all, and at most max_positions",
        )
    if needed > order.sequences:
        raise RecipeError(
            f"The run reads {needed:,} sequences, but its phases have only {order.sequences:,}",
            where="steps",
            remedy="Lengthen a phase, or train for fewer steps",
        )
    if vocabulary > config.vocab_size:
        raise RecipeError(
            f"The data has {vocabulary:,} tokens, the model only {config.vocab_size:,}",
            where="vocab_size",
            remedy="Give the model the vocabulary of the tokenizer",
        )
