"""How good a classifier is on labels that it has not seen: F1 by threshold, macro F1 and calibration.

Intervals are percentile bootstraps over the held-out texts (95 %). The best threshold is chosen on the validation
part and measured on the held-out part, since a threshold that is chosen and measured on the same texts flatters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from curation.agreement import area_under_curve

RESAMPLES = 1000
# Held in memory at once; beyond it there are fewer resamples, which then hardly differ anyway.
MOST_WEIGHTS = 10_000_000
BINS = 10


def best_threshold(scores: np.ndarray, positive: np.ndarray) -> float:
    """The threshold t with the highest F1 of `scores >= t`; of equals the highest. Midway between two scores.

    >>> best_threshold(np.array([0.1, 0.4, 0.8]), np.array([False, True, True]))
    0.25
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    last = np.append(ranked[1:] != ranked[:-1], True)
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + positive.sum())
    place = int(np.argmax(np.where(last, f1, -1.0)))
    below = ranked[place + 1] if place + 1 < len(ranked) else ranked[place]
    return float((float(ranked[place]) + float(below)) / 2)


def held_out_report(
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    positive_from: float,
    threshold: float,
    seed: int,
    probabilities: np.ndarray | None = None,
) -> dict[str, Any]:
    """The report on held-out texts, JSON-able.

    scores, labels : [n]; labels of `positive_from` and more count as positive
    threshold      : the one chosen beforehand, see `best_threshold`
    probabilities  : P(positive) [n], of classifiers that say it; calibration is of these, and else of the
                     scores, in units of the label
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    positive = labels >= positive_from
    draws = _weights(len(labels), seed)
    return {
        "texts": len(labels),
        "positives": int(positive.sum()),
        "positive_from": positive_from,
        "auc": _rounded(area_under_curve(scores, positive)),
        "best_threshold": {"chosen_on": "validation", **_at(scores, positive, threshold, draws)},
        "thresholds": [_at(scores, positive, t) for t in _thresholds(labels)],
        "macro_f1": _macro(scores, labels, positive, positive_from, draws),
        "calibration": _calibration(
            scores if probabilities is None else np.asarray(probabilities, dtype=np.float64),
            labels if probabilities is None else positive.astype(np.float64),
            "label" if probabilities is None else "probability",
            draws,
        ),
    }


def _thresholds(labels: np.ndarray) -> list[float]:
    if labels.min() >= 0 and labels.max() <= 1:
        return [round(0.1 * k, 1) for k in range(1, 10)]
    low, high = float(np.floor(labels.min())), float(np.ceil(labels.max()))
    return [float(t) for t in np.linspace(low, high, min(41, round(2 * (high - low)) + 1))[1:]]


def _weights(count: int, seed: int) -> np.ndarray:
    """How often each text is in each resample, float64 [resamples, n]."""
    generator = np.random.default_rng(seed)
    resamples = max(100, min(RESAMPLES, MOST_WEIGHTS // count))
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def _at(
    scores: np.ndarray, positive: np.ndarray, threshold: float, draws: np.ndarray | None = None
) -> dict[str, Any]:
    """Precision, recall and F1 of `scores >= threshold`, with intervals when there are draws."""
    kept = scores >= threshold
    both, chosen, good = kept & positive, kept.astype(float), positive.astype(float)

    def values(weights: np.ndarray) -> dict[str, np.ndarray]:
        hits, found, wanted = weights @ both, weights @ chosen, weights @ good
        return {
            "precision": _ratio(hits, found),
            "recall": _ratio(hits, wanted),
            "f1": _ratio(2 * hits, found + wanted),
        }

    exact = {name: float(v) for name, v in values(np.ones(len(scores))).items()}
    row: dict[str, Any] = {"threshold": round(threshold, 6), "kept": int(kept.sum())}
    if draws is None:
        return row | {name: _rounded(value) for name, value in exact.items()}
    spread = values(draws)
    return row | {name: _interval(exact[name], spread[name]) for name in exact}


def _macro(
    scores: np.ndarray, labels: np.ndarray, positive: np.ndarray, positive_from: float, draws: np.ndarray
) -> dict[str, Any]:
    """Mean F1 over the grades (scores rounded to the nearest, halves to even), or over bad and good."""
    if np.array_equal(labels, np.rint(labels)) and len(np.unique(labels)) > 2:
        truth, said = labels, np.rint(np.clip(scores, labels.min(), labels.max()))
    else:
        truth, said = positive.astype(float), (scores >= positive_from).astype(float)
    classes = np.unique(truth)

    def value(weights: np.ndarray) -> np.ndarray:
        parts = [
            _ratio(2 * (weights @ ((truth == c) & (said == c))), weights @ ((truth == c) * 1.0 + (said == c)))
            for c in classes
        ]
        return np.mean(parts, axis=0)

    return {"classes": len(classes), **_interval(float(value(np.ones(len(labels)))), value(draws))}


def _calibration(said: np.ndarray, truth: np.ndarray, unit: str, draws: np.ndarray) -> dict[str, Any]:
    """Reliability in bins of equal width, the mean distance from the diagonal (ECE) and the mean square (Brier)."""
    low, high = (0.0, 1.0) if unit == "probability" else (float(truth.min()), float(truth.max()))
    place = np.clip(((said - low) / ((high - low) or 1.0) * BINS).astype(int), 0, BINS - 1)
    member = (place[:, None] == np.arange(BINS)).astype(float)
    rows = []
    for index in range(BINS):
        inside = place == index
        if inside.any():
            edges = [round(low + (high - low) * (index + i) / BINS, 6) for i in (0, 1)]
            means = [round(float(values[inside].mean()), 6) for values in (said, truth)]
            rows.append(
                {
                    "from": edges[0],
                    "to": edges[1],
                    "texts": int(inside.sum()),
                    "said": means[0],
                    "true": means[1],
                }
            )

    def ece(weights: np.ndarray) -> np.ndarray:
        return np.abs(weights @ (member * (said - truth)[:, None])).sum(-1) / len(said)

    def square(weights: np.ndarray) -> np.ndarray:
        return weights @ (said - truth) ** 2 / len(said)

    one = np.ones(len(said))
    name = "brier" if unit == "probability" else "mean_squared_error"
    return {
        "of": unit,
        "reliability": rows,
        "ece": _interval(float(ece(one)), ece(draws)),
        name: _interval(float(square(one)), square(draws)),
    }


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(
        above, below, out=np.zeros_like(np.asarray(below, dtype=float)), where=np.asarray(below) > 0
    )


def _interval(value: float, spread: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(spread, [0.025, 0.975])
    return {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
