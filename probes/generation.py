"""Generation benchmarks: sampled answers, checked, with all that was set stored beside them.

Prompts are answered by `training.rollout` and judged by a reward of `training.rewards`; code runs in its sandbox.
A row of the table is one sample (`SAMPLES`), from which `GenerationResult` makes avg@n, maj@k, pass@k, the rates of
cut and missing answers and the lengths. A sample's tokens depend on (seed, place of its prompt, replica) alone, and
the first tokens of a longer answer are those of a shorter limit, so scores by response budget need no second run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from curation.atomic import hash_value
from curation.errors import DataError, RecipeError
from curation.progress import progress
from probes.generation_records import SAMPLES, model_hash, read_samples, write_samples
from probes.intervals import LEVEL, RESAMPLES
from probes.pass_at_k import Estimate, avg_at_n, mean_maj_at_k, mean_pass_at_k
from training.chat import render_prompt
from training.grpo_update import autocast
from training.model import Decoder
from training.rewards import Reward, answer_part, extract_answer, named_reward, score
from training.rewards.mathematics import answers_equal
from training.rewards.rules import ChoiceReward
from training.rollout import Ending, Prompt, Rollout, RolloutSettings, roll_out
from training.run_lock import only_process_in
from training.text_encoding import document_ends, hash_tokenizer, text_encoder

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are sampled; all of it is stored with the result.

    samples       : n answers a prompt; with temperature 0 all would be the same, so then it must be 1
    rollout       : lengths, temperature, top-p and budgets, see training.budgets
    stop          : strings that end an answer; the answer is cut before the first of them, and what the model wrote
                    beyond is neither judged nor counted
    chat          : the prompt is a user's message in the tokenizer's chat template; else plain text after bos
    seed          : of the samples
    chunk_prompts : prompts after which finished samples are written, where there is a folder for them
    """

    samples: int = 1
    rollout: RolloutSettings = RolloutSettings(temperature=0.0)
    stop: tuple[str, ...] = ()
    chat: bool = False
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    chunk_prompts: int = 32

    def __post_init__(self) -> None:
        if self.samples < 1 or self.chunk_prompts < 1:
            raise RecipeError("samples and chunk_prompts must be at least 1", where="generation")
        if self.rollout.temperature == 0 and self.samples > 1:
            raise RecipeError(
                f"{self.samples} greedy samples of a prompt are all the same",
                where="generation.samples",
                remedy="Take 1 sample, or a temperature above 0",
            )
        if any(not stop for stop in self.stop):
            raise RecipeError("A stop string is empty", where="generation.stop", remedy="Leave it out")


