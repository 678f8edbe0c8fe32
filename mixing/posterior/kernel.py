"""The squared-exponential kernel on log shares, between values and directional derivatives.

Features phi_j(w) = log(w_j + eps) / |log eps| make doubling a share count the same wherever it starts; a large
eps makes them nearly linear. With d = phi(w) - phi(w'), one length for each source (L = diag(1 / length^2)) and
k = exp(-d' L d / 2), the covariances are (Rasmussen and Williams, section 9.4)

    value, value                       k
    value, derivative along v'         k (d' L v')
    derivative along v, value         -k (d' L v)
    derivative, derivative             k (v' L v' - (d' L v)(d' L v'))

A derivative along u in weights is one along v = phi'(w) * u in features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Functionals:
    """Values and directional derivatives of a function of the features.

    at [n, m]: features; along [n, m]: directions in features, zeros for values; value [n]: 1 for values, else 0
    """

    at: np.ndarray
    along: np.ndarray
    value: np.ndarray


def features(weights: np.ndarray, epsilon: float) -> np.ndarray:
    """log(w + eps) / |log eps|, any shape: -1 for a share of nothing, about 0 for all."""
    return np.log(np.maximum(weights, 0.0) + epsilon) / abs(np.log(epsilon))


def slopes(weights: np.ndarray, epsilon: float) -> np.ndarray:
    """d features / d weights, any shape."""
    return 1.0 / ((np.maximum(weights, 0.0) + epsilon) * abs(np.log(epsilon)))


def functionals(weights: np.ndarray, directions: np.ndarray | None, epsilon: float) -> Functionals:
    """Functionals at mixtures [n, m]; rows of `directions` [n, m] that are all zero are values."""
    at = features(weights, epsilon)
    if directions is None:
        return Functionals(at, np.zeros_like(at), np.ones(len(at)))
    is_value = np.asarray(~directions.any(axis=1), dtype=np.float64)
    return Functionals(at, directions * slopes(weights, epsilon), is_value)


@dataclass(frozen=True)
class Blocks:
    """Kernel between rows and columns with the pieces that its slopes need; all [n, n']."""

    matrix: np.ndarray
    gaussian: np.ndarray
    factor: np.ndarray
    column_slope: np.ndarray
    row_slope: np.ndarray


def blocks(rows: Functionals, columns: Functionals, lengths: np.ndarray) -> Blocks:
    """Covariance of unit signal between two sets of functionals for lengths [m]."""
    a, b = rows.at / lengths, columns.at / lengths
    squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    gaussian = np.exp(-0.5 * np.maximum(squared, 0.0))
    if rows.value.all() and columns.value.all():
        one, none = np.ones_like(gaussian), np.zeros((1, 1))
        return Blocks(gaussian, gaussian, one, none, none)
    u, v = rows.along / lengths, columns.along / lengths
    column_slope = a @ v.T - (b * v).sum(1)[None]
    row_slope = (a * u).sum(1)[:, None] - u @ b.T
    factor = (
        rows.value[:, None] * columns.value[None]
        + rows.value[:, None] * column_slope
        - columns.value[None] * row_slope
        + u @ v.T
        - row_slope * column_slope
    )
    return Blocks(gaussian * factor, gaussian, factor, column_slope, row_slope)


def length_slopes(of: Functionals, block: Blocks, weight: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """d sum(weight * K) / d log length [m], for K = blocks(of, of).matrix and any `weight` [n, n].

    Everything is a product of matrices: n^2 m operations and no array of that size.
    """
    x, v = of.at, of.along
    scaled = weight * block.gaussian

    def along_columns(u: np.ndarray) -> np.ndarray:  # sum_ij u_ij d_ij v_j
        return (x * (u @ v)).sum(0) - (u.sum(0)[:, None] * x * v).sum(0)

    def along_rows(u: np.ndarray) -> np.ndarray:  # sum_ij u_ij d_ij v_i
        return (u.sum(1)[:, None] * x * v).sum(0) - (v * (u @ x)).sum(0)

    main = scaled * block.factor
    squares = (main.sum(1) + main.sum(0)) @ np.square(x) - 2 * (x * (main @ x)).sum(0)
    slope = -0.5 * squares
    if v.any():
        slope = slope + along_columns(scaled * of.value[:, None]) - along_rows(scaled * of.value[None])
        slope += (v * (scaled @ v)).sum(0)
        slope -= along_rows(scaled * block.column_slope) + along_columns(scaled * block.row_slope)
    return slope * (-2.0 / np.square(lengths))
