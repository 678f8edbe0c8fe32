"""Eq. 6: from joint benefits to mixture weights, with bootstrap intervals; and a bounded step as the other
map.

    rho_g = 1/N_g sum_{x in g} I_joint(x) s_x,   w_g = rho_g / sum rho

with s_x the scored tokens of x, and N_g their sum over the scored documents of source g.

The paper does not say what happens to a source with rho < 0: here it is clipped to zero and named. A
density says where to move a little, not how far (it is a derivative); `trust_region_weights` moves that
little.

Example: two sources, benefits (2, 1) with tokens (1, 3) and (-1,) with (5,): rho = (2 + 3) / 4 = 1.25
and -1, so the weights are 1 and 0, the second clipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from curation.errors import DataError, RecipeError

WeightMap = Callable[[dict[str, float]], dict[str, float]]  # densities to weights
RowsMap = Callable[[np.ndarray], np.ndarray]  # the same for many at once, [n, sources] to [n, sources]


@dataclass(frozen=True)
class SourceWeight:
    """Density and weight of one source with their intervals; `clipped` says that the density was negative."""

    source: str
    rho: float
    rho_low: float
    rho_high: float
    weight: float
    low: float
    high: float
    clipped: bool

    def record(self) -> dict:
        """For JSON."""
        return asdict(self)


def densities(joint: pa.Table) -> dict[str, float]:
    """rho of each source: the token-weighted mean of its documents' benefits."""
    return {name: float((b * s).sum() / s.sum()) for name, (b, s) in _by_source(joint).items()}


def positive_weights(rho: Mapping[str, float], floor: float = 0.0) -> dict[str, float]:
    """w = max(rho, 0) + floor times the mean of max(rho, 0), normalised; uniform when no density is positive.

    >>> positive_weights({"a": 3.0, "b": 1.0, "c": -2.0})
    {'a': 0.75, 'b': 0.25, 'c': 0.0}
    """
    names = list(rho)
    found = positive_rows(np.array([[rho[name] for name in names]]), floor)[0]
    return dict(zip(names, found.tolist(), strict=True))


def positive_rows(rho: np.ndarray, floor: float = 0.0) -> np.ndarray:
    """`positive_weights` of every row of densities [n, sources]."""
    if floor < 0:
        raise RecipeError(f"The floor {floor} is negative", where="influence.floor", remedy="Give 0 or more")
    kept = np.maximum(rho, 0.0)
    raised = kept + floor * kept.mean(-1, keepdims=True)
    total = raised.sum(-1, keepdims=True)
    return np.where(total > 0, raised / np.where(total > 0, total, 1.0), 1.0 / rho.shape[-1])


def trust_region_weights(
    current: Mapping[str, float], rho: Mapping[str, float], step: float
) -> dict[str, float]:
    """An exponentiated-gradient step from the `current` mixture, w ~ current * exp(step * z / 2).

    z is the density in standard deviations over the sources, weighted by the current mixture, and is cut at
    2, so that before normalisation no weight changes by more than a factor exp(step). Only the order and
    the relative distances of the densities count, not their unit. Score again at the new mixture to go on.

    >>> trust_region_weights({"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 0.0}, step=0.0)
    {'a': 0.5, 'b': 0.5}
    """
    same_sources(current, rho)
    names = list(rho)
    moved = trust_region_rows(
        np.array([current[name] for name in names]), np.array([[rho[name] for name in names]]), step
    )[0]
    return dict(zip(names, moved.tolist(), strict=True))


def same_sources(current: Iterable[str], rho: Iterable[str]) -> None:
    """DataError that names a source which has a weight or a density but not both."""
    odd = sorted(set(current) ^ set(rho))
    if odd:
        raise DataError(
            f"Source {odd[0]!r} has a weight or a density but not both",
            where="trust region",
            remedy="Give the same sources to both",
        )


