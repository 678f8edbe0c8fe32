"""The steps that pipelines of post-training are made of: SFT, distillation in three ways, GRPO. Each turns a model
folder into another one, can be killed and called again, and says what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as parquet

from curation.atomic import hash_file, replacing
from curation.errors import DataError
from training.chat import read_chats
from training.distillation_settings import Distillation, deciding_distillation
from training.grpo import GrpoSettings, grpo
from training.on_policy_distillation import on_policy_distillation
from training.on_policy_settings import OnPolicySettings
from training.sequence_distillation import TeachingSettings, write_teacher_chats
from training.sft import SftSettings, fit_chats, sft
from training.solve_rate import SolveRateSettings, filter_by_solve_rate
from training.start import policy_config, start_hash, start_tokenizer
from training.teacher import forward_flops, resolve_teacher


@dataclass(frozen=True)
class Inputs:
    """What all pipelines of a matrix share.

    chats : rows of messages, for SFT and distillation;  prompts : rows of prompt and answer, for GRPO and teachers
    reward : a name in training.rewards
    """

    chats: Path
    prompts: Path
    reward: str


@dataclass(frozen=True)
class Cost:
    """What a step took. trained and sampled are tokens, prompts among them; flops are those of student and teacher,
    by ModelConfig.flops_per_token: a third of a trained token's for one that is only read or sampled."""

    trained: int = 0
    sampled: int = 0
    flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.trained + other.trained, self.sampled + other.sampled, self.flops + other.flops)


class Step(Protocol):
    """One way to turn a model into another."""

    @property
    def name(self) -> str: ...
    def describe(self, inputs: Inputs) -> Any:
        """All that decides its result, but for the model that it starts from and the seed."""

    def run(self, start: Path, out: Path, seed: int, inputs: Inputs) -> Cost:
        """Train `start` into `out/model`; a killed call goes on."""


@dataclass(frozen=True)
class SftStep:
    """SFT, with logit-level distillation where the settings name a teacher.

    data : files of chats that take the place of the matrix's; several are trained on jointly
    """

    name: str
    settings: SftSettings
    data: tuple[Path, ...] = ()

    def describe(self, inputs: Inputs) -> Any:
        return [_told(self.settings), [hash_file(file) for file in self.data or (inputs.chats,)]]

    def run(self, start: Path, out: Path, seed: int, inputs: Inputs) -> Cost:
        files = self.data or (inputs.chats,)
        chats = files[0] if len(files) == 1 else _together(files, out / "chats.jsonl")
        return _fine_tune(start, chats, out, replace(self.settings, seed=seed))


@dataclass(frozen=True)
class TeachStep:
    """Sequence-level distillation: SFT on what a teacher answers to the prompts."""

    name: str
    teacher: str
    teaching: TeachingSettings
    settings: SftSettings

    def describe(self, inputs: Inputs) -> Any:
        teacher = start_hash(resolve_teacher(self.teacher))
        return [
            teacher,
            asdict(self.teaching),
            _told(self.settings),
            hash_file(inputs.prompts),
            inputs.reward,
        ]

    def run(self, start: Path, out: Path, seed: int, inputs: Inputs) -> Cost:
        folder = resolve_teacher(self.teacher)
        out.mkdir(parents=True, exist_ok=True)
        wanted = replace(self.teaching, seed=seed)
        asked = write_teacher_chats(folder, inputs.prompts, out / "chats.jsonl", wanted, reward=inputs.reward)
        read = asked.tokens + asked.prompt_tokens
        context = read // max(asked.answers, 1) + 1
        cost = Cost(sampled=read, flops=read * forward_flops(folder, context))
        return cost + _fine_tune(start, out / "chats.jsonl", out, replace(self.settings, seed=seed))


@dataclass(frozen=True)
class OnPolicyStep:
    """On-policy distillation on the prompts."""

    name: str
    settings: OnPolicySettings

    def describe(self, inputs: Inputs) -> Any:
        return [self.settings.deciding(), hash_file(inputs.prompts), hash_file(inputs.chats), inputs.reward]

    def run(self, start: Path, out: Path, seed: int, inputs: Inputs) -> Cost:
        settings = replace(self.settings, seed=seed)
        chats = inputs.chats if settings.student_share < 1 else None
        on_policy_distillation(start, inputs.prompts, inputs.reward, out, settings, chats=chats)
        return _rollouts_cost(start, out, settings.distillation)


