"""An engine that has passed its pilot once and then scores part after part of the documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mixing.influence.adapters import adapt, scoring
from mixing.influence.directions import Direction
from mixing.influence.documents import BatchPlan, Tokenized, check_vocabulary
from mixing.influence.finite_difference import FiniteDifference
from mixing.influence.scorers import check_directions, score_plan
from mixing.influence.settings import InfluenceSettings
from mixing.influence.trial import Trial


class PreparedScorer:
    """What `score` does, with the choice of the engine apart from the scoring.

    documents : of these, spread over the sources, `settings.pilot_documents` are the pilot on which the engine must
                agree with the exact reference; the choice is a function of them. Give some more than the pilot.
    longest   : tokens of the longest document that will be scored
    """

    def __init__(
        self,
        model: nn.Module,
        directions: Mapping[str, Direction],
        documents: Sequence[Tokenized],
        longest: int,
        settings: InfluenceSettings,
    ) -> None:
        self.adapter, self.settings = adapt(model), settings
        self.vectors = [d.vectors for d in directions.values()]
        check_directions(self.vectors)
        check_vocabulary(documents, self.adapter.vocabulary)
        with scoring(self.adapter):
            dtype = torch.bfloat16 if settings.precision == "bfloat16" else None
            self.context = self.adapter.context(settings.context)
            longest = min(longest, self.context)
            trial = Trial(
                self.adapter, self.vectors, documents, self._plan, settings.pilot_documents, longest, dtype
            )
            self.scorer, self.agreed, self.notes = trial.choose(settings.engine)
        self.pilot_tokens = trial.forward_tokens

    def score(self, documents: Sequence[Tokenized]) -> tuple[np.ndarray, np.ndarray, int]:
        """Benefits [n, k], targets [n], and the tokens read with padding."""
        check_vocabulary(documents, self.adapter.vocabulary)
        plan = self._plan(documents, self.settings.pack and self.scorer.packs)
        with scoring(self.adapter):
            benefit = score_plan(self.scorer, plan, len(self.vectors))
        return benefit, plan.counts, plan.read_tokens

    def record(self) -> dict[str, Any]:
        """For the JSON beside the scores."""
        step = self.scorer.step if isinstance(self.scorer, FiniteDifference) else None
        return {
            "engine": self.scorer.name,
            "context": self.context,
            "forwards_per_token": self.scorer.forwards,
            "step_of_difference": step,
            "dtype": str(self.adapter.dtype).removeprefix("torch."),
            "precision": self.settings.precision,
            "packed": self.settings.pack and self.scorer.packs,
            "pilot": self.agreed.record() if self.agreed else None,
            "pilot_forward_tokens": self.pilot_tokens,
            "parameters": sum(p.numel() for p in self.adapter.parameters()),
            "vocabulary": self.adapter.vocabulary,
            "notes": self.notes,
        }

    def _plan(self, documents: Sequence[Tokenized], packed: bool = False) -> BatchPlan:
        return BatchPlan(
            documents,
            context=self.context,
            windows=self.settings.windows,
            reduction=self.settings.reduction,
            batch_tokens=self.settings.batch_tokens,
            device=self.adapter.device,
            pack=packed,
        )