def trust_region_rows(current: np.ndarray, rho: np.ndarray, step: float) -> np.ndarray:
    """`trust_region_weights` of every row of densities [n, sources]; `current` [sources]."""
    share = current / current.sum()
    mean = (share * rho).sum(-1, keepdims=True)
    spread = np.sqrt((share * (rho - mean) ** 2).sum(-1, keepdims=True))
    z = np.where(spread > 0, (rho - mean) / np.where(spread > 0, spread, 1.0), 0.0)
    moved = share * np.exp(step * z.clip(-2.0, 2.0) / 2)
    total = moved.sum(-1, keepdims=True)
    return moved / total


def mixture_weights(
    joint: pa.Table,
    to_weights: WeightMap = positive_weights,
    *,
    resamples: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> list[SourceWeight]:
    """Eq. 6 on the joint benefits (`document, source, tokens, benefit`), one entry per source in the order
    of names.

    Intervals are percentiles at `level` over bootstrap resamples of documents within each source; all
    sources are resampled together for the weights, which depend on each other.
    """
    rho = densities(joint)
    drawn = {
        name: bootstrap_density(b, s, name, seed, resamples) for name, (b, s) in _by_source(joint).items()
    }
    weights = to_weights(rho)
    weights_drawn: dict[str, list[float]] = {name: [] for name in rho}
    for at in range(resamples):
        for name, weight in to_weights({name: float(values[at]) for name, values in drawn.items()}).items():
            weights_drawn[name].append(weight)
    found = []
    for name, value in rho.items():
        rho_low, rho_high = interval(drawn[name], level)
        low, high = interval(np.asarray(weights_drawn[name]), level)
        found.append(SourceWeight(name, value, rho_low, rho_high, weights[name], low, high, value < 0))
    return found


def benefit_table(
    joint_by_capability: Mapping[str, pa.Table], *, resamples: int = 1000, level: float = 0.9, seed: int = 0
) -> list[dict]:
    """Self- and cross-influence: the density of every source for every capability, with its interval.

    Rows `source, capability, benefit, low, high, documents, tokens`.
    """
    rows = []
    for capability, joint in joint_by_capability.items():
        rho = densities(joint)
        for name, (b, s) in _by_source(joint).items():
            low, high = interval(bootstrap_density(b, s, name, seed, resamples), level)
            rows.append(
                {
                    "source": name,
                    "capability": capability,
                    "benefit": rho[name],
                    "low": low,
                    "high": high,
                    "documents": len(b),
                    "tokens": int(s.sum()),
                }
            )
    return rows


def bootstrap_density(
    benefit: np.ndarray, tokens: np.ndarray, source: str, seed: int, resamples: int
) -> np.ndarray:
    """Densities of `resamples` draws with replacement; the draw depends on seed and source alone."""
    stream = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big")
    picks = np.random.default_rng([seed, stream]).integers(0, len(benefit), size=(resamples, len(benefit)))
    counted = np.maximum(tokens[picks].sum(1), 1)
    return (benefit * tokens)[picks].sum(1) / counted


def interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """The central percentiles of `values` that hold the share `level`."""
    if len(values) == 0:
        raise RecipeError(
            "An interval needs resamples", where="influence.resamples", remedy="Give a positive number"
        )
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _by_source(joint: pa.Table) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Benefits and tokens of each source, sources by name; DataError for a source without scored tokens."""
    names = np.asarray(joint["source"].to_pylist(), dtype=object)
    benefit, tokens = joint["benefit"].to_numpy(), joint["tokens"].to_numpy().astype(np.float64)
    found = {}
    for name in sorted(set(names.tolist())):
        mask = names == name
        if tokens[mask].sum() == 0:
            raise DataError(
                f"No token of source {name!r} was scored",
                where="influence",
                remedy="Give documents of two tokens or more",
            )
        found[name] = (benefit[mask], tokens[mask])
    if not found:
        raise DataError("There are no benefits", where="influence", remedy="Score some documents first")
    return found
