"""How to compress a mid-training set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mixing.influence import InfluenceSettings
from training.distillation_settings import Distillation


@dataclass(frozen=True)
class CompressionSettings:
    """How to compress.

    rounds           : most rounds of scoring and training (the paper finds that two suffice)
    influence        : how benefits are computed
    documents_per_source : raw documents of each source, drawn by the seed; None takes all
    probe_documents  : documents of each probe behind a direction
    least_positive, gathered : see `rounds.reason_to_stop`
    max_epochs       : how often a kept document may be read in a round
    mixture          : weights of the uncompressed set; None is uniform over its sources
    teacher          : distillation for the taught arms; None leaves them out
    """

    rounds: int = 2
    influence: InfluenceSettings = field(default_factory=InfluenceSettings)
    documents_per_source: int | None = None
    probe_documents: int = 200
    least_positive: float = 0.02
    gathered: float = 0.1
    max_epochs: float = 4.0
    mixture: Mapping[str, float] | None = None
    teacher: Distillation | None = None
