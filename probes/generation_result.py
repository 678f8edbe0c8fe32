"""What a generation benchmark gives: settings, samples, and the figures that are made of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curation.errors import RecipeError
from probes.intervals import LEVEL, RESAMPLES
from probes.pass_at_k import Estimate, avg_at_n, mean_maj_at_k, mean_pass_at_k
from training.rollout import RolloutSettings

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are sampled; all of it is stored with the result.

    samples       : n answers a prompt; with temperature 0 all would be the same, so then it must be 1
    rollout       : lengths, temperature, top-p and budgets, see training.budgets
    stop          : strings that end an answer; the answer is cut before the first of them, and what the model wrote
                    beyond is neither judged nor counted
    chat          : the prompt is a user's message in the tokenizer's chat template; else plain text after bos
    seed          : of the samples
    chunk_prompts : prompts after which finished samples are written, where there is a folder for them
    """

    samples: int = 1
    rollout: RolloutSettings = field(default_factory=lambda: RolloutSettings(temperature=0.0))
    stop: tuple[str, ...] = ()
    chat: bool = False
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    chunk_prompts: int = 32

    def __post_init__(self) -> None:
        if self.samples < 1 or self.chunk_prompts < 1:
            raise RecipeError("samples and chunk_prompts must be at least 1", where="generation")
        if self.rollout.temperature == 0 and self.samples > 1:
            raise RecipeError(
                f"{self.samples} greedy samples of a prompt are all the same",
                where="generation.samples",
                remedy="Take 1 sample, or a temperature above 0",
            )
        if any(not stop for stop in self.stop):
            raise RecipeError("A stop string is empty", where="generation.stop", remedy="Leave it out")


@dataclass(frozen=True)
class GenerationResult:
    """Samples (`SAMPLES`, in the order of prompts and replicas), settings, and what they amount to.

    settings    : the sampling settings, the reward and the hashes of model and tokenizer, JSON-able
    prompts_cut : prompts longer than the context allows, of which the beginning was left out
    """

    samples: pa.Table
    settings: dict[str, Any]
    prompts_cut: int

    @property
    def correct(self) -> np.ndarray:
        """bool [problems, n]."""
        return self._grid("correct").astype(bool)

    @property
    def truncated(self) -> float:
        """Share of samples that ran into a token limit."""
        return float(np.mean(self._grid("truncated")))

    @property
    def no_answer(self) -> float:
        """Share of samples in which no answer was found."""
        return self.samples["answer"].null_count / len(self.samples)

    def lengths(self) -> dict[float, float]:
        """Quantiles of the tokens of a sample."""
        tokens = self.samples["tokens"].to_numpy()
        return dict(zip(QUANTILES, np.quantile(tokens, QUANTILES).tolist(), strict=True))

    def avg_at_n(self, *, resamples: int = RESAMPLES, level: float = LEVEL) -> Estimate:
        """See `probes.pass_at_k`, as the next two."""
        return avg_at_n(self.correct, resamples=resamples, level=level)

    def pass_at_k(self, k: int, *, resamples: int = RESAMPLES, level: float = LEVEL) -> Estimate:
        return mean_pass_at_k(self.correct, k, resamples=resamples, level=level)

    def maj_at_k(self, k: int, *, resamples: int = RESAMPLES, level: float = LEVEL) -> Estimate:
        """RecipeError for programs, of which none is equal to another."""
        if self.settings["reward"] == "code":
            raise RecipeError("Programs have no majority", where="maj@k", remedy="Use pass@k")
        classes = self._grid("answer_class")
        return mean_maj_at_k(classes, self._class_verdicts(classes), k, resamples=resamples, level=level)

    def summary(self) -> dict[str, Any]:
        """Accuracy with its errors, pass@n, maj@n, rates and lengths, JSON-able."""
        n = self.correct.shape[1]
        found: dict[str, Any] = {
            "problems": len(self.correct),
            "samples_per_problem": n,
            f"avg@{n}": asdict(self.avg_at_n()),
            "truncated": self.truncated,
            "no_answer": self.no_answer,
            "finish_reasons": dict(Counter(self.samples["finish_reason"].to_pylist())),
            "mean_tokens": float(np.mean(self.samples["tokens"].to_numpy())),
            "token_quantiles": {str(at): value for at, value in self.lengths().items()},
            "prompts_cut": self.prompts_cut,
            "settings": self.settings,
        }
        if n > 1:
            found[f"pass@{n}"] = asdict(self.pass_at_k(n))
            if self.settings["reward"] != "code":
                found[f"maj@{n}"] = asdict(self.maj_at_k(n))
        return found

    def _grid(self, column: str) -> np.ndarray:
        values = self.samples[column].to_numpy(zero_copy_only=False)
        return values.reshape(-1, self.settings["samples"])

    def _class_verdicts(self, classes: np.ndarray) -> np.ndarray:
        """The verdict of each class is that of its first sample: equality of stated answers is not quite transitive."""
        verdicts = self.correct.copy()
        for row, named in zip(verdicts, classes, strict=True):
            for name in set(named.tolist()) - {-1}:
                row[named == name] = row[np.flatnonzero(named == name)[0]]
        return verdicts


def settings_of(described: dict[str, Any]) -> GenerationSettings:
    """The settings that a result stores."""
    names = ("samples", "chat", "seed", "precision")
    return GenerationSettings(
        rollout=RolloutSettings(**described["rollout"]),
        stop=tuple(described["stop"]),
        **{name: described[name] for name in names},
    )
