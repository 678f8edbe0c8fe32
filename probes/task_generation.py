"""Generation tasks: answers drawn and judged as the task says, in the records and metrics that all tasks have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from probes.generation import GenerationResult, GenerationSettings, at_budget, generate_and_score
from probes.pass_at_k import Estimate
from probes.task_record import Generation, Item, Task
from training.model import Decoder
from training.rollout import RolloutSettings

Precision = Literal["float32", "bfloat16"]
LEVEL = 0.95  # of the intervals, as of every other metric of a task
SAMPLE_COLUMNS = ("replica", "text", "tokens", "correct", "truncated", "finish_reason", "answer")


def settings_for(generation: Generation, seed: int, precision: Precision = "float32") -> GenerationSettings:
    """The task's sampling settings with the evaluation's seed and precision."""
    rollout = RolloutSettings(
        max_tokens=generation.max_tokens,
        temperature=generation.temperature,
        top_p=generation.top_p,
        thinking_tokens=generation.thinking_tokens,
        answer_tokens=generation.answer_tokens,
    )
    return GenerationSettings(
        samples=generation.samples, rollout=rollout, stop=generation.stop, chat=generation.chat, seed=seed,
        precision=precision,
    )  # fmt: skip


def score_generation(
    task: Task,
    items: Sequence[Item],
    model: Decoder,
    tokenizer: Any,
    *,
    seed: int,
    out: Path | None,
    precision: Precision = "float32",
    end_ids: Sequence[int] = (),
) -> tuple[pa.Table, dict[str, dict[str, float]], dict[str, int]]:
    """Records (a row a sample), metrics and counts of a generation task.

    An item's `gold` is the reference that the reward wants, its `head` is put before each answer when it is judged.
    out : the folder in which finished samples are kept, so that a killed call goes on
    Metrics: accuracy (avg@n) and, for several samples, pass@n and maj@n, each with its interval; accuracy at each of
    the task's budgets; the shares of cut and of missing answers; the mean number of tokens.
    """
    answers = [item.gold for item in items]
    heads = [item.head for item in items]
    result = generate_and_score(
        model,
        tokenizer,
        [item.prompt for item in items],
        answers,
        task.generation.reward,
        settings_for(task.generation, seed, precision),
        ids=[item.id for item in items],
        heads=heads,
        out=out,
        end_ids=end_ids,
        label=task.name,
    )
    metrics = _metrics(result)
    for budget in task.generation.budgets:
        cut = at_budget(result, tokenizer, answers, budget)
        metrics[f"accuracy@{budget}"] = _estimate(cut.avg_at_n(level=LEVEL))
    samples = result.samples
    columns = {"id": samples["prompt"], "form": pa.array(["generation"] * len(samples))}
    columns |= {name: samples[name] for name in SAMPLE_COLUMNS} | {"dropped": samples["prompt_cut"]}
    counts = {"items": len(items), "items_with_dropped_context": result.prompts_cut}
    return pa.table(columns), metrics, counts


def _metrics(result: GenerationResult) -> dict[str, dict[str, float]]:
    samples = result.correct.shape[1]
    metrics = {"accuracy": _estimate(result.avg_at_n(level=LEVEL))}
    if samples > 1:
        metrics[f"pass@{samples}"] = _estimate(result.pass_at_k(samples, level=LEVEL))
        if result.settings["reward"] != "code":
            metrics[f"maj@{samples}"] = _estimate(result.maj_at_k(samples, level=LEVEL))
    summary = result.summary()
    return metrics | {
        name: {"value": float(summary[name])} for name in ("truncated", "no_answer", "mean_tokens")
    }


def _estimate(found: Estimate) -> dict[str, float]:
    return {
        "value": found.value,
        "stderr": found.standard_error,
        "low": found.interval.low,
        "high": found.interval.high,
    }
