"""The choice of an engine: the cheapest that agrees with the exact reference on a few documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import numpy as np
import torch

from curation.errors import RecipeError
from mixing.influence.adapters import LossAdapter
from mixing.influence.documents import BatchPlan, Tokenized, spread_over_sources
from mixing.influence.explicit import Explicit
from mixing.influence.finite_difference import STEPS, FiniteDifference, Side
from mixing.influence.forward_mode import ForwardMode
from mixing.influence.ghost import Ghost
from mixing.influence.pilot import Agreement, agreement
from mixing.influence.scorers import Scorer, UnknownLayerError, Vectors, score_plan

STEP_DOCUMENTS = 8  # of the pilot, on which the step of a finite difference is chosen
LOW_RANK_ENERGIES = (0.99, 0.999, 0.9999)  # tried in turn until the pilot agrees
GOOD_STEP_ERROR = 1e-3  # root mean square, relative: a correlation of six nines


class Trial:
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

    def choose(self, engine: str) -> tuple[Scorer, Agreement | None, list[str]]:
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
