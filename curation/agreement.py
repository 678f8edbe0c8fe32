"""How well a rater's scores agree with labels that it has not seen."""

from __future__ import annotations

import numpy as np


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The chance that a positive scores above a negative, ties counting half; None when either is missing.

    >>> area_under_curve(np.array([0.9, 0.4, 0.4]), np.array([True, True, False]))
    0.75
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def judge_agreement(margins: np.ndarray, labels: np.ndarray) -> dict[str, float | int | None]:
    """Margins against 0/1 labels: area under the curve, accuracy at margin 0, and that of always saying the
    same.
    """
    positive = labels >= 0.5
    share = float(positive.mean()) if len(positive) else 0.0
    return {
        "held_out": len(labels),
        "positives": int(positive.sum()),
        "auc": _rounded(area_under_curve(margins, positive)),
        "accuracy": _rounded(float(((margins > 0) == positive).mean())) if len(positive) else None,
        "accuracy_of_majority": _rounded(max(share, 1 - share)),
    }


def classifier_agreement(scores: np.ndarray, labels: np.ndarray) -> dict[str, float | int | None]:
    """Scores against 0..5 labels: correlation, mean absolute error, and the curve's area for labels of 3 and
    more.
    """
    spread = bool(len(labels) > 1 and scores.std() > 0 and labels.std() > 0)
    return {
        "held_out": len(labels),
        "positives": int((labels >= 3).sum()),
        "auc": _rounded(area_under_curve(scores, labels >= 3)),
        "correlation": _rounded(float(np.corrcoef(scores, labels)[0, 1])) if spread else None,
        "mean_absolute_error": _rounded(float(np.abs(scores - labels).mean())) if len(labels) else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