@dataclass(frozen=True)
class GenerationResult:
    """Samples (`SAMPLES`, in the order of prompts and replicas), settings, and what they amount to.

    settings    : the sampling settings, the reward and the hashes of model and tokenizer, JSON-able
    prompts_cut : prompts longer than the context allows, of which the beginning was left out
    """

    samples: pa.Table
    settings: dict[str, Any]
    prompts_cut: int

    @property
    def correct(self) -> np.ndarray:
        """bool [problems, n]."""
        return self._grid("correct").astype(bool)

    @property
    def truncated(self) -> float:
        """Share of samples that ran into a token limit."""
        return float(np.mean(self._grid("truncated")))

    @property
    def no_answer(self) -> float:
        """Share of samples in which no answer was found."""
        return self.samples["answer"].null_count / len(self.samples)

    def lengths(self) -> dict[float, float]:
        """Quantiles of the tokens of a sample."""
        tokens = self.samples["tokens"].to_numpy()
        return dict(zip(QUANTILES, np.quantile(tokens, QUANTILES).tolist(), strict=True))

    def avg_at_n(self, *, resamples: int = RESAMPLES, level: float = LEVEL) -> Estimate:
        """See `probes.pass_at_k`, as the next two."""
        return avg_at_n(self.correct, resamples=resamples, level=level)

    def pass_at_k(self, k: int, *, resamples: int = RESAMPLES, level: float = LEVEL) -> Estimate:
        return mean_pass_at_k(self.correct, k, resamples=resamples, level=level)

    def maj_at_k(self, k: int, *, resamples: int = RESAMPLES, level: float = LEVEL) -> Estimate:
        """RecipeError for programs, of which none is equal to another."""
        if self.settings["reward"] == "code":
            raise RecipeError("Programs have no majority", where="maj@k", remedy="Use pass@k")
        classes = self._grid("answer_class")
        return mean_maj_at_k(classes, self._class_verdicts(classes), k, resamples=resamples, level=level)

    def summary(self) -> dict[str, Any]:
        """Accuracy with its errors, pass@n, maj@n, rates and lengths, JSON-able."""
        n = self.correct.shape[1]
        found: dict[str, Any] = {
            "problems": len(self.correct),
            "samples_per_problem": n,
            f"avg@{n}": asdict(self.avg_at_n()),
            "truncated": self.truncated,
            "no_answer": self.no_answer,
            "finish_reasons": dict(Counter(self.samples["finish_reason"].to_pylist())),
            "mean_tokens": float(np.mean(self.samples["tokens"].to_numpy())),
            "token_quantiles": {str(at): value for at, value in self.lengths().items()},
            "prompts_cut": self.prompts_cut,
            "settings": self.settings,
        }
        if n > 1:
            found[f"pass@{n}"] = asdict(self.pass_at_k(n))
            if self.settings["reward"] != "code":
                found[f"maj@{n}"] = asdict(self.maj_at_k(n))
        return found

    def _grid(self, column: str) -> np.ndarray:
        values = self.samples[column].to_numpy(zero_copy_only=False)
        return values.reshape(-1, self.settings["samples"])

    def _class_verdicts(self, classes: np.ndarray) -> np.ndarray:
        """The verdict of each class is that of its first sample: equality of stated answers is not quite transitive."""
        verdicts = self.correct.copy()
        for row, named in zip(verdicts, classes, strict=True):
            for name in set(named.tolist()) - {-1}:
                row[named == name] = row[np.flatnonzero(named == name)[0]]
        return verdicts


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
    judge = _Judge(reward_name, tokenizer, ending, settings)
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
    settings = _settings_of(result.settings)
    if settings.rollout.thinking_tokens is not None or not 1 <= max_tokens <= settings.rollout.max_tokens:
        raise RecipeError(
            f"Samples of a run with {settings.rollout} cannot be cut to {max_tokens} tokens",
            where="max_tokens",
            remedy="Give 1 to the run's max_tokens, of a run without budgets for thought and answer",
        )
    cut = replace(settings, rollout=replace(settings.rollout, max_tokens=max_tokens))
    ending = replace(
        Ending.of(tokenizer, cut.rollout, tuple(result.settings["end_ids"])), stop=settings.stop
    )
    judge = _Judge(result.settings["reward"], tokenizer, ending, cut)
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


@dataclass(frozen=True)
class _Job:
    """A prompt as it is fed, the number of its tokens that had no room, and what judges its answers."""

    name: str
    prompt: Prompt
    cut: int
    answer: str
    head: str


