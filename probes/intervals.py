"""Bits per byte of a set of documents, and how sure it is: bootstrap over documents, paired differences.

Bits per byte is a ratio over the corpus, sum of nats / sum of bytes / ln 2, not a mean of ratios of
documents. A bootstrap resamples whole documents, since tokens of one document are not independent. It tells
how far the choice of the probe's documents matters; it says nothing about another training seed
(`mixing.comparison` does).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation.errors import DataError, RecipeError

RESAMPLES = 1000
LEVEL = 0.9


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile interval.

    value : the estimate on all documents
    low, high : bounds that hold the true value with probability `level`; equal to `value` with one document
    """

    value: float
    low: float
    high: float
    level: float = LEVEL
    documents: int = 0

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def bits_per_byte(table: pa.Table) -> float:
    """Bits per byte over all documents of a likelihood table: sum(nats) / sum(bytes) / ln 2.

    Example: two documents of 10 and 30 bytes with 20 and 10 nats: 30 / 40 / ln 2 = 1.082.
    Raises DataError when there are no bytes.
    """
    nats, size = _columns(table)
    return float(nats.sum() / size.sum() / math.log(2))


def nats_per_token(table: pa.Table) -> float:
    """Nats per token over all documents of a likelihood table; depends on the tokenizer."""
    tokens = np.asarray(table["tokens"].to_numpy(), dtype=np.float64).sum()
    if tokens <= 0:
        raise DataError("The likelihood table holds no tokens", remedy="Give probes that hold text")
    return float(np.asarray(table["nats"].to_numpy()).sum() / tokens)


def bootstrap_bits_per_byte(
    table: pa.Table, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Bits per byte with a percentile interval from resampling documents."""
    nats, size = _columns(table)
    draws = ratio_draws(nats[None], size, seed=seed, resamples=resamples)[:, 0] / math.log(2)
    return _interval(bits_per_byte(table), draws, level, len(nats))


def paired_difference(
    table_a: pa.Table, table_b: pa.Table, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Bits per byte of `a` minus those of `b` on the same documents; negative: `a` predicts them better.

    Documents are joined by id, never by position, and both sides of a pair are resampled together, which
    takes the difficulty of the documents out of the difference. Order of rows does not change the result.
    Raises DataError when the tables do not hold the same documents (or other bytes under the same id).
    """
    nats, size, _ = align([table_a, table_b])
    draws = ratio_draws((nats[0] - nats[1])[None], size, seed=seed, resamples=resamples)[:, 0] / math.log(2)
    value = float((nats[0] - nats[1]).sum() / size.sum() / math.log(2))
    return _interval(value, draws, level, len(size))


def align(tables: list[pa.Table]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Join likelihood tables by document id, in the order of the ids.

    Returns nats [tables, documents], bytes [documents], ids. Raises DataError as `paired_difference`.
    """
    columns = [_by_id(table) for table in tables]
    ids, size, _ = columns[0]
    for other_ids, other_size, _ in columns[1:]:
        if ids != other_ids:
            only = sorted(set(ids) ^ set(other_ids))
            raise DataError(
                f"The tables to compare do not hold the same documents: {len(only)} are in one "
                f"only, such as {only[0]}",
                remedy="Score both models on the same probe",
            )
        changed = np.flatnonzero(size != other_size)
        if changed.size:
            raise DataError(
                f"Document {ids[int(changed[0])]} has {size[changed[0]]:.0f} bytes in one table and "
                f"{other_size[changed[0]]:.0f} in the other",
                remedy="Score both models on the same probe",
            )
    return np.stack([nats for _, _, nats in columns]), size, ids


def ratio_draws(numerators: np.ndarray, denominator: np.ndarray, *, seed: int, resamples: int) -> np.ndarray:
    """Bootstrap draws of sum(numerator) / sum(denominator) over resampled documents.

    numerators [k, documents], denominator [documents] -> draws [resamples, k]. All k rows see the same
    resampled documents, so draws of different rows are paired.
    """
    if resamples < 1:
        raise RecipeError("A bootstrap needs at least one resample", where="resamples")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xB007]))
    documents = denominator.shape[0]
    draws = np.empty((resamples, numerators.shape[0]))
    # Chunks bound the memory; the stream of random numbers does not depend on their size.
    chunk = max(1, 4_000_000 // max(documents, 1))
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        picks = rng.integers(0, documents, size=(count, documents))
        offsets = picks + documents * np.arange(count)[:, None]
        weights = np.bincount(offsets.reshape(-1), minlength=count * documents).reshape(count, documents)
        weights = weights.astype(np.float64)
        total = weights @ denominator
        # All documents drawn empty: as good as no information, take the whole corpus.
        empty = total <= 0
        if empty.any():
            weights[empty] = 1.0
            total = weights @ denominator
        draws[start : start + count] = (weights @ numerators.T) / total[:, None]
    return draws


def percentile_interval(draws: np.ndarray, level: float) -> tuple[float, float]:
    """The central interval that holds `level` of the draws."""
    if not 0 < level < 1:
        raise RecipeError(
            f"An interval of level {level} does not exist", where="level", remedy="Choose 0.9, say"
        )
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _interval(value: float, draws: np.ndarray, level: float, documents: int) -> Interval:
    low, high = percentile_interval(draws, level)
    return Interval(value, low, high, level, documents)


def _columns(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    _, size, nats = _by_id(table)
    return nats, size


def _by_id(table: pa.Table) -> tuple[list[str], np.ndarray, np.ndarray]:
    ids = table["id"].to_pylist()
    if len(set(ids)) != len(ids):
        double = min(i for i, count in Counter(ids).items() if count > 1)
        raise DataError(
            f"Document {double} has more than one row",
            remedy="Give one probe and one model at a time; a document is scored once",
        )
    size = np.asarray(table["bytes"].to_numpy(), dtype=np.float64)
    nats = np.asarray(table["nats"].to_numpy(), dtype=np.float64)
    if not ids or size.sum() <= 0:
        raise DataError(
            "The likelihood table holds no text", remedy="Give probes that hold documents with text"
        )
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return [ids[i] for i in order], size[order], nats[order]
