"""What the page knows about a run: one frozen record for each kind of file of the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mixing.mixture import Mixture


@dataclass(frozen=True)
class Problem:
    """A file that is there but cannot be read as what it should be."""

    where: str
    why: str


@dataclass(frozen=True)
class Effect:
    """Leave-one-out: how many bits per byte a capability loses when a source is removed; positive: the source helps."""

    source: str
    capability: str
    delta: float
    low: float | None
    high: float | None
    per_seed: Mapping[str, float] = field(default_factory=dict)

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Trajectory:
    """The same difference along the training run."""

    source: str
    capability: str
    steps: tuple[float, ...]
    delta: tuple[float, ...]


@dataclass(frozen=True)
class LeaveOneOut:
    """`leave_one_out.json`."""

    unit: str
    tokens_per_run: float | None
    seeds: tuple[str, ...]
    effects: tuple[Effect, ...]
    trajectories: tuple[Trajectory, ...]
    notes: tuple[str, ...] = ()
    level: float = 0.9


@dataclass(frozen=True)
class Benefit:
    """Mean benefit of a source's tokens for a capability; positive lowers the probe loss."""

    source: str
    capability: str
    benefit: float
    low: float | None
    high: float | None
    documents: int | None
    tokens: int | None


@dataclass(frozen=True)
class Density:
    """Eq. 6 for one source: rho, the weight that follows, and whether rho was negative and clipped."""

    source: str
    rho: float
    rho_low: float | None
    rho_high: float | None
    weight: float
    low: float | None
    high: float | None
    clipped: bool


@dataclass(frozen=True)
class Reference:
    """What one reference model says."""

    name: str
    table: tuple[Benefit, ...]
    weights: tuple[Density, ...]
    noise_below_uniform: bool | None
    agreement: Mapping[str, float] | None


@dataclass(frozen=True)
class Influence:
    """`influence/summary.json`; `rule` and `normalise` say how checkpoints were joined."""

    references: tuple[Reference, ...]
    chosen: str
    why: str
    pilots: tuple[Mapping[str, Any], ...]
    rule: Any
    normalise: str


@dataclass(frozen=True)
class Difference:
    """A mixture against another on one capability (or "mean"); negative: fewer bits, better.

    margin, p_equivalence, equivalent : what counts as no difference, and whether the two are equal within it
    p_bootstrap : over seeds and documents, where likelihoods of documents are known
    """

    mixture: str
    against: str
    capability: str
    difference: float
    relative: float | None
    low: float | None
    high: float | None
    p: float | None
    per_seed: tuple[float, ...]
    smallest_detectable: float | None
    verdict: str
    p_corrected: float | None = None
    margin: float | None = None
    p_equivalence: float | None = None
    equivalent: bool | None = None
    p_bootstrap: float | None = None


@dataclass(frozen=True)
class ComparedRun:
    """One trained model of the comparison on one capability."""

    mixture: str
    seed: str
    capability: str
    bits_per_byte: float