class _Judge:
    """From a sample's tokens to its text, its stated answer and the verdict."""

    def __init__(
        self, reward_name: str, tokenizer: Any, ending: Ending, settings: GenerationSettings
    ) -> None:
        self.name, self.tokenizer, self.ending, self.settings = reward_name, tokenizer, ending, settings
        self.reward: Reward = named_reward(reward_name)

    def row(self, rollout: Rollout, job: _Job) -> dict[str, Any]:
        ids = list(rollout.completion_ids)
        ended = bool(ids) and ids[-1] in self.ending.end_ids and not rollout.forced[-1]
        return {
            "prompt": job.name,
            "replica": rollout.replica,
            "token_ids": ids,
            "prompt_tokens": len(job.prompt.ids),
            "prompt_cut": job.cut,
            "finish_reason": rollout.finish_reason,
            "truncated": rollout.truncated,
        } | self.verdict(ids, ended, job.answer, job.head)

    def verdict(self, ids: Sequence[int], ended: bool, answer: str, head: str) -> dict[str, Any]:
        text = self.tokenizer.decode(list(ids[:-1] if ended else ids), skip_special_tokens=False)
        places = [at for at in (text.find(stop) for stop in self.settings.stop) if at >= 0]
        text = text[: min(places)] if places else text
        scored = score(self.reward, head + text, answer)
        stated = stated_answer(self.name, text)
        return {"text": text, "tokens": len(ids), "correct": scored.correct, "answer": stated}

    def classify(self, rows: Sequence[dict[str, Any]]) -> None:
        """Number the equal answers of one problem's samples from 0; -1 for none."""
        known: dict[str, int] = {}
        firsts: list[str] = []
        for row in rows:
            answer = row["answer"]
            if answer is None:
                row["answer_class"] = -1
                continue
            if answer not in known:
                found = (at for at, first in enumerate(firsts) if self._equal(first, answer))
                known[answer] = next(found, len(firsts))
                if known[answer] == len(firsts):
                    firsts.append(answer)
            row["answer_class"] = known[answer]

    def _equal(self, one: str, other: str) -> bool:
        if not self.name.startswith("math"):
            return False  # equal texts are found before
        opinion: Callable[[str, str], bool | None] | None = getattr(self.reward, "second_opinion", None)
        return answers_equal(one, other, opinion)

    def close(self) -> None:
        """End the sandbox or the process of math-verify, where there is one."""
        opinion = getattr(getattr(self.reward, "second_opinion", None), "__self__", None)
        for holder in (self.reward, opinion):
            if hasattr(holder, "close"):
                holder.close()


def stated_answer(reward_name: str, text: str) -> str | None:
    """The answer that a text states, as the reward of that name reads it; None when it states none.

    Of programs, and of what is compared whole, only an empty text is none.

    >>> stated_answer("math", "So 3 + 4 = 7"), stated_answer("choice", "It is (B)."), stated_answer("exact", " ")
    ('7', 'B', None)
    """
    part = answer_part(text)
    if reward_name.startswith("math"):
        return extract_answer(part)
    if reward_name == "choice":
        return next((letter for letter in "ABCDEFGHIJ" if ChoiceReward()(text, letter).correct), None)
    if reward_name == "code":
        from training.rewards.code import program_in

        return program_in(text).strip() or None
    return part.strip() or None


def _in_chunks(
    model: Decoder,
    jobs: Sequence[_Job],
    judge: _Judge,
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


def _samples(
    model: Decoder, jobs: Sequence[_Job], judge: _Judge, settings: GenerationSettings
) -> pa.Table:
    with autocast(settings.precision, model)(), torch.inference_mode():
        rollouts = roll_out(
            model,
            [job.prompt for job in jobs],
            settings.rollout,
            judge.ending,
            replicas=settings.samples,
            seed=settings.seed,
        )
    rows = [judge.row(rollout, jobs[at // settings.samples]) for at, rollout in enumerate(rollouts)]
    for first in range(0, len(rows), settings.samples):
        judge.classify(rows[first : first + settings.samples])
    return pa.Table.from_pylist(rows, SAMPLES)


def _encode(
    prompts: Sequence[str], tokenizer: Any, settings: GenerationSettings
) -> list[tuple[int, ...]]:
    if settings.chat:
        return [
            render_prompt(tokenizer, prompt, where=f"prompt {at}") for at, prompt in enumerate(prompts)
        ]
    begin = document_ends(tokenizer)[0]
    return [(begin, *found) for found in text_encoder(tokenizer)(prompts)]


def _cut(ids: tuple[int, ...], room: int) -> tuple[int, ...]:
    return ids if len(ids) <= room else (ids[0], *ids[len(ids) - room + 1 :])


def _settings_of(described: dict[str, Any]) -> GenerationSettings:
    names = ("samples", "chat", "seed", "precision")
    return GenerationSettings(
        rollout=RolloutSettings(**described["rollout"]),
        stop=tuple(described["stop"]),
        **{name: described[name] for name in names},
    )


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
