"""The recipe's blocks about models and mixtures: size, proxy runs, leave-one-out, DoReMi, influence, comparison."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from recipes.executor_settings import ExecutorSettings
from recipes.settings import Count, Positive, Settings, Share

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
