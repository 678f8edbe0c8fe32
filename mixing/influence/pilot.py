"""How well an engine agrees with the exact reference on a few documents; measured in every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

# What an engine must reach over all documents: one that computes the derivative itself, one that takes a difference of
# losses, and one that works with directions of low rank or in half precision.
EXACT, DIFFERENCE, APPROXIMATE = 0.999999, 0.99999, 0.9999
MIN_WITHIN_SOURCE = 0.999
MIN_SIGNS = 0.995
# A sign within this share of the typical size of a benefit is not held against an engine: it is a zero.
NEAR_ZERO = 1e-3


@dataclass(frozen=True)
class Agreement:
    """An engine against the reference on the pilot, the worst of the directions.

    pearson            : over all pilot documents
    within_source      : pooled over sources, each centred on its own means; overall agreement alone hides
                         engines that tell sources apart and nothing else
    signs              : share of equal signs
    signs_clear        : the same among benefits above a thousandth of their root mean square
    needed             : the correlation over all documents that this kind of engine must reach
    max_relative_error : largest error over the root mean square of the reference
    """

    engine: str
    reference: str
    documents: int
    pearson: float
    within_source: float
    signs: float
    signs_clear: float
    max_relative_error: float
    needed: float = APPROXIMATE

    @property
    def good(self) -> bool:
        """Whether the engine may score the rest."""
        return (
            self.pearson >= self.needed
            and self.within_source >= MIN_WITHIN_SOURCE
            and self.signs_clear >= MIN_SIGNS
        )

    def record(self) -> dict:
        """For JSON."""
        return asdict(self)


def agreement(
    values: np.ndarray,
    reference: np.ndarray,
    sources: Sequence[str],
    engine: str,
    reference_engine: str,
    needed: float = APPROXIMATE,
) -> Agreement:
    """Compare [n, k] values with their exact counterparts; `sources` [n] names the source of each row."""
    columns = [_column(values[:, k], reference[:, k], sources) for k in range(values.shape[1])]
    pearson, within, signs, clear = (min(c[at] for c in columns) for at in range(4))
    error = max(c[4] for c in columns)
    return Agreement(engine, reference_engine, len(values), pearson, within, signs, clear, error, needed)


def _column(values: np.ndarray, exact: np.ndarray, sources: Sequence[str]) -> tuple[float, ...]:
    size = float(np.sqrt(np.mean(exact**2))) or 1.0
    centred = [_centred(column, sources) for column in (values, exact)]
    same = np.sign(values) == np.sign(exact)
    clear = np.abs(exact) > NEAR_ZERO * size
    return (
        pearson(values, exact),
        pearson(*centred),
        float(np.mean(same)),
        float(np.mean(same[clear])) if clear.any() else 1.0,
        float(np.max(np.abs(values - exact))) / size,
    )


def pearson(left: np.ndarray, right: np.ndarray) -> float:
    """Correlation; 1 where both are constant (nothing to disagree about), 0 where only one is."""
    left, right = left - left.mean(), right - right.mean()
    sizes = float(np.sqrt((left**2).sum())), float(np.sqrt((right**2).sum()))
    if 0.0 in sizes:
        return float(sizes[0] == sizes[1])
    return float((left * right).sum() / (sizes[0] * sizes[1]))


def _centred(values: np.ndarray, sources: Sequence[str]) -> np.ndarray:
    names = np.asarray(sources)
    result = values.astype(np.float64, copy=True)
    for name in sorted(set(sources)):
        result[names == name] -= result[names == name].mean()
    return result