@dataclass(frozen=True)
class Comparison:
    """`comparison.json`."""

    unit: str
    mixtures: Mapping[str, Mapping[str, float]]
    seeds: tuple[str, ...]
    runs: tuple[ComparedRun, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()
    level: float = 0.9
    rule: str = ""

    def baseline(self, against: str, capability: str) -> float | None:
        """Bits per byte of a mixture, the mean over seeds (and over capabilities for "mean")."""
        values: dict[str, list[float]] = {}
        for run in self.runs:
            if run.mixture == against and capability in ("mean", run.capability):
                values.setdefault(run.capability, []).append(run.bits_per_byte)
        means = [sum(v) / len(v) for v in values.values()]
        return sum(means) / len(means) if means else None


@dataclass(frozen=True)
class ReadCounts:
    """`documents/<source>/read.json`."""

    source: str
    counts: Mapping[str, int]
    broken_examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Stage:
    """A `stage.json`; where it is, relative to the run."""

    where: str
    name: str
    status: str
    wall_seconds: float | None
    cpu_seconds: float | None
    flops: float | None
    tokens: float | None
    seed: Any
    versions: Mapping[str, str]
    attempts: int
    started: str


@dataclass(frozen=True)
class Curve:
    """Rows of a `metrics.jsonl` or `evaluations.jsonl` as columns; `name` is the folder, relative to the run."""

    name: str
    columns: Mapping[str, tuple[float, ...]]

    def points(self, x: str, y: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Two columns, or empty ones where either is missing."""
        if x in self.columns and y in self.columns:
            return self.columns[x], self.columns[y]
        return (), ()


@dataclass(frozen=True)
class Phase:
    """A part of pre-training with its own mixture; `share` of the training, from 0 to 1."""

    name: str
    share: float
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Trained:
    """`training/<name>/`: the result, the curve of the updates, the phases, and the rows of `evaluations.jsonl`."""

    name: str
    result: Mapping[str, Any]
    curve: Curve | None
    phases: tuple[Phase, ...]
    evaluations: Curve | None = None


@dataclass(frozen=True)
class Model:
    """The final Hugging Face folder: its files by size in bytes, its config, its parameters, and `check.json`.

    logit_difference : the largest between our logits and those of transformers, as the run measured it
    """

    files: Mapping[str, int]
    config: Mapping[str, Any]
    parameters: int | None
    problems: tuple[str, ...]
    logit_difference: float | None


@dataclass(frozen=True)
class Setting:
    """A setting that the papers leave open."""

    setting: str
    value: str
    paper: str
    why: str


@dataclass(frozen=True)
class LabelRule:
    """A label that the recipe states for the raters: what it is given to, and why."""

    task: str
    name: str
    label: float
    given_to: str
    why: str


@dataclass(frozen=True)
class RecipeFacts:
    """What the page takes from recipe.yaml."""

    text: str = ""
    capabilities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: tuple[LabelRule, ...] = ()
    phases: tuple[Mapping[str, Any], ...] = ()
    checkpoint_rule: Any = "step"
    seed: Any = None


@dataclass(frozen=True)
class Recommendation:
    """`recommendation/recommendation.json`: the name of the chosen mixture and the reason."""

    mixture: str
    why: str


@dataclass(frozen=True)
class RunFacts:
    """All that the page shows; what a run does not have is None or empty."""

    name: str
    recipe: RecipeFacts
    recommended: Mixture | None
    recommendation: Recommendation | None
    mixtures: Mapping[str, Mixture]
    leave_one_out: LeaveOneOut | None
    influence: Influence | None
    comparison: Comparison | None
    reads: tuple[ReadCounts, ...]
    funnel: tuple[tuple[str, str, int], ...]
    warnings: tuple[str, ...]
    token_counts: tuple[Mapping[str, Any], ...]
    raters: tuple[tuple[str, Mapping[str, Any]], ...]
    rater_models: Mapping[str, str]
    label_counts: Mapping[tuple[str, str], int]
    curves: Mapping[str, tuple[Curve, ...]]
    trained: Mapping[str, Trained]
    model: Model | None
    stages: tuple[Stage, ...]
    settings: tuple[Setting, ...]
    problems: tuple[Problem, ...]
    compression: Any = None
    front: Any = None
    token_benefits: Any = None

    @property
    def capabilities(self) -> Mapping[str, tuple[str, ...]]:
        """Capabilities by source, as the recipe gives them."""
        return self.recipe.capabilities

    @property
    def capability_names(self) -> list[str]:
        """Capabilities that were measured (else those that the recipe names), in the recipe's order."""
        found: dict[str, None] = {}
        if self.comparison:
            found |= dict.fromkeys(r.capability for r in self.comparison.runs)
        if self.leave_one_out:
            found |= dict.fromkeys(e.capability for e in self.leave_one_out.effects)
        if self.influence:
            found |= dict.fromkeys(b.capability for r in self.influence.references for b in r.table)
        stated = dict.fromkeys(c for names in self.capabilities.values() for c in names)
        measured = [name for name in found or stated if name != "mean"]
        order = [name for name in stated if name in measured]
        return order + [name for name in measured if name not in stated]
