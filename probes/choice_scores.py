"""Multiple choice from log-probabilities: which choice is picked, how sure, and how sure we are of that.

For a question with choices i of log-probability l_i, t_i tokens, c_i characters, b_i bytes, and u_i the
log-probability of the choice after the unconditional context (OLMES, arXiv 2406.08446, section 3):

    none l_i | per_token l_i / t_i | per_char l_i / c_i | per_byte l_i / b_i | pmi l_i - u_i

The highest is picked; of equals the first one, and such ties are counted. Characters and bytes are those of
the choice without the space before it, as in lm-evaluation-harness (its `acc_norm` is per_char, `acc` none).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from curation.errors import DataError

NORMALIZATIONS = ("none", "per_token", "per_char", "per_byte", "pmi")
Z = 1.959963984540054  # of an interval of 95 %


@dataclass(frozen=True)
class ChoiceScores:
    """One question. `picked` by normalization; probabilities of the choices as continuations.

    correct_prob      : exp(l_gold)
    total_prob        : sum of exp(l_i): how much of what the model expects are the choices at all
    norm_correct_prob : correct_prob / total_prob
    margin            : share of the gold minus the best share of another choice, in -1 .. 1
    """

    gold: int
    choices: int
    picked: Mapping[str, int]
    tied: Mapping[str, bool]
    correct_prob: float
    total_prob: float
    norm_correct_prob: float
    margin: float


def score_choice(
    nats: Sequence[float],
    tokens: Sequence[int],
    texts: Sequence[str],
    unconditional: Sequence[float],
    gold: int,
) -> ChoiceScores:
    """Scores of one question from the nats (minus log-probability) of its choices.

    >>> s = score_choice([1.0, 3.0], [1, 4], ["no", "certainly"], [1.0, 4.0], gold=1)
    >>> s.picked["none"], s.picked["per_char"], s.picked["pmi"], round(s.norm_correct_prob, 4)
    (0, 1, 1, 0.1192)

    Raises DataError on NaN and on lengths that differ.
    """
    logp = -np.asarray(nats, dtype=np.float64)
    free = -np.asarray(unconditional, dtype=np.float64)
    if not len(logp) == len(tokens) == len(texts) == len(free) or not 0 <= gold < len(logp):
        raise DataError("Each choice needs nats, tokens and a text, and the gold is one of them")
    if not (np.isfinite(logp).all() and np.isfinite(free).all()):
        raise DataError("A log-probability is not a finite number", remedy="Take an earlier checkpoint")
    values = {
        "none": logp,
        "per_token": logp / np.asarray(tokens),
        "per_char": logp / np.asarray([len(text) for text in texts]),
        "per_byte": logp / np.asarray([len(text.encode()) for text in texts]),
        "pmi": logp - free,
    }
    top = logp.max()
    share = np.exp(logp - top)
    share /= share.sum()
    return ChoiceScores(
        gold=gold,
        choices=len(logp),
        picked={name: int(value.argmax()) for name, value in values.items()},
        tied={name: int((value == value.max()).sum()) > 1 for name, value in values.items()},
        correct_prob=float(np.exp(logp[gold])),
        total_prob=float(np.exp(logp).sum()),
        norm_correct_prob=float(share[gold]),
        margin=float(share[gold] - np.delete(share, gold).max()),
    )


def summarize_choices(scores: Sequence[ChoiceScores]) -> dict[str, dict[str, float]]:
    """Metrics over questions: `accuracy_<normalization>` with Wilson's interval, means with their normal one.

    Every metric has `value`, `stderr` (sample standard deviation / sqrt n), `low` and `high` (95 %); accuracies
    also the number of `ties`. `chance` is the expected accuracy of a guess.
    """
    if not scores:
        raise DataError("There are no questions to summarize")
    metrics: dict[str, dict[str, float]] = {}
    for name in NORMALIZATIONS:
        right = np.array([s.picked[name] == s.gold for s in scores], dtype=np.float64)
        low, high = wilson_interval(int(right.sum()), len(right))
        ties = sum(s.tied[name] for s in scores)
        metrics[f"accuracy_{name}"] = mean_metric(right) | {"low": low, "high": high, "ties": ties}
    for name in ("correct_prob", "norm_correct_prob", "total_prob", "margin"):
        found = mean_metric(np.array([getattr(s, name) for s in scores]))
        lowest = (
            -1.0 if name == "margin" else 0.0
        )  # a normal interval knows no bounds; probabilities have them
        metrics[name] = found | {"low": max(found["low"], lowest), "high": min(found["high"], 1.0)}
    metrics["chance"] = {"value": float(np.mean([1 / s.choices for s in scores]))}
    return metrics


def mean_metric(values: np.ndarray) -> dict[str, float]:
    """Mean, its standard error and the normal interval of 95 %; with one value the error is unknown, said as 0."""
    mean = float(values.mean())
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return {"value": mean, "stderr": error, "low": mean - Z * error, "high": mean + Z * error}


def wilson_interval(right: int, n: int, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a share (J. Am. Stat. Assoc. 22, 1927); never degenerate at 0 or 1.

    >>> [round(x, 4) for x in wilson_interval(0, 10)]
    [0.0, 0.2775]
    """
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
