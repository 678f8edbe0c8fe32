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
from mixing.influence.adaptive import AdaptiveInfluence, adaptive_influence
from mixing.influence.adaptive_sample import SampledWeights, Stopping, sample_weights
from mixing.influence.averaged_gradients import averaged_benefits, mean_gradient
from mixing.influence.benefit_tables import read_benefits, read_record
from mixing.influence.checkpoint_work import CheckpointJob
from mixing.influence.directions import (
    AdamMoments,
    Direction,
    load_adam_moments,
    probe_directions,
    probe_gradient,
)
from mixing.influence.documents import SampleDocument
from mixing.influence.files import FileInfluence, influence_of_files, score_files
from mixing.influence.iterate import Round, iterate
from mixing.influence.joint import checkpoint_weights, column_factors, joint_benefit
from mixing.influence.samples import SampleStore, choose_samples, write_store
from mixing.influence.score import BENEFIT_SCHEMA, Scores, score
from mixing.influence.settings import PROTOCOLS, AssemblySettings, InfluenceSettings
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
from mixing.influence.workers import influence_at_checkpoint, influence_at_checkpoints

__all__ = [
    "BENEFIT_SCHEMA",
    "PROTOCOLS",
    "AdamMoments",
    "AdaptiveInfluence",
    "AssemblySettings",
    "CheckpointJob",
    "DecoderAdapter",
    "Direction",
    "FileInfluence",
    "InfluenceSettings",
    "LossAdapter",
    "Round",
    "SampleDocument",
    "SampleStore",
    "SampledWeights",
    "Scores",
    "SourceWeight",
    "Stopping",
    "TransformersAdapter",
    "adapt",
    "adaptive_influence",
    "averaged_benefits",
    "benefit_table",
    "checkpoint_weights",
    "choose_samples",
    "column_factors",
    "densities",
    "influence_at_checkpoint",
    "influence_at_checkpoints",
    "influence_of_files",
    "iterate",
    "joint_benefit",
    "load_adam_moments",
    "mean_gradient",
    "mixture_weights",
    "positive_weights",
    "probe_directions",
    "probe_gradient",
    "read_benefits",
    "read_record",
    "sample_weights",
    "score",
    "score_files",
    "summarise",
    "token_benefit",
    "trust_region_weights",
    "write_store",
]
