"""How a phase of training learns from a teacher, and what cannot be asked of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from curation.errors import RecipeError
from training.distillation import Direction
from training.sparse_distillation import Entries
from training.teacher import Precision, hash_teacher, resolve_teacher

Cache = Literal["none", "sampled", "multinomial", "top_k"]


@dataclass(frozen=True)
class Distillation:
    """A phase whose loss is alpha * cross-entropy + beta * temperature^2 * divergence from a teacher.

    MobileLLM-R1 (section 3.2) only says that mid-training minimises the KL divergence between the logits of
    student and teacher; the defaults are the forward KL alone, at temperature 1.

    teacher     : folder of a Hugging Face model, or a hub model's name, with the tokenizer of the data
    direction   : "forward" KL(teacher || student), "reverse", or "jensen_shannon"; see training.distillation
    teacher_share : b of the Jensen-Shannon divergence
    cache       : "none" runs the teacher on each batch. Otherwise what it says is stored once, in `entries`
                  entries per token, see training.sparse_distillation; forward KL only
    context     : tokens that the cached teacher reads at once, from the document's start; None = the
                  run's sequence_tokens
    precision   : of the teacher's weights and products
    tokenizer   : folder of the data's tokenizer; needed where the teacher's is not equal to the byte
    cache_folder : where caches are kept, to be shared by runs; None = in the run's folder
    seed        : of the cached samples
    """

    teacher: str
    alpha: float = 0.0
    beta: float = 1.0
    temperature: float = 1.0
    direction: Direction = "forward"
    teacher_share: float = 0.5
    cache: Cache = "none"
    entries: int = 12
    context: int | None = None
    precision: Precision = "bfloat16"
    tokenizer: str | None = None
    cache_folder: str | None = None
    seed: int = 0

    @property
    def kind(self) -> Entries:
        """How cached entries are chosen."""
        assert self.cache != "none"
        return self.cache


def check_distillation(phase: str, settings: Distillation) -> None:
    """Raise RecipeError for settings that cannot be."""
    cached = settings.cache != "none"
    wrong = {
        "teacher": not settings.teacher,
        "alpha": not (math.isfinite(settings.alpha) and settings.alpha >= 0),
        "beta": not (math.isfinite(settings.beta) and settings.beta >= 0),
        "temperature": not (math.isfinite(settings.temperature) and settings.temperature > 0),
        "direction": settings.direction not in get_args(Direction),
        "teacher_share": not 0 < settings.teacher_share < 1,
        "cache": settings.cache not in get_args(Cache),
        "entries": settings.entries < (2 if settings.cache == "top_k" else 1),
        "context": settings.context is not None and settings.context < 1,
        "precision": settings.precision not in get_args(Precision),
    }
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        raise RecipeError(
            f"{name} cannot be {getattr(settings, name)!r}",
            where=f"distillation of phase {phase}",
            remedy="See training.distillation_settings.Distillation for its range",
        )
    if settings.alpha == 0 and settings.beta == 0:
        raise RecipeError(
            "alpha and beta are both 0, so there is nothing to learn",
            where=f"distillation of phase {phase}",
            remedy="Give one of them a positive number",
        )
    if cached and settings.direction != "forward":
        raise RecipeError(
            f"A cached teacher has no {settings.direction} divergence: it takes all of its probabilities",
            where=f"distillation of phase {phase}",
            remedy="Set direction to forward, or cache to none",
        )


def deciding_distillation(settings: Distillation) -> dict[str, Any]:
    """What decides the result: the teacher's weights instead of the place where they lie."""
    described = asdict(settings)
    for place in ("tokenizer", "cache_folder"):
        del described[place]
    return described | {"teacher": hash_teacher(resolve_teacher(settings.teacher))}
