"""How large the study is: model, training, numbers of runs. `tiny` is for tests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from benchmarks.study.corpora import CorpusShape
from training.model import ModelConfig


@dataclass(frozen=True)
class StudyShape:
    """Sizes of everything.

    trunk_steps : 0 = runs start from drawn weights; else from a model trained so long on the uniform mixture at
                  the full rate, and the runs are branches in which the rate falls to zero
    steps, batch, learning_rate : of every run; the rate falls linearly to zero, so the last weights are an average
    search_seeds  : of leave-one-out and its baseline; the first is also that of random mixtures and domain models
    truth_seeds   : of further leave-one-out runs that no method sees, only the fidelity of influence
    target_seeds  : of the runs that compare mixtures; none of them is a search seed
    random        : mixtures drawn from a flat Dirichlet
    checkpoints   : of the reference models that influence is measured with; of domain models every second is scored
    documents     : of each source that are scored
    """

    model: ModelConfig
    corpora: CorpusShape = field(default_factory=CorpusShape)
    trunk_steps: int = 0
    steps: int = 300
    batch: int = 8
    sequence: int = 256
    learning_rate: float = 1e-2
    precision: str = "bfloat16"
    search_seeds: tuple[int, ...] = (0, 1)
    truth_seeds: tuple[int, ...] = (2, 3)
    target_seeds: tuple[int, ...] = (10, 11, 12, 13, 14, 15, 16, 17, 18)
    random: int = 20
    checkpoints: int = 10
    documents: int = 20
    curvature_documents: int = 20

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Evenly spaced, the last at the end."""
        return tuple(round(self.steps * (at + 1) / self.checkpoints) for at in range(self.checkpoints))


def _model(dim: int, layers: int, heads: int, ffn: int, vocabulary: int, sequence: int) -> ModelConfig:
    return ModelConfig(
        vocabulary,
        dim,
        layers,
        heads=heads,
        kv_heads=heads,
        head_dim=32,
        ffn_dim=ffn,
        max_positions=sequence,
    )


SHAPES = {
    "scratch": StudyShape(_model(64, 3, 3, 192, 2048, 256)),
    "branch": StudyShape(
        _model(64, 3, 3, 192, 2048, 256), trunk_steps=1000, steps=100, learning_rate=6e-3, random=16
    ),
    "tiny": StudyShape(
        _model(16, 1, 1, 16, 512, 32),
        CorpusShape(vocabulary=512, piece=120, share=1.0, probe_bytes=1500, tokenizer_bytes=4000),
        steps=6,
        batch=4,
        sequence=32,
        search_seeds=(0, 1),
        truth_seeds=(),
        target_seeds=(10, 11),
        random=3,
        checkpoints=2,
        documents=3,
        curvature_documents=10,
        precision="float32",
    ),
}
SHAPES["tiny-branch"] = replace(SHAPES["tiny"], trunk_steps=4)
