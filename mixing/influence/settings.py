"""The settings of influence: how checkpoints are scored, how scores become weights, and named protocols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from curation.errors import RecipeError
from mixing.influence.directions import Preconditioner
from mixing.influence.documents import Reduction, Windows
from mixing.influence.score import Engine, Precision

CheckpointRule = Literal["step", "learning_rate", "uniform", "last", "best"] | Mapping[int, float]
Normalise = Literal["none", "rms", "cosine"]


@dataclass(frozen=True)
class InfluenceSettings:
    """How benefits are computed; every field is stored with the result, and a change of one scores again.

    preconditioner      : identity, adam, datainf or ekfac
    parameters          : "all" or "embedding_and_output"
    curvature_documents : samples, spread over the sources, that datainf and ekfac measure the curvature on
    group_documents     : 0 scores each document; n scores the averaged gradient of random groups of n, at 3 F for
                          any number of directions (`averaged_gradients`)
    cosine              : divides each benefit by the lengths of the document's gradient and of the direction; costs
                          3 F, whatever the engine and the number of directions
    device, dtype       : where and in what precision the model runs; "auto" takes a GPU where there is one
    part_documents      : documents between two files from which a killed run goes on
    seed                : of the groups
    The others are those of `score`.
    """

    preconditioner: Preconditioner = "identity"
    parameters: str = "all"
    engine: Engine = "auto"
    reduction: Reduction = "mean"
    context: int = 1024
    windows: Windows = "first"
    batch_tokens: int = 4096
    pilot_documents: int = 32
    curvature_documents: int = 64
    damping: float = 0.1
    group_documents: int = 0
    cosine: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    precision: Precision = "model"
    pack: bool = False
    part_documents: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cosine and self.group_documents:
            raise RecipeError(
                "The cosine belongs to single documents, and groups have one gradient together",
                where="influence.group_documents",
                remedy="Set it to 0, or choose another normalisation",
            )
        for name in ("context", "batch_tokens", "part_documents"):
            if getattr(self, name) < 1:
                raise RecipeError(
                    f"{name} is {getattr(self, name)}", where=f"influence.{name}", remedy="Give 1 or more"
                )


DEFAULT_SETTINGS = InfluenceSettings()


@dataclass(frozen=True)
class AssemblySettings:
    """How scores become weights (Eqs. 5 and 6); a change of these scores nothing again.

    checkpoint_weights  : "step" (the paper), "learning_rate" (TracIn), "uniform", "last", "best" (AutoMixer: of
                          each capability the checkpoint with the least probe loss), or a weight for each step
    normalise           : "none", "rms" (each probe and checkpoint counts alike), "cosine" (scored as such)
    floor               : least weight of a source, in units of the mean positive density
    resamples, level    : of the bootstrap intervals
    resample_checkpoints: whether checkpoints are drawn anew as documents are, so that the intervals say how far the
                          weights depend on which checkpoints were saved
    """

    checkpoint_weights: CheckpointRule = "step"
    normalise: Normalise = "none"
    floor: float = 0.0
    resamples: int = 1000
    level: float = 0.95
    resample_checkpoints: bool = True
    seed: int = 0


PROTOCOLS: dict[str, dict[str, Any]] = {
    # Sections 5.2 and Eqs. 2 to 6. How H^-1 is approximated is said by reference to AutoMixer alone.
    "mobilellm-r1": {
        "references": ["domain_models"],
        "choose": "domain",
        "checkpoints": 10,
        "checkpoint_weights": "step",
        "preconditioner": "datainf",
        "parameters": "embedding_and_output",
        "normalise": "none",
        "floor": 0.0,
    },
    # ACL 2025 long.979, from a third party's notes: one proxy, of each task the best checkpoint, DataInf on the
    # embedding and output layers.
    "automixer": {
        "references": ["uniform_proxy"],
        "choose": "uniform",
        "checkpoints": 10,
        "checkpoint_weights": "best",
        "preconditioner": "datainf",
        "parameters": "embedding_and_output",
        "normalise": "none",
        "floor": 0.0,
    },
}
"""Values of the settings under the names of published protocols; a setting that is given wins over them."""
