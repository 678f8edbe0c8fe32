"""Prompts of middling difficulty: the solve rate of each under a model, and the ones worth training on.

A prompt that is never or always solved gives GRPO no gradient. LFM-1.3B-Math keeps those that its fine-tuned model
solves in 20 to 80 % of 13 answers; here sampling stops as soon as that is decided (training.stopping).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch

from curation.atomic import hash_value, replacing, write_json, write_text
from curation.errors import DataError, RecipeError
from curation.progress import progress
from training.budgets import Ending, RolloutSettings
from training.distributed import choose_device
from training.examples import Broken, read_rows
from training.grpo_update import autocast
from training.model import Decoder
from training.prompts import Question, read_questions, score_rollouts, wilson_interval
from training.rewards import Reward, describe_reward, named_reward
from training.rollout import Prompt, roll_out
from training.run_lock import only_process_in
from training.start import load_policy, start_hash, start_tokenizer
from training.stopping import Decision, StoppingRule

_SCHEMA = pa.schema(
    [
        ("where", pa.string()),
        ("source", pa.string()),
        ("solved", pa.int32()),
        ("sampled", pa.int32()),
        (
            "low",
            pa.float64(),
        ),  # Wilson's 90 % interval of the solve rate, which sequential stopping narrows a little
        ("high", pa.float64()),  # too much
        ("truncated", pa.int32()),
        ("tokens", pa.int64()),
        ("decision", pa.string()),  # keep, hard, easy
        ("chosen", pa.bool_()),  # kept, and not left out by the balance of sources
    ]
)


@dataclass(frozen=True)
class SolveRateSettings:
    """How to measure; a prompt's samples depend on `seed` and its place in the file alone.

    per_source    : most prompts of one source to keep, chosen by a hash; None keeps all; "smallest" as many of
                    each as the scarcest source has
    chunk_prompts : prompts that are sampled side by side, and lost at most when the process is killed
    """

    rule: StoppingRule = field(default_factory=StoppingRule)
    rollout: RolloutSettings = field(default_factory=lambda: RolloutSettings(max_tokens=1024))
    per_source: int | Literal["smallest"] | None = None
    chunk_prompts: int = 64
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.rollout.temperature == 0:
            raise RecipeError(
                "Greedy answers are all the same, so they have no solve rate",
                where="solve rate",
                remedy="Give a temperature above 0, usually 1",
            )


@dataclass(frozen=True)
class SolveRateResult:
    """How many prompts were read, decided so, and chosen; samples drawn, and what all N of each would have been."""

    prompts: int
    keep: int
    hard: int
    easy: int
    chosen: int
    broken: int
    samples: int
    samples_of_fixed_rule: int
    tokens: int
    by_source: dict[str, dict[str, int]]
    out: str
    table: str


def solve_rates(
    model: Decoder,
    questions: Sequence[Question],
    reward: Reward,
    tokenizer: Any,
    settings: SolveRateSettings,
    *,
    first: int = 0,
) -> list[dict[str, Any]]:
    """One row {solved, sampled, truncated, tokens, decision} for each question; `first` is the place of the first.

    Undecided questions get the samples up to the next look together; the tokens of one do not depend on the
    others.
    """
    ending = Ending.of(tokenizer, settings.rollout)
    rows: list[dict[str, Any]] = [
        {"solved": 0, "sampled": 0, "truncated": 0, "tokens": 0, "decision": None} for _ in questions
    ]
    before = 0
    for look in settings.rule.at:
        open_ = [at for at, row in enumerate(rows) if row["decision"] is None]
        if not open_:
            break
        # The round keys the random numbers, beside a prompt's place and the replica within the round.
        prompts = [Prompt(first + at, questions[at].ids) for at in open_]
        with autocast(settings.precision, model)():
            rollouts = roll_out(
                model,
                prompts,
                settings.rollout,
                ending,
                replicas=look - before,
                seed=settings.seed,
                step=before,
            )
        answers = [questions[at].answer for at in open_ for _ in range(look - before)]
        scored = score_rollouts(rollouts, answers, reward, tokenizer, ending)
        for rollout, (_, verdict) in zip(rollouts, scored, strict=True):
            row = rows[rollout.prompt_index - first]
            row["solved"] += verdict.correct
            row["sampled"] += 1
            row["truncated"] += rollout.truncated
            row["tokens"] += len(rollout.completion_ids)
        for at in open_:
            rows[at]["decision"] = settings.rule.decide(rows[at]["solved"], look)
        before = look
    return rows


def filter_by_solve_rate(
    start: Path | str,
    data: Path | str,
    reward: str | Reward,
    out: Path | str,
    settings: SolveRateSettings | None = None,
    *,
    tokenizer: Any = None,
) -> SolveRateResult:
    """Write the rows of `data` whose prompts are kept to `out` (.jsonl), as they are but for `solve_rate`.

    start : the model to measure with, a Hugging Face folder or a checkpoint;  data : as for `training.grpo`
    `<out>.solve_rates.parquet` has a row for every prompt. A killed call goes on from its last chunk. A finished
    one, repeated with another balance of sources, measures nothing again.
    """
    settings = settings or SolveRateSettings()
    out, start = Path(out), Path(start)
    tokenizer = start_tokenizer(start, tokenizer)
    questions = read_questions(data, tokenizer)
    raw = {row.where: row.value for row in read_rows(data) if not isinstance(row, Broken)}
    sources = [str(raw[q.where].get("source", Path(data).name)) for q in questions.items]
    measured = asdict(settings) | {"per_source": None, "chunk_prompts": settings.chunk_prompts}
    named = reward if isinstance(reward, str) else describe_reward(reward)
    identity = hash_value([measured, start_hash(start), named, [(q.ids, q.answer) for q in questions.items]])
    parts = out.with_name(f".{out.name}.{identity[:16]}")
    with only_process_in(parts):
        rows = _measured(start, questions.items, reward, tokenizer, settings, parts)
    chosen = balanced(
        [s for s, row in zip(sources, rows, strict=True) if row["decision"] == "keep"],
        settings.per_source,
        settings.seed,
    )
    kept = [at for at, row in enumerate(rows) if row["decision"] == "keep"]
    picked = {kept[at] for at in chosen}
    _write_table(out, questions.items, sources, rows, picked)
    lines = [raw[questions.items[at].where] | {"solve_rate": _rate(rows[at])} for at in sorted(picked)]
    write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return _result(rows, sources, picked, len(questions.broken), settings, out)


def balanced(sources: Sequence[str], limit: int | Literal["smallest"] | None, seed: int) -> list[int]:
    """Places to keep so that no source has more than `limit`, chosen by a hash of seed and place, in order.

    >>> balanced(["a", "b", "a", "a"], 1, 0) == balanced(["a", "b", "a", "a"], "smallest", 0)
    True
    """
    counts = Counter(sources)
    most = min(counts.values(), default=0) if limit == "smallest" else limit
    ranked = sorted(range(len(sources)), key=lambda at: hash_value([seed, sources[at], at]))
    taken: Counter[str] = Counter()
    chosen = []
    for at in ranked:
        taken[sources[at]] += 1
        if most is None or taken[sources[at]] <= most:
            chosen.append(at)
    return sorted(chosen)


def _measured(
    start: Path,
    questions: Sequence[Question],
    reward: str | Reward,
    tokenizer: Any,
    settings: SolveRateSettings,
    parts: Path,
) -> list[dict[str, Any]]:
    """The rows of all questions, from finished parts as far as there are any."""
    size = settings.chunk_prompts
    files = {first: parts / f"{first}.json" for first in range(0, len(questions), size)}
    missing = [first for first, file in files.items() if not file.exists()]
    if missing:
        function = named_reward(reward) if isinstance(reward, str) else reward
        model = load_policy(start).to(choose_device(settings.device)).requires_grad_(False)
        with progress("solve rates", len(questions), "prompts") as task, torch.inference_mode():
            task.advance(len(questions) - sum(len(questions[f : f + size]) for f in missing))
            for first in missing:
                chunk = questions[first : first + size]
                write_json(
                    files[first], solve_rates(model, chunk, function, tokenizer, settings, first=first)
                )
                task.advance(len(chunk))
    rows: list[dict[str, Any]] = []
    for file in files.values():
        rows += json.loads(file.read_text())
    if len(rows) != len(questions):
        raise DataError(
            f"{len(rows)} prompts were measured, not {len(questions)}",
            where=str(parts),
            remedy="Delete the folder",
        )
    return rows


def _rate(row: dict[str, Any]) -> float:
    return float(row["solved"] / row["sampled"])


def _write_table(
    out: Path,
    questions: Sequence[Question],
    sources: Sequence[str],
    rows: Sequence[dict[str, Any]],
    picked: set[int],
) -> None:
    values = []
    for at, (question, source, row) in enumerate(zip(questions, sources, rows, strict=True)):
        low, high = wilson_interval(row["solved"], row["sampled"], 0.9)
        named = {"where": question.where, "source": source, "low": low, "high": high, "chosen": at in picked}
        values.append(row | named)
    with replacing(_table(out)) as temporary:
        parquet.write_table(pa.Table.from_pylist(values, _SCHEMA), temporary, compression="zstd")


def _table(out: Path) -> Path:
    return out.with_name(f"{out.name}.solve_rates.parquet")


def _result(
    rows: Sequence[dict[str, Any]],
    sources: Sequence[str],
    picked: set[int],
    broken: int,
    settings: SolveRateSettings,
    out: Path,
) -> SolveRateResult:
    decisions: Counter[Decision] = Counter(row["decision"] for row in rows)
    by_source: dict[str, dict[str, int]] = {}
    for at, (source, row) in enumerate(zip(sources, rows, strict=True)):
        counts = by_source.setdefault(source, {"keep": 0, "hard": 0, "easy": 0, "chosen": 0})
        counts[row["decision"]] += 1
        counts["chosen"] += at in picked
    return SolveRateResult(
        prompts=len(rows),
        keep=decisions["keep"],
        hard=decisions["hard"],
        easy=decisions["easy"],
        chosen=len(picked),
        broken=broken,
        samples=int(np.sum([row["sampled"] for row in rows])),
        samples_of_fixed_rule=len(rows) * settings.rule.samples,
        tokens=int(np.sum([row["tokens"] for row in rows])),
        by_source=by_source,
        out=str(out),
        table=str(_table(out)),
    )
