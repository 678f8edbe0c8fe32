"""Influence: how much each training document lowers the loss on a capability probe, and the mixture that follows."""

from mixing.influence.adapters import DecoderAdapter, LossAdapter, TransformersAdapter, adapt
from mixing.influence.directions import (
    AdamMoments,
    Direction,
    load_adam_moments,
    probe_directions,
    probe_gradient,
)
from mixing.influence.documents import SampleDocument
from mixing.influence.score import BENEFIT_SCHEMA, Scores, score

__all__ = [
    "BENEFIT_SCHEMA",
    "AdamMoments",
    "DecoderAdapter",
    "Direction",
    "LossAdapter",
    "SampleDocument",
    "Scores",
    "TransformersAdapter",
    "adapt",
    "load_adam_moments",
    "probe_directions",
    "probe_gradient",
    "score",
]
