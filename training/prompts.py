"""Prompts with reference answers, the order in which training meets them, and greedy accuracy on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from curation.errors import DataError
from training.chat import render_prompt
from training.distributed import ALONE, Ranks
from training.examples import Broken, check_broken, read_rows
from training.model import Decoder
from training.packing import seeded_permutation
from training.rewards import Reward, Scored, score
from training.rollout import Ending, Prompt, Rollout, RolloutSettings, roll_out


@dataclass(frozen=True)
class Question:
    """A prompt as token ids with its reference answer; `where` names the row it came from."""

    ids: tuple[int, ...]
    answer: str
    where: str


@dataclass(frozen=True)
class Questions:
    """The usable questions of a file, in order, and what could not be used."""

    items: tuple[Question, ...]
    broken: tuple[Broken, ...]


@dataclass(frozen=True)
class Accuracy:
    """The share of right answers with its Wilson interval, and the means of what the answers cost.

    length    : mean tokens of a completion;  truncated : share cut at a token limit;  reward : mean reward
    """

    right: int
    total: int
    value: float
    low: float
    high: float
    level: float
    reward: float
    length: float
    truncated: float

    def as_row(self) -> dict[str, Any]:
        """For a JSON line."""
        return asdict(self)


def read_questions(path: Path | str, tokenizer: Any) -> Questions:
    """The questions of a file: rows of {"prompt" or "question": text or messages, "answer": text or number}.

    Of an answer with worked steps and "####" (GSM8K) the part behind it is the reference. Rows without a
    prompt or an answer are counted and named; DataError when more than a hundredth of them are.
    """
    questions: list[Question] = []
    broken: list[Broken] = []
    for row in read_rows(path):
        if isinstance(row, Broken):
            broken.append(row)
            continue
        prompt, answer = row.value.get("prompt", row.value.get("question")), row.value.get("answer")
        reference = (
            "" if answer is None or isinstance(answer, bool) else str(answer).rpartition("####")[2].strip()
        )
        if not isinstance(prompt, str | list) or not prompt or not reference:
            broken.append(Broken(row.where, "it has no prompt with an answer"))
            continue
        try:
            questions.append(
                Question(render_prompt(tokenizer, prompt, where=row.where), reference, row.where)
            )
        except DataError as error:
            broken.append(Broken(row.where, error.what))
    check_broken(broken, len(questions), path)
    return Questions(tuple(questions), tuple(broken))


def question_at(index: int, count: int, seed: int) -> int:
    """Which of `count` questions comes at place `index` (from 0): every epoch is a permutation of its own.

    A pure function, so that a run's place in its data is one integer; no question is skipped or repeated by a
    restart.
    """
    epoch, place = divmod(index, count)
    return int(seeded_permutation(count, seed, "prompts", epoch)[place])


def score_rollouts(
    rollouts: Sequence[Rollout], answers: Sequence[str], reward: Reward, tokenizer: Any, ending: Ending
) -> list[tuple[str, Scored]]:
    """The text and score of each rollout; `answers[i]` is the reference of rollout i.

    The text keeps special tokens (a thought's ends may be special) but not the end token. Raises DataError
    naming prompt and replica when the reward fails.
    """
    scored = []
    for rollout, answer in zip(rollouts, answers, strict=True):
        ids = list(rollout.completion_ids)
        if ids and ids[-1] in ending.end_ids and not rollout.forced[-1]:
            ids.pop()
        text = tokenizer.decode(ids, skip_special_tokens=False)
        where = f"prompt {rollout.prompt_index}, replica {rollout.replica}"
        scored.append((text, score(reward, text, answer, where)))
    return scored


def accuracy(
    model: Decoder,
    questions: Sequence[Question],
    reward: Reward,
    tokenizer: Any,
    settings: RolloutSettings,
    *,
    ending: Ending | None = None,
    level: float = 0.95,
    label: str | None = None,
    ranks: Ranks = ALONE,
) -> Accuracy:
    """Greedy accuracy on `questions`, one answer each, with the Wilson score interval at `level`.

    Budgets in `settings` hold; its temperature does not. Several ranks share the questions. Raises DataError
    without questions.
    """
    if not questions:
        raise DataError(
            "There are no questions to measure accuracy on", where="evaluation", remedy="Hold some out"
        )
    ending = ending or Ending.of(tokenizer, settings)
    prompts = [Prompt(at, question.ids) for at, question in enumerate(questions)]
    begin, end = (len(prompts) * part // ranks.size for part in (ranks.rank, ranks.rank + 1))

    def answered() -> list[tuple[Rollout, Scored]]:
        part = roll_out(model, prompts[begin:end], replace(settings, temperature=0.0), ending, label=label)
        answers = [question.answer for question in questions[begin:end]]
        verdicts = score_rollouts(part, answers, reward, tokenizer, ending)
        return [(rollout, verdict) for rollout, (_, verdict) in zip(part, verdicts, strict=True)]

    found = [answer for part in ranks.gather(answered) for answer in part]
    rollouts, scored = [rollout for rollout, _ in found], [verdict for _, verdict in found]
    right, total = sum(verdict.correct for verdict in scored), len(scored)
    low, high = wilson_interval(right, total, level)
    return Accuracy(
        right,
        total,
        right / total,
        low,
        high,
        level,
        reward=sum(verdict.reward for verdict in scored) / total,
        length=sum(len(r.completion_ids) for r in rollouts) / total,
        truncated=sum(r.truncated for r in rollouts) / total,
    )


def wilson_interval(right: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson, 1927), which is honest at 0 and 1 and for few trials.

    >>> [round(x, 4) for x in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    >>> [round(x, 4) for x in wilson_interval(0, 10)]
    [0.0, 0.2775]
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return (0.0 if right == 0 else centre - half), (1.0 if right == total else centre + half)
