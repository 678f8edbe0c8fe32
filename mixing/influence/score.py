"""Benefit of every document for every probe: `score(model, documents, directions)`.

An engine is chosen by precision and number of directions and must first agree with the exact reference on a
pilot; where it does not, the next one is taken, down to one backward pass for each document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from torch import nn

from curation.errors import RecipeError
from curation.progress import progress
from mixing.influence.adapters import adapt, scoring
from mixing.influence.directions import Direction
from mixing.influence.documents import (
    BatchPlan,
    Reduction,
    Tokenized,
    Windows,
    check_vocabulary,
)
from mixing.influence.finite_difference import FiniteDifference
from mixing.influence.scorers import Vectors, check_directions, score_plan
from mixing.influence.trial import Trial

Engine = Literal[
    "auto",
    "forward",
    "ghost",
    "ghost_low_rank",
    "finite_difference",
    "finite_difference_one_sided",
    "explicit",
]
ENGINES: tuple[str, ...] = Engine.__args__  # type: ignore[attr-defined]
PILOT_DOCUMENTS = 32

BENEFIT_SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("source", pa.string()),
        ("capability", pa.string()),
        ("reference", pa.string()),
        ("checkpoint", pa.int64()),
        ("tokens", pa.int64()),
        ("benefit", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Scores:
    """Benefits [n, k] of n documents for k probes; positive lowers the probe's loss.

    tokens : scored targets of each document, the s_x of Eq. 6
    record : engine, reduction, precision, context, directions, pilot agreement and cost, for the JSON
             beside a table
    """

    documents: tuple[str, ...]
    sources: tuple[str, ...]
    probes: tuple[str, ...]
    tokens: np.ndarray
    benefit: np.ndarray
    record: dict[str, Any] = field(default_factory=dict)

    def table(self, probe: str, *, reference: str = "", checkpoint: int = 0) -> pa.Table:
        """One row per document for one probe, with the columns of `BENEFIT_SCHEMA`."""
        count = len(self.documents)
        columns = [
            list(self.documents),
            list(self.sources),
            [probe] * count,
            [reference] * count,
            [checkpoint] * count,
            self.tokens,
            self.benefit[:, self.probes.index(probe)],
        ]
        return pa.table(
            [pa.array(c, t) for c, t in zip(columns, BENEFIT_SCHEMA.types, strict=True)],
            schema=BENEFIT_SCHEMA,
        )


def score(
    model: nn.Module,
    documents: Sequence[Tokenized],
    directions: Mapping[str, Direction | Vectors],
    *,
    engine: Engine = "auto",
    reduction: Reduction = "mean",
    context: int = 1024,
    windows: Windows = "first",
    batch_tokens: int = 4096,
    pilot_documents: int = PILOT_DOCUMENTS,
    label: str | None = None,
) -> Scores:
    """benefit(x) = grad L(x)' v for each document x and direction v.

    reduction : L(x) is the "mean" over the document's targets (the paper's Eq. 6 then multiplies by their
                number) or their "sum"
    context   : rows of at most this many tokens; `windows` "first" scores the first row of a document only,
                "all" scores all of it, later rows without what came before
    engine    : "auto" tries engines from the cheapest on until one agrees with the exact reference on a
                pilot: in float32 and for one direction that is central finite differences (2 F), for
                       several or in
                bfloat16 ghost products with directions of low rank. A named engine is used whatever the pilot
                says; the agreement is stored.
    label     : shows progress under this name
    Raises DataError for token ids outside the vocabulary, a direction that is zero, and losses that are not
    finite.
    """
    if engine not in ENGINES:
        raise RecipeError(f"There is no engine {engine!r}", remedy=f"Choose one of {', '.join(ENGINES)}")
    adapter = adapt(model)
    check_vocabulary(documents, adapter.vocabulary)
    vectors = [d.vectors if isinstance(d, Direction) else d for d in directions.values()]
    check_directions(vectors)

    def plan_of(chosen: Sequence[Tokenized]) -> BatchPlan:
        return BatchPlan(
            chosen,
            context=context,
            windows=windows,
            reduction=reduction,
            batch_tokens=batch_tokens,
            device=adapter.device,
        )

    plan = plan_of(documents)
    with scoring(adapter):
        trial = Trial(adapter, vectors, documents, plan_of, pilot_documents)
        scorer, agreed, notes = trial.choose(engine)
        with _progress(label, plan) as advance:
            benefit = score_plan(scorer, plan, len(vectors), advance)
    forward_tokens = trial.forward_tokens + scorer.forwards * plan.read_tokens
    record = {
        "engine": scorer.name,
        "forwards_per_token": scorer.forwards,
        "step": scorer.step if isinstance(scorer, FiniteDifference) else None,
        "reduction": reduction,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "context": context,
        "windows": windows,
        "documents": len(documents),
        "documents_cut": len(plan.cut),
        "directions": {n: d.record() for n, d in directions.items() if isinstance(d, Direction)},
        "pilot": agreed.record() if agreed else None,
        "forward_tokens": forward_tokens,
        "flops": 2.0 * sum(p.numel() for p in adapter.parameters()) * forward_tokens,
        "notes": notes,
    }
    return Scores(
        tuple(d.id for d in documents),
        tuple(d.source for d in documents),
        tuple(directions),
        plan.counts,
        benefit,
        record,
    )


@contextmanager
def _progress(label: str | None, plan: BatchPlan) -> Iterator[Callable[[float], None] | None]:
    if label is None:
        yield None
        return
    with progress(label, total=plan.read_tokens, unit="tokens") as task:
        yield task.advance
