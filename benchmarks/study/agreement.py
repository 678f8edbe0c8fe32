"""Does influence predict retraining? The measures: scores against leave-one-out and against random mixtures.

Truth: the change of a capability's loss (bits per byte, mean over its sources' probes) when a source is left out
and its tokens are replaced, and the loss of models trained on random mixtures of equal size. Prediction: the
density of Eq. 6 of each source for that capability; of a mixture, minus the densities' mean under its shares.
Spearman's correlation across sources is the measure that the project set itself (goal .8).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.study.corpora import CAPABILITIES, NOISE, Corpora
from benchmarks.study.influence import Benefits
from benchmarks.study.mixtures import left_out_effects
from benchmarks.study.runs import finished, probe_losses, study_settings
from benchmarks.study.shape import StudyShape
from mixing.influence import checkpoint_weights, positive_weights
from mixing.influence.directions import PRECONDITIONERS

RULES = ("step", "learning_rate", "uniform", "last")
NORMALISATIONS = ("none", "cosine")
DRAWS = 2000
LEVEL = 0.9


@dataclass(frozen=True)
class Scheme:
    """One way to turn benefits into densities; the paper's protocol is the first of `schemes()`."""

    reference: str = "domain"
    preconditioner: str = "identity"
    rule: str = "step"
    normalise: str = "none"

    @property
    def name(self) -> str:
        return f"{self.reference}, {self.preconditioner}, {self.rule}, {self.normalise}"


@dataclass(frozen=True)
class Truth:
    """Leave-one-out deltas [seeds, sources, capabilities], and the losses of random mixtures.

    changes : [runs, capabilities], loss minus that of the uniform mixture with the same seed
    shares  : [runs, sources]
    """

    sources: tuple[str, ...]
    capabilities: tuple[str, ...]
    deltas: np.ndarray
    changes: np.ndarray
    shares: np.ndarray

    @property
    def delta(self) -> np.ndarray:
        return self.deltas.mean(axis=0)

    @property
    def spread(self) -> np.ndarray:
        """Standard error of `delta` by capability, from the seeds' differences pooled over the sources."""
        return self._pooled(self.deltas)

    @property
    def spread_between(self) -> np.ndarray:
        """The same without what all sources of a seed share, the noise of its baseline, which orders nothing."""
        return self._pooled(self.deltas - self.deltas.mean(axis=1, keepdims=True))

    def _pooled(self, deltas: np.ndarray) -> np.ndarray:
        seeds = len(deltas)
        if seeds < 2:
            return np.zeros(len(self.capabilities))
        return np.sqrt(deltas.var(axis=0, ddof=1).mean(axis=0) / seeds)


def schemes(references: Sequence[str]) -> list[Scheme]:
    """Every combination, the paper's first where domain models were scored."""
    grid = itertools.product(references, PRECONDITIONERS, RULES, NORMALISATIONS)
    return [Scheme(*combination) for combination in grid]


def read_truth(out: Path, corpora: Corpora, shape: StudyShape, split: str = "search") -> Truth:
    """Truth on one split: `search` is what the scores predict, `test` other text of the same sources."""
    rows = left_out_effects(out, shape, split, truth=True)
    capabilities, sources = tuple(CAPABILITIES), corpora.sources
    seeds = sorted({row["seed"] for row in rows})
    deltas = np.full((len(seeds), len(sources), len(capabilities)), np.nan)
    for row in rows:
        at = seeds.index(row["seed"]), sources.index(row["source"]), capabilities.index(row["capability"])
        deltas[at] = row["delta"]
    base = probe_losses(finished(out, "reference")[f"uniform-seed{shape.search_seeds[0]}"])
    drawn = [r for k, r in sorted(finished(out, "proxies").items()) if k.startswith("random")]
    losses = [probe_losses(r) for r in drawn]
    changes = np.array([[x[f"{split}/{c}"] - base[f"{split}/{c}"] for c in capabilities] for x in losses])
    shares = np.array([[r.run.weights.get(s, 0.0) for s in sources] for r in drawn])
    whole = ~np.isnan(deltas).any(axis=(1, 2))  # a seed whose runs are not all made is left out
    return Truth(sources, capabilities, deltas[whole], changes, shares)


