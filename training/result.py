"""What a finished run has made: `result.json`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from curation.atomic import read_json, write_json
from training.model import ModelConfig
from training.run_log import RunLog
from training.settings import TrainSettings


@dataclass(frozen=True)
class TrainResult:
    """What a finished run has made.

    final   : folder of the last checkpoint
    tokens  : tokens read; flops : operations to train on them, see ModelConfig.flops_per_token
    seconds : wall-clock time of the updates, over all attempts, without evaluations and checkpoints
    """

    final: Path
    steps: int
    tokens: int
    flops: float
    seconds: float


def write_result(out: Path, model_config: ModelConfig, settings: TrainSettings, log: RunLog | None) -> None:
    assert log is not None
    # The last checkpoint is in checkpoints/ by now, so nothing reads these any more, half deleted or not.
    shutil.rmtree(out / "resume", ignore_errors=True)
    tokens = settings.steps * settings.tokens_per_step
    seconds = sum(settings.tokens_per_step / max(row["tokens_per_second"], 0.1) for row in log.rows())
    record = {
        "final": f"checkpoints/step-{settings.steps}",
        "steps": settings.steps,
        "tokens": tokens,
        "flops": tokens * model_config.flops_per_token(settings.sequence_tokens),
        "seconds": round(seconds, 3),
    }
    write_json(out / "result.json", record)


def read_result(out: Path) -> TrainResult:
    record = read_json(out / "result.json")
    return TrainResult(**(record | {"final": out / record["final"]}))
