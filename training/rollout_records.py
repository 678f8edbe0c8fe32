"""The rollouts of a step as a parquet file: token ids, log-probabilities, rewards, advantages, and why each
ended.

A record holds all that the step's loss is made of, but for the weights: the step can be replayed from it, and
a killed run reads it instead of sampling and judging again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
from torch import Tensor

from curation.atomic import replacing
from curation.errors import DataError
from training.grpo_step import Judged
from training.rewards import Scored
from training.rollout import Rollout

SCHEMA = pa.schema(
    [
        ("question", pa.int64()),  # its row among the usable ones of the prompts' file
        ("prompt", pa.int64()),  # its place in the order of the run, which keys the random numbers
        ("replica", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("forced", pa.list_(pa.bool_())),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("finish_reason", pa.string()),
        ("truncated", pa.bool_()),
        ("thinking_tokens", pa.int32()),
        ("reward", pa.float64()),  # as the reward function gave it
        ("parts", pa.string()),  # its parts, JSON
        ("correct", pa.bool_()),
        ("shaped", pa.float64()),  # after length reward and punishment
        ("advantage", pa.float64()),
        ("trained", pa.bool_()),
        ("weight", pa.float64()),  # of the rollout's token sum in the loss
    ]
)
_FINGERPRINT = b"mixwright.run"


def write_rollouts(
    path: Path,
    fingerprint: str,
    rollouts: Sequence[Rollout],
    questions: Sequence[int],
    answers: Sequence[str],
    scored: Sequence[tuple[str, Scored]],
    judged: Judged,
    weights: Tensor,
) -> None:
    """Write the record of one step, atomically; the same step gives the same bytes. All sequences are [N]."""
    verdicts = [x.reshape(-1).tolist() for x in (judged.shaped, judged.advantages, judged.trained, weights)]
    rows = [
        {
            "question": questions[i],
            "prompt": r.prompt_index,
            "replica": r.replica,
            "prompt_ids": r.prompt_ids,
            "completion_ids": r.completion_ids,
            "logprobs": r.logprobs,
            "forced": r.forced,
            "text": scored[i][0],
            "answer": answers[i],
            "finish_reason": r.finish_reason,
            "truncated": r.truncated,
            "thinking_tokens": r.thinking_tokens,
            "reward": scored[i][1].reward,
            "parts": json.dumps(scored[i][1].parts, sort_keys=True),
            "correct": scored[i][1].correct,
            "shaped": verdicts[0][i],
            "advantage": verdicts[1][i],
            "trained": verdicts[2][i],
            "weight": verdicts[3][i],
        }
        for i, r in enumerate(rollouts)
    ]
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({_FINGERPRINT: fingerprint.encode()}))
    with replacing(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def read_rollouts(
    path: Path, fingerprint: str | None = None
) -> tuple[list[Rollout], list[tuple[str, Scored]]] | None:
    """The rollouts of a record with their texts and scores; None if there is none, or it is of another run.

    fingerprint : of the run; None reads any. Raises DataError when the file is broken.
    """
    if not path.exists():
        return None
    try:
        table = parquet.read_table(path)
        if (
            fingerprint is not None
            and (table.schema.metadata or {}).get(_FINGERPRINT) != fingerprint.encode()
        ):
            return None
        rows = table.select(SCHEMA.names).to_pylist()
        rollouts = [
            Rollout(
                row["prompt"],
                row["replica"],
                tuple(row["prompt_ids"]),
                tuple(row["completion_ids"]),
                tuple(row["logprobs"]),
                tuple(row["forced"]),
                row["truncated"],
                row["finish_reason"],
                row["thinking_tokens"],
            )
            for row in rows
        ]
        scored = [
            (row["text"], Scored(row["reward"], row["correct"], json.loads(row["parts"]))) for row in rows
        ]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"The record of rollouts cannot be read: {error}",
            where=str(path),
            remedy="Delete it; the run makes it again",
        ) from error
    return rollouts, scored
