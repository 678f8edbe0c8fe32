"""Generation benchmarks: sampled answers, checked, with all that was set stored beside them.

Prompts are answered by `training.rollout` and judged by a reward of `training.rewards`; code runs in its sandbox.
A row of the table is one sample (`SAMPLES`), from which `GenerationResult` makes avg@n, maj@k, pass@k, the rates of
cut and missing answers and the lengths. A sample's tokens depend on (seed, place of its prompt, replica) alone, and
the first tokens of a longer answer are those of a shorter limit, so scores by response budget need no second run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from curation.atomic import hash_value
from curation.errors import DataError, RecipeError
from curation.progress import progress
from probes.generation_records import SAMPLES, model_hash, read_samples, write_samples
from probes.generation_result import GenerationResult, GenerationSettings, settings_of
from probes.judging import Judge
from training.chat import render_prompt
from training.grpo_update import autocast
from training.model import Decoder
from training.rollout import Ending, Prompt, Rollout, roll_out
from training.run_lock import only_process_in
from training.text_encoding import document_ends, hash_tokenizer, text_encoder

__all__ = ["GenerationResult", "GenerationSettings", "at_budget", "generate_and_score"]


@dataclass(frozen=True)
class _Job:
    """A prompt as it is fed, the number of its tokens that had no room, and what judges its answers."""

    name: str
    prompt: Prompt
    cut: int
    answer: str
    head: str


def generate_and_score(
    model: Decoder,
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    reward_name: str,
    settings: GenerationSettings | None = None,
    *,
    ids: Sequence[str] | None = None,
    heads: Sequence[str] | None = None,
    out: Path | str | None = None,
    end_ids: Sequence[int] = (),
    label: str | None = None,
) -> GenerationResult:
    """Answer every prompt `settings.samples` times and judge the answers.

    answers     : the reference of each prompt, as the reward wants it; for `code` the tests, see training.rewards.code
    reward_name : one of training.rewards.REWARDS
    ids         : names of the prompts, unique; their places if not given
    heads       : text put before each answer when it is judged, such as the function's head that HumanEval's
                  prompts end with
    out         : folder for samples.parquet; a killed call goes on from its last chunk, a finished one is read
    end_ids     : more tokens that end an answer, beside the tokenizer's eos (see `read_generation`)

    A prompt beyond the context keeps its first token and its last ones, and is counted. Raises DataError for no
    prompts, an empty one, or duplicate ids; RecipeError when the answers alone exceed the context.
    """
    settings = settings or GenerationSettings()
    names = [str(at) for at in range(len(prompts))] if ids is None else list(ids)
    _check(prompts, answers, names, heads)
    ending = replace(Ending.of(tokenizer, settings.rollout, end_ids), stop=settings.stop)
    encoded = _encode(prompts, tokenizer, settings)
    room = model.config.max_positions - settings.rollout.longest(len(ending.closing))
    if room < 2:
        raise RecipeError(
            f"Answers may have {model.config.max_positions - room} tokens, but the model reads "
            f"{model.config.max_positions}",
            where="generation.rollout",
            remedy="Shorten the answers (max_tokens, or the budgets)",
        )
    told = zip(names, encoded, answers, heads or [""] * len(names), strict=True)
    jobs = [
        _Job(name, Prompt(at, _cut(found, room)), max(len(found) - room, 0), answer, head)
        for at, (name, found, answer, head) in enumerate(told)
    ]
    described = asdict(settings) | {"reward": reward_name, "end_ids": sorted(ending.end_ids)}
    described |= {"model": model_hash(model), "tokenizer": hash_tokenizer(tokenizer)}
    del described["chunk_prompts"]
    judge = Judge(reward_name, tokenizer, ending, settings)
    try:
        table = _in_chunks(model, jobs, judge, described, settings, out, label)
    finally:
        judge.close()
    return GenerationResult(table, described, sum(job.cut > 0 for job in jobs))


def at_budget(
    result: GenerationResult,
    tokenizer: Any,
    answers: Sequence[str],
    max_tokens: int,
    *,
    heads: Sequence[str] | None = None,
) -> GenerationResult:
    """The same samples under a smaller limit of tokens: longer ones are cut there and judged anew.

    It is what a run with that limit would have sampled (up to rounding, see `roll_out`), but for prompts that were
    cut to make room, which a smaller limit would have cut less. RecipeError for a limit above the run's, and for a
    run with budgets for thought and answer, whose forced tokens depend on them.
    """
    settings = settings_of(result.settings)
    if settings.rollout.thinking_tokens is not None or not 1 <= max_tokens <= settings.rollout.max_tokens:
        raise RecipeError(
            f"Samples of a run with {settings.rollout} cannot be cut to {max_tokens} tokens",
            where="max_tokens",
            remedy="Give 1 to the run's max_tokens, of a run without budgets for thought and answer",
        )
    cut = replace(settings, rollout=replace(settings.rollout, max_tokens=max_tokens))
    ending = replace(Ending.of(tokenizer, cut.rollout, tuple(result.settings["end_ids"])), stop=settings.stop)
    judge = Judge(result.settings["reward"], tokenizer, ending, cut)
    rows = result.samples.to_pylist()
    try:
        for at, row in enumerate(rows):
            if len(row["token_ids"]) > max_tokens:
                row["token_ids"] = row["token_ids"][:max_tokens]
                row |= {"finish_reason": "length", "truncated": True}
                place = at // settings.samples
                row |= judge.verdict(row["token_ids"], False, answers[place], heads[place] if heads else "")
        for first in range(0, len(rows), settings.samples):
            judge.classify(rows[first : first + settings.samples])
    finally:
        judge.close()
    described = result.settings | {"rollout": asdict(cut.rollout)}
    return GenerationResult(pa.Table.from_pylist(rows, SAMPLES), described, result.prompts_cut)


def _in_chunks(
    model: Decoder,
    jobs: Sequence[_Job],
    judge: Judge,
    described: dict[str, Any],
    settings: GenerationSettings,
    out: Path | str | None,
    label: str | None,
) -> pa.Table:
    """All samples; with a folder, from the chunks that are finished as far as there are any."""
    chunks = [jobs[at : at + settings.chunk_prompts] for at in range(0, len(jobs), settings.chunk_prompts)]
    if out is None:
        return pa.concat_tables([_samples(model, chunk, judge, settings) for chunk in chunks])
    told = [(job.name, job.prompt.ids, job.answer, job.head) for job in jobs]
    identity = hash_value([described, told])
    out = Path(out)
    with only_process_in(out):
        whole = read_samples(out / "samples.parquet", identity)
        if whole is not None:
            return whole
        parts = out / f".parts-{identity[:16]}"
        tables = []
        with progress(label or "generation", len(jobs), "prompts") as task:
            for chunk in chunks:
                file = parts / f"{chunk[0].prompt.index}-{len(chunk)}.parquet"
                table = read_samples(file, identity)
                if table is None:
                    table = _samples(model, chunk, judge, settings)
                    write_samples(file, table, identity)
                tables.append(table)
                task.advance(len(chunk))
        whole = pa.concat_tables(tables)
        write_samples(out / "samples.parquet", whole, identity, json.dumps(described, sort_keys=True))
        for file in parts.iterdir():
            file.unlink()
        parts.rmdir()
    return whole


def _samples(model: Decoder, jobs: Sequence[_Job], judge: Judge, settings: GenerationSettings) -> pa.Table:
    with autocast(settings.precision, model)(), torch.inference_mode():
        rollouts = roll_out(
            model,
            [job.prompt for job in jobs],
            settings.rollout,
            judge.ending,
            replicas=settings.samples,
            seed=settings.seed,
        )
    rows = [_row(rollout, jobs[at // settings.samples], judge) for at, rollout in enumerate(rollouts)]
    for first in range(0, len(rows), settings.samples):
        judge.classify(rows[first : first + settings.samples])
    return pa.Table.from_pylist(rows, SAMPLES)


def _row(rollout: Rollout, job: _Job, judge: Judge) -> dict[str, Any]:
    ids = list(rollout.completion_ids)
    ended = bool(ids) and ids[-1] in judge.ending.end_ids and not rollout.forced[-1]
    return {
        "prompt": job.name,
        "replica": rollout.replica,
        "token_ids": ids,
        "prompt_tokens": len(job.prompt.ids),
        "prompt_cut": job.cut,
        "finish_reason": rollout.finish_reason,
        "truncated": rollout.truncated,
    } | judge.verdict(ids, ended, job.answer, job.head)


def _encode(prompts: Sequence[str], tokenizer: Any, settings: GenerationSettings) -> list[tuple[int, ...]]:
    if settings.chat:
        return [render_prompt(tokenizer, prompt, where=f"prompt {at}") for at, prompt in enumerate(prompts)]
    begin = document_ends(tokenizer)[0]
    return [(begin, *found) for found in text_encoder(tokenizer)(prompts)]


def _cut(ids: tuple[int, ...], room: int) -> tuple[int, ...]:
    return ids if len(ids) <= room else (ids[0], *ids[len(ids) - room + 1 :])


def _check(
    prompts: Sequence[str], answers: Sequence[str], names: Sequence[str], heads: Sequence[str] | None
) -> None:
    if not prompts:
        raise DataError("There are no prompts to answer", where="generation")
    sizes = {len(prompts), len(answers), len(names), len(prompts if heads is None else heads)}
    if len(sizes) > 1:
        raise DataError(
            f"{len(prompts)} prompts have {len(answers)} answers and {len(names)} ids",
            where="generation",
            remedy="Give one of each (and of `heads`) for every prompt",
        )
    double = [name for name, count in Counter(names).items() if count > 1]
    if double:
        raise DataError(f"Prompt {double[0]} is there twice", where="generation", remedy="Give unique ids")
    empty = [name for name, prompt in zip(names, prompts, strict=True) if not prompt.strip()]
    if empty:
        raise DataError("The prompt is empty", where=f"prompt {empty[0]}", remedy="Leave it out")
