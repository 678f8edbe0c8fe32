"""Predicted against realised: what a method said a mixture would give, beside what trained models gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from curation.errors import DataError
from mixing.comparison import Scores
from mixing.paired import t_interval

Prediction = tuple[float, float, float]
"""Loss in bits per byte with its interval: value, low, high."""


@dataclass(frozen=True)
class Realised:
    """One mixture and capability.

    predicted, low, high : change against the reference that was predicted, in bits per byte; the interval is
                           None where only the reference or only the mixture had one
    realised, realised_low, realised_high : mean over paired seeds and its t interval (None with one seed)
    inside  : whether the realised change lies in the predicted interval; None without one
    """

    mixture: str
    capability: str
    predicted: float
    low: float | None
    high: float | None
    realised: float
    realised_low: float | None
    realised_high: float | None
    inside: bool | None


def predicted_against_realised(
    predictions: Mapping[str, Mapping[str, Prediction]], scores: Scores, *, against: str = "uniform"
) -> list[Realised]:
    """Changes against a reference mixture, predicted and realised, for every mixture that has a prediction.

    predictions : {mixture: {capability: (change or loss, low, high)}}. Where the reference has a prediction too,
                  values are losses, and the predicted change is their difference; intervals of losses share
                  most of their error, so the mixture's half-width is kept as that of the change. Where it has
                  none, values are changes against it.
    Raises DataError when a predicted capability was not measured.
    """
    reference = predictions.get(against)
    seeds = sorted(scores[against])
    rows = []
    for name in sorted(predictions):
        if name == against or name not in scores:
            continue
        for capability, (value, low, high) in sorted(predictions[name].items()):
            if capability not in scores[against][seeds[0]]:
                raise DataError(
                    f"{name!r} predicts {capability!r}, which was not measured",
                    where="predictions",
                    remedy=f"Measured: {', '.join(sorted(scores[against][seeds[0]]))}",
                )
            base = reference[capability][0] if reference is not None else 0.0
            changes = [scores[name][s][capability] - scores[against][s][capability] for s in seeds]
            interval = t_interval(changes)
            realised = float(np.mean(changes))
            rows.append(
                Realised(
                    name,
                    capability,
                    value - base,
                    low - base,
                    high - base,
                    realised,
                    None if interval is None else interval[0],
                    None if interval is None else interval[1],
                    low - base <= realised <= high - base,
                )
            )
    return rows


def slope(rows: list[Realised]) -> float | None:
    """Realised per predicted change, least squares through zero: 1 is honest, below 1 promises too much.

    >>> row = Realised("m", "code", -0.2, None, None, -0.1, None, None, None)
    >>> slope([row])
    0.5
    """
    predicted = np.array([row.predicted for row in rows])
    realised = np.array([row.realised for row in rows])
    return float(predicted @ realised / (predicted @ predicted)) if predicted.any() else None
