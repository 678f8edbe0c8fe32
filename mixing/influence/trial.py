"""The choice of an engine: the cheapest that agrees with the exact reference on a few documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import numpy as np
import torch

from curation.errors import RecipeError
from mixing.influence.adapters import DecoderAdapter, LossAdapter
from mixing.influence.decoder_pass import DecoderPass, fits
from mixing.influence.decoder_twin import decoder_twin
from mixing.influence.decoder_weights import group_directions
from mixing.influence.documents import BatchPlan, Tokenized, spread_over_sources
from mixing.influence.explicit import Explicit
from mixing.influence.finite_difference import STEPS, FiniteDifference, Side
from mixing.influence.forward_mode import ForwardMode
from mixing.influence.ghost import Ghost, matrix_directions
from mixing.influence.low_rank import LowRank, MomentSums
from mixing.influence.pilot import APPROXIMATE, DIFFERENCE, EXACT, Agreement, agreement
from mixing.influence.scorers import Scorer, UnknownLayerError, Vectors, score_plan
from training.fused_layer import FUSED_TOKENS

STEP_DOCUMENTS = 8  # of the pilot, on which the step of a finite difference is chosen
MOMENT_DOCUMENTS = 32  # beside the pilot, from which the bases of low rank are made
LOST = (1e-3, 3e-4, 1e-4, 1e-5)  # shares of the expected square given up, tried until the pilot agrees
GOOD_STEP_ERROR = 1e-3  # root mean square, relative: a correlation of six nines
HALF = (torch.bfloat16, torch.float16)

Candidate = tuple[str, Callable[[], Scorer]]


class Trial:
    """The pilot of one `score`: the reference's values, and the engines tried against them.

    plan_of : makes the plan of some documents, one in each row
    longest : tokens of the longest row of all documents
    dtype   : precision of the engines' matrix products; None: the model's
    """

    def __init__(
        self,
        adapter: LossAdapter,
        vectors: list[Vectors],
        documents: Sequence[Tokenized],
        plan_of: Callable[[Sequence[Tokenized]], BatchPlan],
        count: int,
        longest: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.adapter, self.vectors, self.plan_of = adapter, vectors, plan_of
        self.dtype = dtype or adapter.dtype
        chosen = spread_over_sources(documents, count)
        self.documents = [documents[i] for i in chosen]
        # Bases of low rank are made from other documents than those they are judged by, as far as there are any.
        taken = set(chosen)
        others = [
            documents[i]
            for i in spread_over_sources(documents, count + 2 * MOMENT_DOCUMENTS)
            if i not in taken
        ]
        chosen = spread_over_sources(others or documents, MOMENT_DOCUMENTS)
        self._for_moments = [(others or documents)[i] for i in chosen]
        twin = decoder_twin(adapter)
        self.fast = adapter if twin is None else twin.adapter
        self.fast_vectors = vectors if twin is None else [twin.vectors(v) for v in vectors]
        self.short = longest <= FUSED_TOKENS
        self.forward_tokens = 0.0
        self._exact: np.ndarray | None = None
        self._low_rank: LowRank | None = None
        self._narrow: LossAdapter | None = None
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
                f"The {name} engine did not agree with the reference on the pilot (overall {found.pearson:.6f}, "
                f"within source {found.within_source:.5f}, signs {found.signs_clear:.3f}); the next engine is used"
            )
        scorer = Explicit(self.adapter, self.vectors)
        return scorer, self._compare(scorer), notes

    def _named(self, engine: str) -> list[Candidate]:
        """One engine by name; the low rank is raised until the pilot agrees."""
        if engine == "ghost_low_rank":
            return [(f"{engine} ({lost:g})", partial(self._ghost, lost)) for lost in LOST]
        makers: dict[str, Callable[[], Scorer]] = {
            "forward": partial(ForwardMode, self.adapter, self.vectors),
            "explicit": partial(Explicit, self.adapter, self.vectors),
            "ghost": self._ghost,
            "finite_difference": partial(self._with_step, "central"),
            "finite_difference_one_sided": partial(self._with_step, "one"),
        }
        return [(engine, makers[engine])]

    def _candidates(self) -> list[Candidate]:
        """Engines that may do, the cheapest first by their forward passes; the last are exact."""
        k = len(self.vectors)
        costs: list[tuple[float, str, Callable[[], Scorer]]] = []
        for name, make in self._named("ghost_low_rank"):
            try:
                costs.append((make().forwards, name, make))
            except UnknownLayerError:
                break
        costs.append((2.0 + k, *self._named("ghost")[0]))
        if self.dtype in STEPS:
            wanted = "finite_difference" if k == 1 else "finite_difference_one_sided"
            costs.append((1.0 + k, *self._named(wanted)[0]))
        cheaper = [c for c in costs if c[0] < 2.0 + k or c[1] == "ghost"]
        ordered = [(name, make) for _, name, make in sorted(cheaper, key=lambda c: c[0])]
        return ordered + self._named("forward") + self._named("explicit")

    def _ghost(self, lost: float | None = None) -> Scorer:
        """Ghost products, exact or with directions that lose a share of the expected square."""
        if self._hand_written():
            assert isinstance(self.fast, DecoderAdapter)
            contractions = None if lost is None else self._cut().contractions(lost)
            return DecoderPass(self.fast, self.fast_vectors, contractions, self.dtype)
        contractions = None if lost is None else self._cut().contractions(lost)
        return Ghost(self._at_precision(), self.fast_vectors, contractions)

    def _hand_written(self) -> bool:
        return isinstance(self.fast, DecoderAdapter) and self.short and not fits(self.fast.model)

    def _at_precision(self) -> LossAdapter:
        """The model in the engines' precision."""
        if self.dtype == self.fast.dtype:
            return self.fast
        if self._narrow is None:
            self._narrow = deepcopy(self.fast).to(self.dtype)
        return self._narrow

    def _cut(self) -> LowRank:
        """The directions in the bases that the second moments of some documents give them."""
        if self._low_rank is None:
            sums = MomentSums()
            if self._hand_written():
                assert isinstance(self.fast, DecoderAdapter)
                directions = group_directions(self.fast.model, self.fast_vectors)
                scorer: Scorer = DecoderPass(self.fast, self.fast_vectors, {}, self.dtype, sums.add)
            else:
                directions = matrix_directions(self.fast, self.fast_vectors)
                scorer = Ghost(self._at_precision(), self.fast_vectors, {}, sums.add)
            self._run(scorer, self.plan_of(self._for_moments))
            self._low_rank = LowRank({n: v for n, v in directions.items() if n in sums.found}, sums.found)
        return self._low_rank

    def _with_step(self, side: Side) -> FiniteDifference:
        """A finite difference whose step is good enough on a part of the pilot, or else the best."""
        if self.dtype not in STEPS:
            raise RecipeError(
                f"A finite difference in {self.dtype} would measure rounding",
                where="influence.engine",
                remedy="Use the engine ghost, or load the model in float32",
            )
        steps = STEPS[self.dtype]
        chosen = spread_over_sources(self.documents, STEP_DOCUMENTS)
        if not chosen:
            return FiniteDifference(self.fast, self.fast_vectors, steps[0], side)
        plan, exact = self.plan_of([self.documents[i] for i in chosen]), self.exact()[chosen]
        errors: dict[float, float] = {}
        for step in steps:
            scorer = FiniteDifference(self.fast, self.fast_vectors, step, side)
            values = self._run(scorer, plan)
            errors[step] = float(np.sqrt(np.mean((values - exact) ** 2) / np.mean(exact**2)))
            if errors[step] <= GOOD_STEP_ERROR:
                break
        best = min(errors, key=lambda step: errors[step])
        return FiniteDifference(self.fast, self.fast_vectors, best, side)

    def exact(self) -> np.ndarray:
        """The reference's values on the pilot; a half-precision model is compared with itself in float32."""
        if self._exact is None:
            adapter = self.adapter
            if adapter.dtype in HALF:
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
        sources = [d.source for d in self.documents]
        return agreement(values, exact, sources, scorer.name, self.reference, self._needed(scorer))

    def _needed(self, scorer: Scorer) -> float:
        if isinstance(scorer, FiniteDifference):
            return DIFFERENCE
        return APPROXIMATE if self.dtype in HALF or scorer.name == "ghost_low_rank" else EXACT

    def _run(self, scorer: Scorer, plan: BatchPlan) -> np.ndarray:
        self.forward_tokens += scorer.forwards * plan.read_tokens
        return score_plan(scorer, plan, len(self.vectors))