@dataclass(frozen=True)
class RlStep:
    """GRPO on the prompts, or on those of them that `keep` finds to be of middling difficulty for its start."""

    name: str
    settings: GrpoSettings
    keep: SolveRateSettings | None = None

    def describe(self, inputs: Inputs) -> Any:
        kept = asdict(self.keep) if self.keep else None
        return [self.settings.deciding(), kept, hash_file(inputs.prompts), inputs.reward]

    def run(self, start: Path, out: Path, seed: int, inputs: Inputs) -> Cost:
        prompts, cost = inputs.prompts, Cost()
        if self.keep is not None:
            out.mkdir(parents=True, exist_ok=True)
            prompts = out / "kept.jsonl"
            wanted = replace(self.keep, seed=seed)
            found = filter_by_solve_rate(start, inputs.prompts, inputs.reward, prompts, wanted)
            if found.chosen == 0:
                raise DataError(
                    f"Of {found.prompts} prompts {found.hard} are too hard, {found.easy} too easy, and none is kept",
                    where=str(out),
                    remedy="Give prompts of other difficulty, or a pipeline without the filter",
                )
            context = found.tokens // max(found.samples, 1) + 1
            flops = found.tokens * policy_config(start).flops_per_token(context) / 3
            cost = Cost(sampled=found.tokens, flops=flops)
        grpo(start, prompts, inputs.reward, out, replace(self.settings, seed=seed))
        return cost + _rollouts_cost(start, out, None)


def _told(settings: SftSettings) -> dict[str, Any]:
    told = asdict(settings)
    if settings.turns == "all":  # so that steps from before there was a choice are found again
        del told["turns"]
    if settings.distillation:
        told["distillation"] = deciding_distillation(settings.distillation)
    return told


def _together(files: Sequence[Path], out: Path) -> Path:
    """One file with the rows of all, which must be of one kind that can be put together."""
    if any(file.suffix != ".jsonl" for file in files):
        raise DataError(
            "Only .jsonl files can be trained on together",
            where=", ".join(map(str, files)),
            remedy="Unpack them, or write their rows into one file",
        )
    with replacing(out) as temporary, temporary.open("wb") as joined:
        for file in files:
            joined.writelines(line.rstrip(b"\r\n") + b"\n" for line in file.read_bytes().splitlines())
    return out


def _fine_tune(start: Path, chats: Path, out: Path, settings: SftSettings) -> Cost:
    sft(start, chats, out, settings)
    config = policy_config(start)
    read = read_chats(chats, start_tokenizer(start, None), method=settings.mask, turns=settings.turns)
    kept, _ = fit_chats(read.chats, settings, config.max_positions, str(chats))
    tokens = settings.epochs * sum(len(chat.ids) - 1 for chat in kept)
    context = tokens // (settings.epochs * len(kept)) + 1
    per_token = config.flops_per_token(context)
    if settings.distillation:
        per_token += forward_flops(resolve_teacher(settings.distillation.teacher), context)
    return Cost(trained=tokens, flops=tokens * per_token)


def _rollouts_cost(start: Path, out: Path, distillation: Distillation | None) -> Cost:
    """From the records of a run: prompts are read once for each group when sampling, once for each row in training."""
    config = policy_config(start)
    cost = Cost()
    for prompts, completions, trained, groups in _records(out):
        rows = [p + c for p, c in zip(prompts, completions, strict=True)]
        learnt = sum(row for row, used in zip(rows, trained, strict=True) if used)
        sampled = sum(completions) + sum(dict(zip(groups, prompts, strict=True)).values())
        context = sum(rows) // len(rows) + 1
        per_token = config.flops_per_token(context)
        flops = learnt * per_token + sampled * per_token / 3
        if distillation:
            flops += learnt * forward_flops(resolve_teacher(distillation.teacher), context)
        cost += Cost(learnt, sampled, flops)
    return cost


def _records(out: Path) -> Iterable[tuple[list[int], list[int], list[bool], list[int]]]:
    for file in sorted((out / "rollouts").glob("step-*.parquet")):
        columns = ["prompt_ids", "completion_ids", "trained", "prompt"]
        table = parquet.read_table(file, columns=columns).to_pydict()
        yield (
            [len(x) for x in table["prompt_ids"]],
            [len(x) for x in table["completion_ids"]],
            table["trained"],
            table["prompt"],
        )
