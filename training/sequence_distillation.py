"""Sequence-level distillation: what a teacher answers becomes the chats of an SFT (Kim & Rush, arXiv 1606.07947).

Answers are sampled, and by default only those stay that a reward accepts: rejection sampling, as for the traces that
LFM-1.3B-Math and MobileLLM-R1 fine-tune on. Only texts pass from teacher to student, so their tokenizers may differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from curation.atomic import hash_value, read_json, write_json, write_text
from curation.errors import DataError, RecipeError
from curation.progress import progress
from training.budgets import Ending, RolloutSettings
from training.chat import render_prompt
from training.distributed import choose_device
from training.examples import Broken, read_rows
from training.grpo_update import autocast
from training.model import Decoder
from training.prompts import Question, read_questions, score_rollouts
from training.rewards import Reward, describe_reward, named_reward
from training.rollout import Prompt, roll_out
from training.run_lock import only_process_in
from training.start import load_policy, start_hash, start_tokenizer

Keep = Literal["right", "finished", "all"]
OPENING = "<think>"


@dataclass(frozen=True)
class TeachingSettings:
    """How a teacher answers and what stays; an answer depends on `seed`, its prompt's place and its number alone.

    answers       : sampled for each prompt
    keep          : "right": those that the reward accepts; "finished": those that were not cut at a limit; "all"
    most          : kept for each prompt, None = all that may stay
    prefer        : of those, the "first" sampled or the "shortest" in the teacher's tokens
    chunk_prompts : prompts that are answered side by side, and lost at most when the process is killed
    """

    answers: int = 4
    keep: Keep = "right"
    most: int | None = 1
    prefer: Literal["first", "shortest"] = "first"
    rollout: RolloutSettings = field(default_factory=lambda: RolloutSettings(max_tokens=1024))
    chunk_prompts: int = 64
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("answers", "most", "chunk_prompts"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RecipeError(
                    f"{name} is {getattr(self, name)}", where="teaching", remedy="Give at least 1"
                )
        if self.rollout.temperature == 0 and self.answers > 1:
            raise RecipeError(
                "Greedy answers to a prompt are all the same",
                where="teaching.answers",
                remedy="Give a temperature above 0, or one answer",
            )


@dataclass(frozen=True)
class TeachingResult:
    """What was asked and kept.

    prompts : usable ones of the file;  answered : those with at least one kept answer;  answers : sampled
    right   : of these, as the reward has it, None without one;  kept : chats in `out`
    tokens  : sampled, in the teacher's tokens;  prompt_tokens : read once for all answers to a prompt
    """

    prompts: int
    answered: int
    answers: int
    right: int | None
    kept: int
    tokens: int
    prompt_tokens: int
    out: str


def write_teacher_chats(
    teacher: Path | str,
    prompts: Path | str,
    out: Path | str,
    settings: TeachingSettings | None = None,
    *,
    reward: str | Reward | None = "math",
    tokenizer: Any = None,
) -> TeachingResult:
    """Write the teacher's kept answers to `prompts` as chats into `out` (.jsonl), for `training.sft`.

    teacher : a Hugging Face folder, or a checkpoint with `tokenizer`;  prompts : as for `training.grpo`
    reward  : name or function; None only with `keep` "finished" or "all"

    A row is that of the prompt with "messages" (the prompt's and the answer with its thought), "teacher", "tokens",
    and "reward" where there is one. The same call writes the same bytes; a killed one goes on from its last chunk.
    Raises DataError when no answer at all is kept.
    """
    settings = settings or TeachingSettings()
    if reward is None and settings.keep == "right":
        raise RecipeError(
            "Without a reward nothing tells right answers",
            where="teaching.keep",
            remedy="Name a reward, or keep the finished answers",
        )
    teacher, out = Path(teacher), Path(out)
    tokenizer = start_tokenizer(teacher, tokenizer)
    questions = read_questions(prompts, tokenizer).items
    named = reward if isinstance(reward, str) or reward is None else describe_reward(reward)
    described = {
        key: value for key, value in asdict(settings).items() if key not in ("keep", "most", "prefer")
    }
    identity = hash_value([described, start_hash(teacher), named, [(q.ids, q.answer) for q in questions]])
    parts = out.with_name(f".{out.name}.{identity[:16]}")
    with only_process_in(parts):
        answers = list(_answered(teacher, questions, reward, tokenizer, settings, parts))
    raw = {row.where: row.value for row in read_rows(prompts) if not isinstance(row, Broken)}
    opened = _opening_of(tokenizer)
    rows = []
    for question, said in zip(questions, answers, strict=True):
        kept = _kept(said, settings)
        rows.append([_chat(raw[question.where], answer, opened, teacher.name) for answer in kept])
    chats = [row for group in rows for row in group]
    if not chats:
        raise DataError(
            f"None of the teacher's {len(questions) * settings.answers} answers is kept",
            where=str(out),
            remedy="Look at its texts with keep `all`, give it more tokens, or choose a better teacher",
        )
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chats))
    every = [answer for said in answers for answer in said]
    return TeachingResult(
        prompts=len(questions),
        answered=sum(map(bool, rows)),
        answers=len(every),
        right=None if reward is None else sum(answer["correct"] for answer in every),
        kept=len(chats),
        tokens=sum(answer["tokens"] for answer in every),
        prompt_tokens=sum(len(question.ids) for question in questions),
        out=str(out),
    )


def _answered(
    teacher: Path,
    questions: Sequence[Question],
    reward: str | Reward | None,
    tokenizer: Any,
    settings: TeachingSettings,
    parts: Path,
) -> Iterator[list[dict[str, Any]]]:
    """The answers to each question, from finished parts as far as there are any."""
    size = settings.chunk_prompts
    files = {first: parts / f"{first}.json" for first in range(0, len(questions), size)}
    missing = [first for first, file in files.items() if not file.exists()]
    if missing:
        function = named_reward(reward) if isinstance(reward, str) else reward
        model = load_policy(teacher).to(choose_device(settings.device)).requires_grad_(False)
        with progress("the teacher answers", len(questions), "prompts") as task, torch.inference_mode():
            task.advance(len(questions) - sum(len(questions[first : first + size]) for first in missing))
            for first in missing:
                chunk = questions[first : first + size]
                write_json(files[first], _sample(model, chunk, function, tokenizer, settings, first))
                task.advance(len(chunk))
    for file in files.values():
        yield from read_json(file)


def _sample(
    model: Decoder,
    questions: Sequence[Question],
    reward: Reward | None,
    tokenizer: Any,
    settings: TeachingSettings,
    first: int,
) -> list[list[dict[str, Any]]]:
    ending = Ending.of(tokenizer, settings.rollout)
    prompts = [Prompt(first + at, question.ids) for at, question in enumerate(questions)]
    with autocast(settings.precision, model)():
        rollouts = roll_out(
            model, prompts, settings.rollout, ending, replicas=settings.answers, seed=settings.seed
        )
    references = [question.answer for question in questions for _ in range(settings.answers)]
    scored = score_rollouts(rollouts, references, reward or _unjudged, tokenizer, ending)
    said = [
        {
            "text": text,
            "tokens": len(rollout.completion_ids),
            "finished": rollout.finish_reason == "end",
            "reward": None if reward is None else verdict.reward,
            "correct": verdict.correct,
        }
        for rollout, (text, verdict) in zip(rollouts, scored, strict=True)
    ]
    return [said[at : at + settings.answers] for at in range(0, len(said), settings.answers)]


def _unjudged(completion: str, answer: str) -> float:
    return 0.0


def _kept(said: Sequence[dict[str, Any]], settings: TeachingSettings) -> list[dict[str, Any]]:
    """The answers to one prompt that stay: different texts only, since a copy teaches nothing new."""
    wanted = {
        "right": lambda answer: answer["correct"] and answer["finished"],
        "finished": lambda answer: answer["finished"],
        "all": lambda answer: True,
    }[settings.keep]
    different = {answer["text"]: answer for answer in reversed(said) if wanted(answer)}
    ordered = [answer for answer in said if different.get(answer["text"]) is answer]
    if settings.prefer == "shortest":
        ordered.sort(key=lambda answer: answer["tokens"])
    return ordered[: settings.most]


def _opening_of(tokenizer: Any) -> str:
    """What the template's header already says of an answer: a thought that it opens belongs to the chat."""
    header = tokenizer.decode(list(render_prompt(tokenizer, "1")), skip_special_tokens=False).rstrip()
    return OPENING if header.endswith(OPENING) else ""


def _chat(row: dict[str, Any], answer: dict[str, Any], opening: str, teacher: str) -> dict[str, Any]:
    prompt: Any = row.get("prompt", row.get("question"))
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    messages = [*before, {"role": "assistant", "content": opening + answer["text"]}]
    added = {"messages": messages, "teacher": teacher, "tokens": answer["tokens"]}
    return row | added | ({} if answer["reward"] is None else {"reward": answer["reward"]})
