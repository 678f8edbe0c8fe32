"""The recipe's blocks about models: size, proxy runs, influence, mixtures, comparison, final training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from recipes.executor_settings import ExecutorSettings
from recipes.settings import Count, Name, Positive, Settings, Share

Method = Literal["uniform", "proportional", "influence", "leave_one_out"]
Schedule = Literal["linear_to_tenth", "linear_to_zero", "cosine", "constant", "wsd"]


class ModelSettings(Settings):
    """A decoder of the MobileLLM-R1 family (section 3.1): QK-norm, grouped queries, tied embeddings."""

    layers: Count = 4
    dim: Count = 128
    heads: Count = 4
    kv_heads: Count = 2
    ffn_dim: Count = 384
    max_positions: Count = 2048
    rope_theta: Positive = 10_000.0

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSettings:
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(
                f"`dim` ({self.dim}) divided by `heads` ({self.heads}) must be an even whole number"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"`heads` ({self.heads}) must be a multiple of `kv_heads` ({self.kv_heads})")
        return self


class OptimisationSettings(Settings):
    """How a model is trained from scratch; the defaults are MobileLLM-R1's where it states them (Table 2)."""

    sequence_tokens: Count = 256
    batch_sequences: Count = 16
    learning_rate: Positive = 4e-3
    warmup_share: Share = 0.05
    schedule: Schedule = "linear_to_tenth"
    weight_decay: float = Field(default=0.1, ge=0.0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` moves the matrices of the layers by Muon and the rest by AdamW, at the same rate."""
    clip: Positive = 1.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    average_from: Share | None = None
    """Average the weights over the part of training after this share; steadies small runs."""
    max_epochs: Positive = 4.0
    """How often a document may be read at most in one run."""
    resume_every: Count = 100
    """Steps between the states from which a killed run continues."""
    loggers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """Where the curves go besides the run folder's JSON lines."""


class ProxySettings(OptimisationSettings):
    """The small runs behind leave-one-out, influence and the comparison."""

    tokens: Count = 1_000_000
    """Tokens of one run."""
    evaluations: Count = 4
    """Evenly spaced moments, the last step included, at which the probes are measured."""
    match_repetition: bool = False
    """Cut every source to the share (proxy tokens) / (final tokens), so that a mixture repeats its sources as often in
    a proxy run as in the final training; otherwise a small source looks better than it is."""
    executor: ExecutorSettings | None = None
    """Where proxy runs are made: a task of its own for each, on a Ray cluster or as a Slurm array. Absent: in processes
    of this machine. The numbers do not depend on it."""


class LeaveOneOutSettings(Settings):
    """Runs without one source (Eq. 1)."""

    seeds: list[int] = Field(default=[1], min_length=1)
    reading: Literal["replaced", "missing"] = "replaced"
    """`replaced`: the other sources fill the budget (the paper's reading); `missing`: the tokens are not replaced."""
    shrink: Share = 0.5
    """How far the weights are pulled to uniform; nobody published the map from differences to weights."""


class DoremiSettings(Settings):
    """DoReMi (arXiv 2305.10429): a reference model, and a proxy trained on its excess losses."""

    seed: int = 1
    """Of the draw of the weights and of the order of the data, of both models."""
    eta: Positive = 1.0
    """Step of the domain weights; .1 where nearly all weight goes to one source."""
    smoothing: Share = 1e-3
    """c: share of the uniform mixture in the domain weights after each update."""


class InfluenceSettings(Settings):
    """Influence of training documents on the probes (Eqs. 2 to 6)."""

    protocol: Literal["mixwright", "mobilellm-r1", "automixer"] = "mixwright"
    """A published protocol by name sets every field below that it speaks of and that is not given here:
    `mobilellm-r1` is the paper's, `automixer` the one that it refers to. `mixwright` is this list of defaults."""
    references: list[Literal["domain_models", "uniform_proxy"]] = Field(
        default=["uniform_proxy"], min_length=1
    )
    """Models whose checkpoints are asked: `uniform_proxy` is one model trained on the uniform mixture, as in section 6
    of the paper; `domain_models` is the paper's protocol for pre-training, which predicted retraining worse and paid
    for noise (docs/fidelity.md)."""
    choose: Literal["auto", "domain", "domain, bounded step", "uniform", "uniform, bounded step"] = "auto"
    """Which weights make the mixture: Eq. 6 at the domain models (`domain`) or at the uniform proxy (`uniform`), or a
    bounded step from the uniform mixture. `auto`: of those that keep every source without a capability below its
    uniform share, the one that agrees best with leave-one-out."""
    checkpoints: Count = 10
    """T, evenly spaced (paper: 10)."""
    checkpoint_weights: Literal["step", "learning_rate", "uniform", "last", "best"] = "step"
    """alpha of Eq. 5: proportional to the step (paper) or to the learning rate in the run's log (TracIn), equal, the
    last checkpoint only, or of each capability the one with the least probe loss (AutoMixer)."""
    preconditioner: Literal["identity", "adam", "datainf", "ekfac"] = "adam"
    """P of v = P^-1 grad L(probe); the paper names AutoMixer, which is known to use DataInf."""
    parameters: Literal["all", "embedding_and_output"] = "all"
    """Parameters that count; AutoMixer takes the embedding and output layers."""
    normalise: Literal["none", "rms", "cosine"] = "none"
    """`rms`: every checkpoint and probe counts alike; `cosine`: every document's gradient too, at 3 forward passes."""
    reduction: Literal["mean", "sum"] = "mean"
    """The loss of a document: mean or sum over its tokens (Eq. 6 multiplies by their number)."""
    engine: Literal[
        "auto",
        "forward",
        "ghost",
        "ghost_low_rank",
        "finite_difference",
        "finite_difference_one_sided",
        "explicit",
    ] = "auto"
    """`auto`: the cheapest that agrees with the exact reference on a pilot."""
    documents_per_source: Count = 200
    group_documents: Annotated[int, Field(ge=0)] = 0
    """0 scores each document; n scores averaged gradients of random groups of n documents."""
    half_width: Share = 0.0
    """Above 0: documents are sampled until every source weight is known to plus or minus this (0.02: 2 points), at
    `documents_per_source` at most. 0 scores all of them."""
    curvature_documents: Count = 64
    """Documents that datainf and ekfac measure the curvature on."""
    damping: Positive = 0.1
    """For datainf and ekfac: the share of the mean curvature that is added to it."""
    probe_documents: Count = 200
    """Probe documents behind one direction."""
    context: Count = 256
    windows: Literal["first", "all"] = "first"
    """Longer documents: their first `context` tokens, or all of them in pieces."""
    bounded_step: Positive = 1.0
    """Largest change of a log weight in the bounded step."""
    floor: Share = 0.0
    """Least weight of a source, as a share of its uniform weight."""
    resample_checkpoints: bool = True
    """Whether intervals are over checkpoints as well as documents."""

    @model_validator(mode="before")
    @classmethod
    def _named_protocol(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("protocol", "mixwright") == "mixwright":
            return given
        from mixing.influence.settings import PROTOCOLS

        return {**PROTOCOLS.get(given["protocol"], {}), **given}

    @model_validator(mode="after")
    def _fits_together(self) -> InfluenceSettings:
        if self.half_width and self.normalise == "rms":
            raise ValueError(
                "`half_width` samples documents, and `normalise: rms` needs the benefits of all of them"
            )
        if self.group_documents and self.normalise == "cosine":
            raise ValueError("`normalise: cosine` belongs to single documents; set `group_documents: 0`")
        return self

    @model_validator(mode="after")
    def _choice_is_computed(self) -> InfluenceSettings:
        needed = {"domain": "domain_models", "uniform": "uniform_proxy"}.get(self.choose.split(",")[0])
        if needed is not None and needed not in self.references:
            raise ValueError(f"`choose: {self.choose}` needs `{needed}` among `references`")
        return self


class ComparisonSettings(Settings):
    """The proof: models trained on each mixture at equal tokens, compared on text that nothing has seen."""

    mixtures: list[Method] = Field(default=["uniform", "influence", "leave_one_out"], min_length=2)
    seeds: list[int] = Field(default=[101, 102, 103], min_length=2)

    @model_validator(mode="after")
    def _has_a_baseline(self) -> ComparisonSettings:
        if "uniform" not in self.mixtures:
            raise ValueError("`mixtures` must contain `uniform`, against which the others are compared")
        return self


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


class GeneralSettings(Settings):
    """Fine-tuning on general chats, before or together with the reasoning chats (MobileLLM-R1, table 8)."""

    data: str
    """A .jsonl file of {"messages": [...]}, relative to the recipe."""
    schedule: Literal["in_turn", "joint"] = "in_turn"
    """`in_turn`: a run of its own comes first, with the settings below. `joint`: one run over both."""
    epochs: Count = 2
    learning_rate: Positive = 5e-6
    warmup_share: Share = 0.03


class ShortenSettings(Settings):
    """Shortening the thoughts of the reasoning chats by data, see training.shortening; in this order."""

    drop_longest: Share = 0.0
    condition: bool = False
    truncate: Count | None = None


class SftSettings(Settings):
    """Supervised fine-tuning on reasoning chats; `generated` makes them from worked problems."""

    data: str = "generated"
    """`generated`, or a .jsonl file of {"messages": [...]}, relative to the recipe."""
    examples: Count = 4000
    epochs: Count = 2
    sequence_tokens: Count = 256
    batch_sequences: Count = 16
    learning_rate: Positive = 1e-3
    warmup_share: Share = 0.03
    seed: int = 11
    general: GeneralSettings | None = None
    shorten: ShortenSettings | None = None
    recompute: bool = False
    """Recompute activations in the backward pass, for rows of up to 32k tokens."""

    def deciding(self) -> dict[str, Any]:
        """For the stage's key; what is not used is left out, so that older runs keep theirs."""
        found = self.model_dump(exclude={"recompute"})
        return {k: v for k, v in found.items() if k not in ("general", "shorten") or v is not None}


class GrpoSettings(Settings):
    """Group-relative policy optimisation on a task whose answers can be checked."""

    data: str = "generated"
    """`generated`, or a .jsonl file of {"prompt", "answer"}, relative to the recipe."""
    steps: Count = 20
    prompts_per_step: Count = 8
    group: Count = 8
    """G: answers sampled for each prompt."""
    temperature: Positive = 1.0
    thinking_tokens: Count = 48
    """Budget for thinking; then the closing string is forced."""
    answer_tokens: Count = 16
    learning_rate: Positive = 2e-4
    length_reward: bool = True
    """GRPO-LEAD's length term and difficulty weights."""
    held_out: Count = 128
    """Problems, not trained on, on which accuracy is measured before and after."""
    seed: int = 13


class PostTrainingSettings(Settings):
    """What follows pre-training."""

    sft: SftSettings | None = SftSettings()
    grpo: GrpoSettings | None = GrpoSettings()

    @model_validator(mode="after")
    def _grpo_follows_sft(self) -> PostTrainingSettings:
        if self.grpo is not None and self.sft is None:
            raise ValueError("`grpo` needs `sft`: a model that never saw a chat cannot answer one")
        return self
