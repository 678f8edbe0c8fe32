"""GRPO: the model answers prompts, rewards judge the answers, and one on-policy update follows each step.

A step samples `replicas` answers to each of `prompts_per_step` prompts, scores them, subtracts each group's
baseline, and makes one update (by default) with the log-probabilities recomputed in chunks. Every random
number is keyed by seed, step, prompt, replica and position, and the prompts' order is a pure function of seed
and place: the state of a run is its weights, Adam's moments and two integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from curation.atomic import hash_value, read_json, write_json
from curation.errors import DataError, RecipeError
from curation.progress import progress
from training.checkpoint import (
    STATE,
    TrainingState,
    describe_run,
    list_checkpoints,
    load_checkpoint_model,
    refuse_other_settings,
    remove_checkpoint,
    restore_checkpoint,
    write_checkpoint,
)
from training.grpo_step import GradientStats, Judged, ObjectiveSettings, add_gradient, judge, step_weights
from training.huggingface import load_huggingface, save_huggingface
from training.loop import _only_process_in, _start_hash
from training.model import Decoder
from training.optimizer import build_adamw, set_rate
from training.prompts import Question, accuracy, question_at, read_questions, score_rollouts
from training.rewards import Reward, Scored, named_reward
from training.rollout import Ending, Prompt, Rollout, RolloutSettings, roll_out
from training.rollout_records import read_rollouts, write_rollouts
from training.run_log import RunLog
from training.schedules import Schedule, check_schedule, rate_factor
from training.sft import start_tokenizer


@dataclass(frozen=True)
class GrpoSettings:
    """How to train; see RolloutSettings for lengths and budgets and ObjectiveSettings for what is maximised.

    replicas             : G, answers to each prompt
    updates              : updates on the rollouts of one step; 1 is exactly on-policy, more need the clips
    micro_batch_rollouts : rollouts of one forward and backward pass; does not change the gradient
    checkpoint_every     : steps between checkpoints, which serve to continue after a kill
    evaluate_every       : steps between evaluations on the held-out prompts; 0 is before and after only
    """

    steps: int = 100
    prompts_per_step: int = 8
    replicas: int = 8
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    updates: int = 1
    learning_rate: float = 5e-6
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float = 1.0
    micro_batch_rollouts: int = 16
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int = 10
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompts_per_step", "updates", "micro_batch_rollouts", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}", where="grpo", remedy="Give at least 1")
        if self.replicas < 2:
            raise RecipeError(
                "A group of one rollout has no baseline, so it can teach nothing",
                where="grpo.replicas",
                remedy="Give at least 2, better 8",
            )
        if self.rollout.temperature == 0:
            raise RecipeError(
                "Greedy rollouts of a prompt are all the same",
                where="grpo.rollout.temperature",
                remedy="Give a temperature above 0, usually 1",
            )
        check_schedule(self.schedule, steps=self.steps, warmup_steps=self.warmup_steps)


@dataclass(frozen=True)
class GrpoResult:
    """What a run came to; before and after are rows of Accuracy on the held-out prompts, None without those.

    updates : steps in which some group trained, times the updates of a step
    """

    final: Path
    steps: int
    updates: int
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def grpo(
    start: Path | str,
    prompts: Path | str,
    reward: str | Reward,
    out: Path | str,
    settings: GrpoSettings | None = None,
    *,
    held_out: Path | str | None = None,
    tokenizer: Any = None,
    generation: dict[str, Any] | None = None,
) -> GrpoResult:
    """Train the model of `start` on `prompts` by its own answers; writes a Hugging Face folder `out/model`.

    start    : a Hugging Face model folder, or a checkpoint of training.loop
    prompts  : .jsonl[.gz|.zst] or .parquet with {"prompt", "answer"}; held_out: the same, never trained on
    reward   : the name of one in training.rewards, or a function (completion, answer) -> number or Scored

    Writes `rollouts/step-N.parquet`, `metrics.jsonl` (step, reward, accuracy, length, truncated, groups_used,
    loss, grad_norm, entropy, ...), `evaluations.jsonl`, `result.json`. The loss of one on-policy update is no
    measure of progress: its value is near 0 by construction, only its gradient matters.

    A finished `out` returns at once; a killed run continues and ends with the same bytes. (A reward that
    depends on wall-clock time, as a second opinion with a deadline does, is read from the step's record when
    that exists.)
    """
    settings = settings or GrpoSettings()
    out, start = Path(out), Path(start)
    tokenizer = start_tokenizer(start, tokenizer)
    questions = read_questions(prompts, tokenizer).items
    tests = read_questions(held_out, tokenizer).items if held_out is not None else ()
    _refuse_overlap(questions, tests, str(held_out))
    model = load_start(start)
    name = reward if isinstance(reward, str) else getattr(reward, "__qualname__", type(reward).__qualname__)
    inputs = hash_value([[(q.ids, q.answer) for q in part] for part in (questions, tests)])
    training = {k: v for k, v in asdict(settings).items() if k != "checkpoint_every"} | {"reward": name}
    described = describe_run(model.config, inputs, training, _start_hash(start))
    with _only_process_in(out):
        if not (out / "training.json").exists():
            write_json(out / "training.json", described)
        refuse_other_settings(read_json(out / "training.json"), described, out)
        if not (out / "result.json").exists():
            function = named_reward(reward) if isinstance(reward, str) else reward
            run = GrpoRun(out, start, model, tokenizer, questions, tests, function, settings, described)
            run.train()
            save_huggingface(run.model, out / "model", tokenizer, generation)
            rows = run.evaluations()
            write_json(out / "result.json", {"steps": settings.steps, "updates": run.updates, **rows})
            for older in list_checkpoints(out / "resume").values():
                remove_checkpoint(older)
    result = read_json(out / "result.json")
    return GrpoResult(out / "model", result["steps"], result["updates"], result["before"], result["after"])


class GrpoRun:
    """A run while it trains: the model, the optimizer, and how many steps and updates it has made."""

    def __init__(
        self,
        out: Path,
        start: Path,
        model: Decoder,
        tokenizer: Any,
        questions: Sequence[Question],
        tests: Sequence[Question],
        reward: Reward,
        settings: GrpoSettings,
        described: dict[str, Any],
    ) -> None:
        self.out, self.model, self.tokenizer, self.reward = out, model, tokenizer, reward
        self.questions, self.tests, self.settings, self.described = questions, tests, settings, described
        self.fingerprint = hash_value(described)
        self.ending = Ending.of(tokenizer, settings.rollout)
        self.reference = (
            load_start(start).requires_grad_(False) if settings.objective.kl_coefficient else None
        )
        self.optimizer = build_adamw(
            model,
            weight_decay=settings.weight_decay,
            beta1=settings.beta1,
            beta2=settings.beta2,
            epsilon=settings.epsilon,
        )
        self.step = self.updates = 0
        saved = list_checkpoints(out / "resume")
        if saved:
            state, _ = restore_checkpoint(saved[max(saved)], described, model, self.optimizer)
            # Adam counts updates; the data position counts prompts, of which every step reads as many.
            self.updates, self.step = state.step, state.sequences // settings.prompts_per_step
        self.log = RunLog(out, self.step)

    def train(self) -> None:
        """Make the steps that are left."""
        settings = self.settings
        left = settings.steps - self.step
        with closing(self.log), progress("GRPO", left, "steps") as task:
            if self.step == 0:
                self._evaluate()
            while self.step < settings.steps:
                self.log.metrics(self._step())
                last = self.step == settings.steps
                if last or (settings.evaluate_every and self.step % settings.evaluate_every == 0):
                    self._evaluate()
                if last or self.step % settings.checkpoint_every == 0:
                    self._checkpoint()
                task.advance(1)

    def evaluations(self) -> dict[str, Any]:
        """The first and the last evaluation, for the result."""
        from training.run_log import read_rows

        rows = read_rows(self.out / "evaluations.jsonl")
        return {"before": rows[0], "after": rows[-1]} if rows else {"before": None, "after": None}

    def _step(self) -> dict[str, Any]:
        """One step: rollouts, verdicts, record, updates. Returns its row of the log."""
        settings, number = self.settings, self.step + 1
        first = self.step * settings.prompts_per_step
        places = range(first, first + settings.prompts_per_step)
        chosen = [question_at(place, len(self.questions), settings.seed) for place in places]
        each = [index for index in chosen for _ in range(settings.replicas)]
        answers = [self.questions[index].answer for index in each]
        path = self.out / "rollouts" / f"step-{number}.parquet"
        rollouts, scored = read_rollouts(path, self.fingerprint) or self._sample(places, chosen, answers)
        limit = settings.rollout.longest(len(self.ending.closing))
        judged = self._judge(rollouts, scored, limit)
        weights = step_weights(rollouts, judged, limit, settings.objective)
        write_rollouts(path, self.fingerprint, rollouts, each, answers, scored, judged, weights)
        rate = settings.learning_rate * rate_factor(
            settings.schedule, self.step, steps=settings.steps, warmup_steps=settings.warmup_steps
        )
        stats, norm = GradientStats(), 0.0
        if judged.groups_used:
            stats, norm = self._update(rollouts, judged, weights, rate)
        self.step = number
        return _row(number, judged, stats, norm, rate)

    def _sample(
        self, places: Sequence[int], chosen: Sequence[int], answers: Sequence[str]
    ) -> tuple[list[Rollout], list[tuple[str, Scored]]]:
        settings = self.settings
        prompts = [Prompt(p, self.questions[i].ids) for p, i in zip(places, chosen, strict=True)]
        with autocast(settings.precision, self.model)():
            rollouts = roll_out(
                self.model,
                prompts,
                settings.rollout,
                self.ending,
                replicas=settings.replicas,
                seed=settings.seed,
                step=self.step,
            )
        return rollouts, score_rollouts(rollouts, answers, self.reward, self.tokenizer, self.ending)

    def _judge(self, rollouts: Sequence[Rollout], scored: Sequence[tuple[str, Scored]], limit: int) -> Judged:
        groups = (self.settings.prompts_per_step, self.settings.replicas)
        return judge(
            torch.tensor([s.reward for _, s in scored], dtype=torch.float64).view(groups),
            torch.tensor([s.correct for _, s in scored]).view(groups),
            torch.tensor([len(r.completion_ids) for r in rollouts]).view(groups),
            torch.tensor([r.truncated for r in rollouts]).view(groups),
            limit,
            self.settings.objective,
        )

    def _update(
        self, rollouts: Sequence[Rollout], judged: Judged, weights: torch.Tensor, rate: float
    ) -> tuple[GradientStats, float]:
        """The updates of one step; the statistics and gradient norm of the first."""
        settings = self.settings
        reported: tuple[GradientStats, float] | None = None
        old: dict[int, torch.Tensor] | None = None
        for _ in range(settings.updates):
            stats = add_gradient(
                self.model,
                rollouts,
                judged.advantages.reshape(-1),
                weights,
                settings.objective,
                temperature=settings.rollout.temperature,
                micro_batch=settings.micro_batch_rollouts,
                reference=self.reference,
                old=old,
                autocast=autocast(settings.precision, self.model),
            )
            norm = self._apply(stats.loss, rate)
            old = old or stats.old
            reported = reported or (stats, norm)
        assert reported is not None
        return reported

    def _apply(self, loss: float, rate: float) -> float:
        """Clip the gradient and make one update with it; its norm before the clip."""
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not math.isfinite(loss) or not math.isfinite(float(norm)):
            raise DataError(
                f"Step {self.step + 1} has the loss {loss} and a gradient of norm {float(norm)}",
                where=str(self.out),
                remedy="Lower learning_rate and start anew from the model, or from an earlier one",
            )
        torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.clip, norm)
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        return float(norm)

    def _evaluate(self) -> None:
        if not self.tests:
            return
        with autocast(self.settings.precision, self.model)():
            found = accuracy(
                self.model, self.tests, self.reward, self.tokenizer, self.settings.rollout, ending=self.ending
            )
        self.log.evaluation({"step": self.step, **found.as_row()})

    def _checkpoint(self) -> None:
        """Write where the run stands; rows of the log up to here come first."""
        self.log.flush()
        read = self.step * self.settings.prompts_per_step
        state = TrainingState(self.updates, read, 0, self.described)
        folder = self.out / "resume" / f"step-{self.step}"
        write_checkpoint(folder, state, self.model, self.optimizer, None)
        for step, older in list_checkpoints(self.out / "resume").items():
            if step != self.step:
                remove_checkpoint(older)


def load_start(start: Path) -> Decoder:
    """The model of a checkpoint or of a Hugging Face folder."""
    return load_checkpoint_model(start) if (start / STATE).exists() else load_huggingface(start)


def autocast(precision: str, model: Decoder) -> Callable[[], AbstractContextManager[Any]]:
    """Contexts in which the matrix products of `model` have that precision."""
    if precision == "float32":
        return nullcontext
    kind = model.output_weight.device.type
    return lambda: torch.autocast(kind, torch.bfloat16)


def _row(step: int, judged: Judged, stats: GradientStats, norm: float, rate: float) -> dict[str, Any]:
    tokens = max(stats.tokens, 1)
    measured = stats.tokens > 0
    return {
        "step": step,
        "reward": float(judged.rewards.mean()),
        "accuracy": float(judged.correct.double().mean()),
        "length": float(judged.lengths.double().mean()),
        "truncated": float(judged.truncated.double().mean()),
        "groups_used": judged.groups_used,
        "loss": stats.loss,
        "grad_norm": norm,
        "learning_rate": rate,
        "tokens": stats.tokens,
        "entropy": stats.entropy / tokens if measured else None,
        "kl": stats.kl / tokens if measured else None,
        "clipped": stats.clipped / tokens if measured else None,
        "logprob_gap": stats.gap / tokens if measured else None,
    }


def _refuse_overlap(questions: Sequence[Question], tests: Sequence[Question], where: str) -> None:
    """Raise DataError when a held-out prompt is also trained on: its accuracy would prove nothing."""
    trained = {q.ids for q in questions}
    shared = [q for q in tests if q.ids in trained]
    if shared:
        raise DataError(
            f"{len(shared)} held-out prompts are also among those to train on",
            where=f"{where}: {shared[0].where}",
            remedy="Remove them from one of the files",
        )
