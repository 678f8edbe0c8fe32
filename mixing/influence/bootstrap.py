"""Bootstrap intervals of source weights over the documents of each source and over the checkpoints.

Documents are drawn with replacement within each source. Checkpoints are drawn with replacement within each
capability, keeping their weights alpha up to a factor: with few of them the intervals say how far the answer
depends on which happened to be saved. Checkpoints of one run are not independent, so this is a measure of
stability, not a claim about another run; leave-one-out over seeds makes that claim.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from curation.errors import DataError
from mixing.influence.joint import BenefitMatrix, Column
from mixing.influence.settings import AssemblySettings
from mixing.influence.weights import RowsMap, SourceWeight, interval, positive_rows

CHUNK = 1 << 22  # picks of documents held at a time


def resampled_densities(
    matrix: BenefitMatrix, factors: Mapping[Column, float], assembly: AssemblySettings
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sources by name, their densities [sources], and those of every resample [resamples, sources].

    Raises DataError for a source without scored tokens.
    """
    columns = [c for c in matrix.columns if factors.get(c, 0.0) > 0]
    alpha = np.array([factors[c] for c in columns])
    values = matrix.values[:, [matrix.columns.index(c) for c in columns]]
    drawn_alpha = _drawn_factors(columns, alpha, assembly)
    names = sorted({source for source, _ in matrix.keys})
    sources = np.array([source for source, _ in matrix.keys], dtype=object)
    joint = matrix.joint(factors)
    rho, drawn = np.zeros(len(names)), np.zeros((assembly.resamples, len(names)))
    for g, name in enumerate(names):
        mask = sources == name
        tokens = matrix.tokens[mask].astype(np.float64)
        if tokens.sum() == 0:
            raise DataError(
                f"No token of source {name!r} was scored",
                where="influence",
                remedy="Give documents of two tokens or more",
            )
        rho[g] = (joint[mask] * tokens).sum() / tokens.sum()
        by_column = _resampled_means(values[mask], tokens, name, assembly)
        drawn[:, g] = (by_column * drawn_alpha).sum(1)
    return names, rho, drawn


def resampled_weights(
    matrix: BenefitMatrix,
    factors: Mapping[Column, float],
    assembly: AssemblySettings,
    to_weights: RowsMap | None = None,
) -> list[SourceWeight]:
    """Eq. 6 with intervals over documents and checkpoints, one entry per source in the order of names."""
    to_rows = to_weights or (lambda rho: positive_rows(rho, assembly.floor))
    names, rho, drawn = resampled_densities(matrix, factors, assembly)
    weights, weights_drawn = to_rows(rho[None])[0], to_rows(drawn)
    return [
        SourceWeight(
            name,
            float(rho[g]),
            *interval(drawn[:, g], assembly.level),
            float(weights[g]),
            *interval(weights_drawn[:, g], assembly.level),
            bool(rho[g] < 0),
        )
        for g, name in enumerate(names)
    ]


def resampled_table(
    matrix: BenefitMatrix, factors_of: Mapping[str, Mapping[Column, float]], assembly: AssemblySettings
) -> list[dict[str, Any]]:
    """Self- and cross-influence: rows `source, capability, benefit, low, high, documents, tokens`."""
    rows = []
    sources = [source for source, _ in matrix.keys]
    tokens = dict.fromkeys(sources, 0)
    for source, count in zip(sources, matrix.tokens.tolist(), strict=True):
        tokens[source] += count
    for capability, factors in factors_of.items():
        names, rho, drawn = resampled_densities(matrix, factors, assembly)
        for g, name in enumerate(names):
            low, high = interval(drawn[:, g], assembly.level)
            rows.append(
                {
                    "source": name,
                    "capability": capability,
                    "benefit": float(rho[g]),
                    "low": low,
                    "high": high,
                    "documents": sources.count(name),
                    "tokens": tokens[name],
                }
            )
    return rows


def _resampled_means(
    values: np.ndarray, tokens: np.ndarray, source: str, assembly: AssemblySettings
) -> np.ndarray:
    """Token-weighted means of the columns [resamples, columns]; the draw depends on seed and source alone."""
    stream = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big")
    rng = np.random.default_rng([assembly.seed, stream])
    n, left, found = len(tokens), assembly.resamples, []
    weighted = np.column_stack([values * tokens[:, None], tokens])
    while left:
        rows = min(left, max(1, CHUNK // n))
        picks = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n)
        sums = counts @ weighted
        found.append(sums[:, :-1] / np.maximum(sums[:, -1:], 1.0))
        left -= rows
    return np.concatenate(found)


def _drawn_factors(columns: list[Column], alpha: np.ndarray, assembly: AssemblySettings) -> np.ndarray:
    """Factors of the columns in every resample [resamples, columns]."""
    if not assembly.resample_checkpoints:
        return np.broadcast_to(alpha, (assembly.resamples, len(columns)))
    rng = np.random.default_rng([assembly.seed, 3])
    result = np.zeros((assembly.resamples, len(columns)))
    for capability in dict.fromkeys(c for c, _ in columns):
        its = np.array([at for at, (c, _) in enumerate(columns) if c == capability])
        counts = rng.multinomial(len(its), np.full(len(its), 1 / len(its)), size=assembly.resamples)
        raised = counts * alpha[its]
        result[:, its] = raised / raised.sum(1, keepdims=True) * alpha[its].sum()
    return result
