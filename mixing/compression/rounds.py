"""One round of compression as arithmetic: what is kept, how it is mixed, whether to go on.

    D_t = {x in D(raw): I(x; theta_t) > 0}                       (Eq. 7)
    w_g from the benefits of D_t                                 (Eqs. 5 and 6)
    theta_{t+1} = MidTrain(theta_t, D_t)                         (Eq. 8)

Here a benefit is positive when the document lowers the probes' loss (the paper's Eq. 2 has the other sign). I(x)
is the mean over the capabilities, which the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mixing.influence.weights import densities, positive_weights

BINS = 40
WIDEST_QUANTILE = 0.99


@dataclass(frozen=True)
class Stop:
    """Why rounds ended: `reason` for programs, `text` for people."""

    reason: str
    text: str


@dataclass(frozen=True)
class Round:
    """What a scoring of the raw set found.

    number     : from 1
    documents, tokens, kept_documents, kept_tokens : by source
    weights    : shares of tokens of the sources that keep something; empty when nothing does
    rms        : root mean square of the joint benefit over the raw documents
    positive   : share of the raw documents with positive joint benefit
    edges, counts : histogram of the benefits by capability, and of their mean as "joint"; the first and the last bin
                 hold all that lies beyond
    """

    number: int
    documents: dict[str, int]
    tokens: dict[str, int]
    kept_documents: dict[str, int]
    kept_tokens: dict[str, int]
    weights: dict[str, float]
    rms: float
    positive: float
    edges: dict[str, list[float]]
    counts: dict[str, list[int]]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def keep_positive(joint: pa.Table) -> pa.Table:
    """The rows of Eq. 7, benefit > 0."""
    return joint.filter(pc.greater(joint["benefit"], 0.0))


def summarise_round(
    number: int, joint: pa.Table, by_capability: Mapping[str, pa.Table], first: Round | None
) -> Round:
    """The record of a round from its benefits.

    joint         : `document, source, tokens, benefit` of every raw document (`influence.joint_benefit`)
    by_capability : the same by capability, for the histograms
    first         : the first round, whose bins all later ones use, so that they can be laid over each other
    """
    kept = keep_positive(joint)
    benefit = joint["benefit"].to_numpy()
    tables = {**dict(sorted(by_capability.items())), "joint": joint}
    edges = (
        first.edges if first is not None else {n: _edges(t["benefit"].to_numpy()) for n, t in tables.items()}
    )
    return Round(
        number=number,
        documents=_by_source(joint, None),
        tokens=_by_source(joint, "tokens"),
        kept_documents={s: _by_source(kept, None).get(s, 0) for s in _by_source(joint, None)},
        kept_tokens={s: _by_source(kept, "tokens").get(s, 0) for s in _by_source(joint, None)},
        weights=positive_weights(densities(kept)) if kept.num_rows else {},
        rms=float(np.sqrt(np.mean(benefit**2))),
        positive=kept.num_rows / joint.num_rows,
        edges=edges,
        counts={name: _counts(table["benefit"].to_numpy(), edges[name]) for name, table in tables.items()},
    )


def reason_to_stop(rounds: Sequence[Round], *, least_positive: float, gathered: float) -> Stop | None:
    """Whether the last round's scores say that nothing is left to compress; None to train on.

    least_positive : stop when no more than this share of the documents has positive benefit
    gathered       : stop when the root mean square of the benefits has fallen to this share of the first round's: the
                     distribution "converges to approximately zero"
    """
    last = rounds[-1]
    if last.positive == 0:
        return Stop("nothing positive", f"Round {last.number}: no document has positive benefit")
    if last.positive <= least_positive:
        return Stop(
            "little positive",
            f"Round {last.number}: {last.positive:.1%} of the documents have positive benefit, at most "
            f"{least_positive:.1%} was the limit",
        )
    ratio = last.rms / rounds[0].rms if rounds[0].rms else 0.0
    if ratio <= gathered:
        return Stop(
            "gathered",
            f"Round {last.number}: benefits have gathered around zero, to {ratio:.1%} of their first spread",
        )
    return None


def _by_source(table: pa.Table, column: str | None) -> dict[str, int]:
    if column is None:
        grouped = table.group_by("source").aggregate([([], "count_all")])
        counts = grouped["count_all"]
    else:
        grouped = table.group_by("source").aggregate([(column, "sum")])
        counts = grouped[f"{column}_sum"]
    return dict(sorted(zip(grouped["source"].to_pylist(), counts.to_pylist(), strict=True)))


def _edges(values: np.ndarray) -> list[float]:
    """Even bins over the middle of the values, with zero as an edge, so that no bin mixes the signs."""
    widest = float(np.quantile(np.abs(values), WIDEST_QUANTILE)) or 1.0
    return np.linspace(-widest, widest, BINS + 1).tolist()


def _counts(values: np.ndarray, edges: Sequence[float]) -> list[int]:
    inside = np.clip(values, edges[0], edges[-1])
    counts, _ = np.histogram(inside, bins=np.asarray(edges))
    # numpy puts a value on an inner edge into the bin above; zero is not positive, so it belongs below.
    middle = len(edges) // 2
    zeros = int((values == 0).sum())
    counts[middle] -= zeros
    counts[middle - 1] += zeros
    return counts.tolist()
