"""Benefit of every document for every probe: `score(model, documents, directions)`.

An engine is chosen by precision and number of directions and must first agree with the exact reference on a
pilot; where it does not, the next one is taken, down to one backward pass for each document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from curation.errors import RecipeError
from curation.progress import progress
from mixing.influence.adapters import LossAdapter, adapt, scoring
from mixing.influence.directions import Direction
from mixing.influence.documents import (
    BatchPlan,
    Reduction,
    Tokenized,
    Windows,
    check_vocabulary,
    spread_over_sources,
)
from mixing.influence.explicit import Explicit
from mixing.influence.finite_difference import STEPS, FiniteDifference, Side
from mixing.influence.forward_mode import ForwardMode
from mixing.influence.ghost import Ghost
from mixing.influence.pilot import Agreement, agreement
from mixing.influence.scorers import Scorer, UnknownLayerError, Vectors, check_directions, score_plan

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
STEP_DOCUMENTS = 8  # of the pilot, on which the step of a finite difference is chosen
LOW_RANK_ENERGIES = (0.99, 0.999, 0.9999)  # tried in turn until the pilot agrees
GOOD_STEP_ERROR = 1e-4

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
        trial = _Trial(adapter, vectors, documents, plan_of, pilot_documents)
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


class _Trial:
    """The pilot of one `score`: the reference's values, and the engines tried against them."""

    def __init__(
        self,
        adapter: LossAdapter,
        vectors: list[Vectors],
        documents: Sequence[Tokenized],
        plan_of: Callable[[Sequence[Tokenized]], BatchPlan],
        count: int,
    ) -> None:
        self.adapter, self.vectors, self.plan_of = adapter, vectors, plan_of
        self.documents = [documents[i] for i in spread_over_sources(documents, count)]
        self.forward_tokens = 0.0
        self._exact: np.ndarray | None = None
        self.reference = ""

    def choose(self, engine: Engine) -> tuple[Scorer, Agreement | None, list[str]]:
        """The engine to use, its agreement with the reference, and what the reader should know."""
        notes: list[str] = []
        wanted = self._candidates() if engine == "auto" else self._named(engine)
        for at, (name, make) in enumerate(wanted):
            try:
                scorer = make()
                found = self._compare(scorer)
            except UnknownLayerError as error:
                notes.append(f"The {name} engine does not know every layer ({error}); a slower one is used")
                continue
            if found is None or found.good or at + 1 == len(wanted):
                return scorer, found, notes
            notes.append(
                f"The {name} engine did not agree with the reference on the pilot (within source "
                f"{found.within_source:.5f}, signs {found.signs_clear:.3f}); the next engine is used"
            )
        scorer = Explicit(self.adapter, self.vectors)
        return scorer, self._compare(scorer), notes

    def _named(self, engine: str) -> list[tuple[str, Callable[[], Scorer]]]:
        """One engine by name; the low rank is raised until the pilot agrees."""
        if engine == "ghost_low_rank":
            return [
                (f"{engine} ({energy})", partial(Ghost, self.adapter, self.vectors, energy))
                for energy in LOW_RANK_ENERGIES
            ]
        makers: dict[str, Callable[[], Scorer]] = {
            "forward": partial(ForwardMode, self.adapter, self.vectors),
            "explicit": partial(Explicit, self.adapter, self.vectors),
            "ghost": partial(Ghost, self.adapter, self.vectors),
            "finite_difference": partial(self._with_step, "central"),
            "finite_difference_one_sided": partial(self._with_step, "one"),
        }
        return [(engine, makers[engine])]

    def _candidates(self) -> list[tuple[str, Callable[[], Scorer]]]:
        """Engines that may do, the cheapest first by their forward passes; the last are exact."""
        k = len(self.vectors)
        costs: list[tuple[float, str, Callable[[], Scorer]]] = []
        for name, make in self._named("ghost_low_rank"):
            try:
                costs.append((make().forwards, name, make))
            except UnknownLayerError:
                break
        costs.append((2.0 + k, *self._named("ghost")[0]))
        if self.adapter.dtype in STEPS:
            wanted = "finite_difference" if k == 1 else "finite_difference_one_sided"
            costs.append((1.0 + k, *self._named(wanted)[0]))
        cheaper = [c for c in costs if c[0] < 2.0 + k or c[1] == "ghost"]
        ordered = [(name, make) for _, name, make in sorted(cheaper, key=lambda c: c[0])]
        return ordered + self._named("forward") + self._named("explicit")

    def _with_step(self, side: Side) -> FiniteDifference:
        """A finite difference whose step is good enough on a part of the pilot, or else the best."""
        if self.adapter.dtype not in STEPS:
            raise RecipeError(
                f"A finite difference in {self.adapter.dtype} would measure rounding",
                where="influence.engine",
                remedy="Use the engine ghost, or load the model in float32",
            )
        steps = STEPS[self.adapter.dtype]
        chosen = spread_over_sources(self.documents, STEP_DOCUMENTS)
        if not chosen:
            return FiniteDifference(self.adapter, self.vectors, steps[0], side)
        plan, exact = self.plan_of([self.documents[i] for i in chosen]), self.exact()[chosen]
        errors: dict[float, float] = {}
        for step in steps:
            scorer = FiniteDifference(self.adapter, self.vectors, step, side)
            values = self._run(scorer, plan)
            errors[step] = float(np.sqrt(np.mean((values - exact) ** 2) / np.mean(exact**2)))
            if errors[step] <= GOOD_STEP_ERROR:
                break
        best = min(errors, key=lambda step: errors[step])
        return FiniteDifference(self.adapter, self.vectors, best, side)

    def exact(self) -> np.ndarray:
        """The reference's values on the pilot; a half-precision model is compared with itself in float32."""
        if self._exact is None:
            adapter = self.adapter
            if adapter.dtype in (torch.bfloat16, torch.float16):
                adapter = deepcopy(adapter).float()
            reference: Scorer = ForwardMode(adapter, self.vectors)
            plan = self.plan_of(self.documents)
            try:
                self._exact = self._run(reference, plan)
            except (NotImplementedError, RuntimeError):  # an operation without a forward-mode derivative
                reference = Explicit(adapter, self.vectors)
                self._exact = self._run(reference, plan)
            self.reference = reference.name
        return self._exact

    def _compare(self, scorer: Scorer) -> Agreement | None:
        if not self.documents:
            return None
        exact = self.exact()
        values = self._run(scorer, self.plan_of(self.documents))
        return agreement(values, exact, [d.source for d in self.documents], scorer.name, self.reference)

    def _run(self, scorer: Scorer, plan: BatchPlan) -> np.ndarray:
        self.forward_tokens += scorer.forwards * plan.read_tokens
        return score_plan(scorer, plan, len(self.vectors))


@contextmanager
def _progress(label: str | None, plan: BatchPlan) -> Iterator[Callable[[float], None] | None]:
    if label is None:
        yield None
        return
    with progress(label, total=plan.read_tokens, unit="tokens") as task:
        yield task.advance
