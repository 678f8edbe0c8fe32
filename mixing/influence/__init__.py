"""Influence: how much each training document lowers the loss on a probe, and the mixture that follows from it.

With any causal model of transformers, its tokenizer and lists of texts:

    directions = probe_directions(model, {"code": texts}, preconditioner="ekfac", tokenizer=tokenizer)
    scores = score(model, samples, directions, tokenizer=tokenizer)
    table = scores.table()                                  # document, source, capability, tokens, benefit
    colours = token_benefit(model, samples[0], directions, tokenizer=tokenizer)

Documents may come as token ids instead (`SampleDocument`), then no tokenizer is needed; weights follow by
`mixture_weights(joint_benefit(scores.table("code", checkpoint=1000)))`.
"""

from mixing.influence.adapters import DecoderAdapter, LossAdapter, TransformersAdapter, adapt
from mixing.influence.checkpoints import (
    CheckpointJob,
    InfluenceSettings,
    choose_samples,
    influence_at_checkpoint,
    read_benefits,
)
from mixing.influence.directions import (
    AdamMoments,
    Direction,
    load_adam_moments,
    probe_directions,
    probe_gradient,
)
from mixing.influence.documents import SampleDocument
from mixing.influence.files import score_files
from mixing.influence.joint import checkpoint_weights, joint_benefit
from mixing.influence.score import BENEFIT_SCHEMA, Scores, score
from mixing.influence.summary import summarise
from mixing.influence.token_benefit import token_benefit
from mixing.influence.weights import (
    SourceWeight,
    benefit_table,
    densities,
    mixture_weights,
    positive_weights,
    trust_region_weights,
)
from mixing.influence.workers import influence_at_checkpoints

__all__ = [
    "BENEFIT_SCHEMA",
    "AdamMoments",
    "CheckpointJob",
    "DecoderAdapter",
    "Direction",
    "InfluenceSettings",
    "LossAdapter",
    "SampleDocument",
    "Scores",
    "SourceWeight",
    "TransformersAdapter",
    "adapt",
    "benefit_table",
    "checkpoint_weights",
    "choose_samples",
    "densities",
    "influence_at_checkpoint",
    "influence_at_checkpoints",
    "joint_benefit",
    "load_adam_moments",
    "mixture_weights",
    "positive_weights",
    "probe_directions",
    "probe_gradient",
    "read_benefits",
    "score",
    "score_files",
    "summarise",
    "token_benefit",
    "trust_region_weights",
]