def document_benefits(
    scored: Sequence[Benefits], scheme: Scheme, capability: str, rates: Mapping[int, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joint benefit of every document for a capability [n], with sources and tokens."""
    wanted = f"domain-{capability}-seed" if scheme.reference == "domain" else scheme.reference
    own = {b.step: b for b in scored if b.reference.startswith(wanted)}
    alphas = checkpoint_weights(list(own), scheme.rule, rates)  # type: ignore[arg-type]
    total = sum(
        alphas[step] * b.of(scheme.preconditioner, capability, cosine=scheme.normalise == "cosine")
        for step, b in own.items()
    )
    first = next(iter(own.values()))
    return np.asarray(total), first.sources, first.tokens


def source_densities(
    benefit: np.ndarray,
    names: np.ndarray,
    tokens: np.ndarray,
    sources: Sequence[str],
    draws: int,
    seed: int = 0,
) -> np.ndarray:
    """Token-weighted mean by source [1 + draws, sources]: the estimate, then draws that resample documents."""
    found = np.zeros((1 + draws, len(sources)))
    for at, source in enumerate(sources):
        mine = np.flatnonzero(names == source)
        picks = np.random.default_rng([seed, at]).integers(0, len(mine), size=(draws, len(mine)))
        rows = np.vstack([np.arange(len(mine)), picks])
        values, weights = benefit[mine], tokens[mine].astype(float)
        found[:, at] = (values * weights)[rows].sum(axis=1) / weights[rows].sum(axis=1)
    return found


def correlation(left: np.ndarray, right: np.ndarray, *, ranks: bool = True) -> float:
    """Spearman's or Pearson's; 0 where one side is constant."""
    return float(row_correlations(left[None], right[None], ranks=ranks)[0])


def row_correlations(left: np.ndarray, right: np.ndarray, *, ranks: bool = True) -> np.ndarray:
    """Spearman's or Pearson's correlation of each row of [n, m] with the same row of the other, [n]."""
    a, b = (stats.rankdata(v, axis=1) if ranks else v for v in (left, right))
    a, b = (v - v.mean(axis=1, keepdims=True) for v in (a, b))
    size = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), size, out=np.zeros(len(a)), where=size > 0)


def partial_correlation(left: np.ndarray, right: np.ndarray, given: np.ndarray) -> float:
    """Spearman's correlation of what is left of both after a line through the ranks of `given`."""
    a, b, g = (stats.rankdata(v) for v in (left, right, given))
    design = np.column_stack([np.ones_like(g), g])
    rest = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (a, b)]
    return correlation(rest[0], rest[1], ranks=False) if min(np.ptp(r) for r in rest) > 1e-9 else 0.0


def left_out_agreement(rho: np.ndarray, truth: Truth, at: int, *, seed: int = 0) -> dict[str, object]:
    """Correlations across sources for capability `at`; `rho` [1 + draws, sources], draws beside the estimate.

    The interval takes in the documents (rows of rho), the seeds (normal, pooled spread) and the sources
    (resampled): it says what another study of this kind might have found.
    """
    rng = np.random.default_rng([seed, at])
    draws = len(rho) - 1
    noise = rng.standard_normal((draws, len(truth.sources))) * truth.spread_between[at]
    picks = rng.integers(0, len(truth.sources), size=(draws, len(truth.sources)))
    rows = np.arange(draws)[:, None]
    sampled = row_correlations(rho[1:][rows, picks], (truth.delta[:, at] + noise)[rows, picks])
    return {
        "spearman": correlation(rho[0], truth.delta[:, at]),
        "pearson": correlation(rho[0], truth.delta[:, at], ranks=False),
        "draws": sampled,
    }


def mixture_agreement(
    rho: np.ndarray, truth: Truth, at: int, own: np.ndarray, *, seed: int = 0
) -> dict[str, object]:
    """Linear datamodelling score over the random mixtures: predicted -sum (w - uniform) rho against the change.

    partial : after the share of the capability's own sources is taken out of both
    """
    predicted = -(truth.shares - 1 / len(truth.sources)) @ rho
    actual, n = truth.changes[:, at], len(truth.changes)
    picks = np.random.default_rng([seed, 7]).integers(0, n, size=(500, n))
    return {
        "lds": correlation(predicted, actual),
        "lds_pearson": correlation(predicted, actual, ranks=False),
        "lds_partial": partial_correlation(predicted, actual, truth.shares @ own),
        "lds_draws": row_correlations(predicted[picks], actual[picks]),
    }


def interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def evaluate_scheme(
    scheme: Scheme, scored: Sequence[Benefits], truth: Truth, rates: Mapping[int, float], draws: int
) -> dict[str, object]:
    """All that is reported of one scheme."""
    row: dict[str, object] = {"scheme": scheme}
    densities, sampled, lds = [], [], []
    for at, capability in enumerate(truth.capabilities):
        rho = source_densities(*document_benefits(scored, scheme, capability, rates), truth.sources, draws)
        own = np.array([float(s in CAPABILITIES[capability]) for s in truth.sources])
        left = left_out_agreement(rho, truth, at)
        mixed = mixture_agreement(rho[0], truth, at, own)
        row |= {f"{key}/{capability}": value for key, value in (left | mixed).items()}
        densities.append(rho[0])
        sampled.append(left["draws"])
        lds.append(mixed["lds_draws"])
    for key in ("spearman", "pearson", "lds", "lds_partial"):
        row[key] = float(np.mean([row[f"{key}/{c}"] for c in truth.capabilities]))  # type: ignore[arg-type]
    row["draws"], row["lds_draws"] = np.mean(sampled, axis=0), np.mean(lds, axis=0)
    row["densities"] = np.array(densities)
    joint = dict(zip(truth.sources, np.mean(densities, axis=0).tolist(), strict=True))
    row["noise"] = positive_weights(joint)[NOISE]
    row["noise_ranks"] = [int((d > d[truth.sources.index(NOISE)]).sum()) + 1 for d in densities]
    return row


def read_rates(corpora: Corpora, shape: StudyShape) -> dict[int, float]:
    """Learning rate of the update that led to each checkpoint."""
    train = study_settings(corpora, shape, checkpoints=True).train
    return {step: train.rate(step - 1) for step in shape.checkpoint_steps}
