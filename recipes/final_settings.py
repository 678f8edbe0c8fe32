"""The recipe's blocks about the model that a run leaves behind: its phases, their teachers, compression."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recipes.settings import Count, Name, Positive, Settings, Share
from recipes.training_settings import OptimisationSettings, Schedule


class DistillSettings(Settings):
    """Learning from a teacher: alpha * cross-entropy + beta * temperature^2 * divergence.

    MobileLLM-R1 (section 3.2) only says that the KL divergence from Llama-3.1-8B-Instruct is minimised in
    mid-training; direction, temperature and any cross-entropy are unpublished.
    """

    teacher: str = Field(min_length=1)
    """Folder (relative to the recipe) or hub id of a causal model with the run's tokenizer; see `tokenizer.model`."""
    alpha: float = Field(default=0.0, ge=0.0)
    """Weight of the labels' cross-entropy."""
    beta: float = Field(default=1.0, ge=0.0)
    """Weight of the divergence from the teacher."""
    temperature: Positive = 1.0
    direction: Literal["forward", "reverse", "jensen_shannon"] = "forward"
    """`forward`: KL(teacher || student); `reverse`: KL(student || teacher)."""
    teacher_share: float = Field(default=0.5, gt=0.0, lt=1.0)
    """The teacher's part in the mean of `jensen_shannon`."""
    cache: Literal["none", "sampled", "multinomial", "top_k"] = "none"
    """`none`: the teacher reads every batch; otherwise it is asked once, and its answers are kept in `entries` entries
    per token: unbiased samples, the same as the paper draws them, or the likeliest and one for all others."""
    entries: Count = 12
    """Of 6 bytes each (4 for vocabularies below 65,536)."""
    context: Count | None = None
    """Tokens that a cached teacher reads at once, from the document's start; by default `final.sequence_tokens`."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the teacher."""

    @model_validator(mode="after")
    def _teaches(self) -> DistillSettings:
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("`alpha` and `beta` are both 0, so the phase would learn nothing")
        if self.cache != "none" and self.direction != "forward":
            raise ValueError(
                f"`direction: {self.direction}` needs all of the teacher's probabilities; set `cache: none`"
            )
        if self.cache == "top_k" and self.entries < 2:
            raise ValueError("`cache: top_k` needs 2 `entries` or more: one stands for all other tokens")
        return self


class FinalPhase(Settings):
    """One phase of the final training."""

    name: Name
    share: Share
    """Share of the final tokens."""
    mixture: Literal["uniform", "proportional", "influence", "leave_one_out", "recommended"]
    distill: DistillSettings | None = None
    """The teacher of this phase; none by default."""
    learning_rate: Positive | None = None
    schedule: Schedule | None = None
    warmup_share: Share | None = None
    """With any of these in any phase, each phase has a schedule of its own: the paper's pre-training to a tenth, then
    mid-training to zero. What a phase leaves out is that of `final`, but only the first warms up unasked."""


class FinalSettings(OptimisationSettings):
    """The model the run leaves behind: pre-training in phases with different mixtures."""

    tokens: Count = 2_000_000
    seed: int = 7
    evaluations: int = Field(default=4, ge=0)
    """Evenly spaced moments at which probe losses and RankMe are measured, the last included; 0 = none."""
    processes: Count = 1
    """Ranks on this machine that train together, a GPU each where there are GPUs; must divide `batch_sequences`. The
    weights are those of one process up to rounding, and the number may change when a killed run goes on."""
    phases: list[FinalPhase] = Field(
        default=[
            FinalPhase(name="broad", share=0.6, mixture="uniform"),
            FinalPhase(name="focused", share=0.4, mixture="recommended"),
        ],
        min_length=1,
    )

    @model_validator(mode="after")
    def _processes_share_evenly(self) -> FinalSettings:
        if self.batch_sequences % self.processes:
            raise ValueError(
                f"`processes` ({self.processes}) must divide `batch_sequences` ({self.batch_sequences})"
            )
        return self

    @model_validator(mode="after")
    def _shares_are_whole(self) -> FinalSettings:
        total = sum(phase.share for phase in self.phases)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the shares of the phases sum to {total:.6g} and must sum to 1")
        return self


class CompressionSettings(OptimisationSettings):
    """Mid-training on what helps (section 6, Eqs. 7 and 8), between pre-training and post-training."""

    tokens: Count = 1_000_000
    """Tokens of one round."""
    rounds: Count = 2
    """Most rounds of scoring and training (paper: 2)."""
    sources: list[str] | None = None
    """The raw mid-training set; all sources when absent."""
    mixture: Literal["uniform", "proportional", "influence", "leave_one_out", "recommended"] = "uniform"
    """Weights of the uncompressed set, which is trained beside it at equal tokens."""
    seeds: list[int] = Field(default=[1], min_length=1)
    preconditioner: Literal["identity", "adam", "datainf", "ekfac"] = "identity"
    context: Count = 256
    """Tokens of each document that are scored."""
    documents_per_source: Count | None = None
    """Raw documents of each source; all when absent."""
    probe_documents: Count = 200
    least_positive: Share = 0.02
    """Stop when no more than this share of the documents has positive benefit."""
    gathered: Share = 0.1
    """Stop when the spread of the benefits has fallen to this share of the first round's."""
    distill: DistillSettings | None = None
    """A teacher for two further arms; the model then comes from the taught, compressed one."""
