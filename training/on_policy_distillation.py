"""On-policy distillation: the student answers, and learns from what a teacher says at each token of its own answers.

Generalised knowledge distillation (GKD, arXiv 2306.13649): a step samples answers to prompts from the student, runs
the teacher over them, and makes one update on the mean distance between the two distributions over the sampled
tokens. There is no gradient through the sampling. Forced tokens are read but not learnt from. With `student_share`
below 1, the other steps read chats of a file in place of the student's answers.

A step is a pure function of the weights, the seed and its number: the state of a run is its weights, Adam's moments
and one integer, as in `training.grpo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from curation.atomic import hash_value, read_json, write_json
from curation.errors import RecipeError
from curation.progress import progress
from training.budgets import Ending
from training.chat import RenderedChat, read_chats
from training.chat_packing import chat_batch, pack_chats
from training.checkpoint import (
    TrainingState,
    describe_run,
    list_checkpoints,
    refuse_other_settings,
    remove_checkpoint,
    restore_checkpoint,
    write_checkpoint,
)
from training.distributed import choose_device
from training.grpo import GrpoResult, refuse_overlap
from training.grpo_step import Judged
from training.grpo_update import autocast
from training.huggingface import read_generation
from training.lessons import Lesson, OneLesson, check_teacher_of_chats
from training.losses import IGNORED
from training.model import Decoder
from training.on_policy_settings import OnPolicySettings
from training.optimizer import build_adamw
from training.order import Batch
from training.prompts import Question, accuracy, question_at, read_questions, score_rollouts
from training.rewards import Reward, describe_reward, named_reward
from training.rollout import Prompt, Rollout, roll_out
from training.rollout_records import write_rollouts
from training.run_lock import only_process_in
from training.run_log import RunLog, read_rows
from training.start import load_policy, save_policy, start_hash, start_tokenizer
from training.teacher import load_teacher, resolve_teacher
from training.update import Run, update


def on_policy_distillation(
    start: Path | str,
    prompts: Path | str,
    reward: str | Reward,
    out: Path | str,
    settings: OnPolicySettings,
    *,
    chats: Path | str | None = None,
    held_out: Path | str | None = None,
    tokenizer: Any = None,
    generation: dict[str, Any] | None = None,
) -> GrpoResult:
    """Distil `settings.teacher` into the model of `start` on the model's own answers; writes `out/model`.

    start, prompts, held_out, tokenizer, generation : as for `training.grpo`
    reward : only measures: accuracy and reward in metrics.jsonl and in the records; nothing learns from it
    chats  : read in the steps that are not the student's, needed when settings.student_share is below 1

    Writes `rollouts/step-N.parquet`, `metrics.jsonl` (step, loss and divergence in nats per token, accuracy, length,
    tokens, ...), `evaluations.jsonl`, `result.json`. A finished `out` returns at once; a killed run continues and
    ends with the same bytes. Raises DataError for a teacher of another tokenizer.
    """
    out, start = Path(out), Path(start)
    tokenizer = start_tokenizer(start, tokenizer)
    check_teacher_of_chats(settings.distillation.teacher, tokenizer)
    if settings.student_share < 1 and chats is None:
        raise RecipeError(
            "Steps that are not the student's need chats to read",
            where="on-policy distillation.student_share",
            remedy="Give a file of chats, or a share of 1",
        )
    questions = read_questions(prompts, tokenizer).items
    tests = read_questions(held_out, tokenizer).items if held_out is not None else ()
    given = read_chats(chats, tokenizer).chats if chats is not None and settings.student_share < 1 else ()
    refuse_overlap(questions, tests, str(held_out))
    model = load_policy(start)
    name = reward if isinstance(reward, str) else describe_reward(reward)
    inputs = hash_value(
        [[[(q.ids, q.answer) for q in part] for part in (questions, tests)], [c.ids for c in given]]
    )
    described = describe_run(model.config, inputs, settings.deciding() | {"reward": name}, start_hash(start))
    with only_process_in(out):
        if not (out / "training.json").exists():
            write_json(out / "training.json", described)
        refuse_other_settings(read_json(out / "training.json"), described, out)
        if not (out / "result.json").exists():
            function = named_reward(reward) if isinstance(reward, str) else reward
            model.to(choose_device(settings.device))
            run = OnPolicyRun(out, model, tokenizer, questions, tests, given, function, settings, described)
            run.train()
            save_policy(model, out / "model", tokenizer, read_generation(start) | (generation or {}))
            rows = read_rows(out / "evaluations.jsonl")
            before, after = (rows[0], rows[-1]) if rows else (None, None)
            result = {"steps": settings.steps, "updates": run.run.step, "before": before, "after": after}
            write_json(out / "result.json", result)
            for older in list_checkpoints(out / "resume").values():
                remove_checkpoint(older)
    result = read_json(out / "result.json")
    return GrpoResult(out / "model", result["steps"], result["updates"], result["before"], result["after"])


class OnPolicyRun:
    """A run while it trains: the student with its optimizer, the teacher, and how many steps it has made."""

    def __init__(
        self,
        out: Path,
        model: Decoder,
        tokenizer: Any,
        questions: Sequence[Question],
        tests: Sequence[Question],
        chats: Sequence[RenderedChat],
        reward: Reward,
        settings: OnPolicySettings,
        described: dict[str, Any],
    ) -> None:
        self.out, self.model, self.tokenizer, self.reward = out, model, tokenizer, reward
        self.questions, self.tests, self.chats = questions, tests, chats
        self.settings, self.described = settings, described
        self.ending = Ending.of(tokenizer, settings.rollout)
        self.limit = settings.rollout.longest(len(self.ending.closing))
        wanted = settings.distillation
        teacher = load_teacher(
            resolve_teacher(wanted.teacher),
            vocabulary=model.config.vocab_size,
            device=model.output_weight.device,
            precision=wanted.precision,
        )
        optimizer = build_adamw(
            model,
            weight_decay=settings.weight_decay,
            beta1=settings.beta1,
            beta2=settings.beta2,
            epsilon=settings.epsilon,
        )
        self.run = Run(model, optimizer, None, 0, lessons=OneLesson(Lesson(wanted, teacher=teacher)))
        saved = list_checkpoints(out / "resume")
        if saved:
            self.run.step = restore_checkpoint(saved[max(saved)], described, model, optimizer)[0].step
        self.log = RunLog(out, self.run.step)

    def train(self) -> None:
        """Make the steps that are left."""
        settings = self.settings
        left = settings.steps - self.run.step
        with closing(self.log), progress("on-policy distillation", left, "steps") as task:
            if self.run.step == 0:
                self._evaluate()
            while self.run.step < settings.steps:
                self.log.metrics(self._step())
                last = self.run.step == settings.steps
                if last or (settings.evaluate_every and self.run.step % settings.evaluate_every == 0):
                    self._evaluate()
                if last or self.run.step % settings.checkpoint_every == 0:
                    self._checkpoint()
                task.advance(1)

    def _step(self) -> dict[str, Any]:
        """One step: answers or chats, and the update on them. Returns its row of the log."""
        settings, step = self.settings, self.run.step
        own = settings.is_students(step)
        seen: dict[str, Any] = {}
        if own:
            rollouts, seen = self._sample()
            read = [as_chat(rollout) for rollout in rollouts]
        else:
            count = settings.prompts_per_step * settings.replicas
            places = range(step * count, (step + 1) * count)
            read = [self.chats[question_at(at, len(self.chats), settings.seed)] for at in places]
        batch = packed_batch(read, settings.seed, step)
        tokens = int((batch.labels != IGNORED).sum())
        if tokens == 0:  # every token of every answer was forced
            self.run.step += 1
            return {"step": self.run.step, "loss": 0.0, "divergence": 0.0, "tokens": 0, **seen}
        row = update(self.run, batch, settings.train_settings(batch.labels.shape))
        return row | {"tokens": tokens, "students": own, **seen}

    def _sample(self) -> tuple[list[Rollout], dict[str, Any]]:
        """The student's answers of this step, on record, and what the reward makes of them."""
        settings, step = self.settings, self.run.step
        first = step * settings.prompts_per_step
        places = range(first, first + settings.prompts_per_step)
        chosen = [question_at(place, len(self.questions), settings.seed) for place in places]
        each = [index for index in chosen for _ in range(settings.replicas)]
        answers = [self.questions[index].answer for index in each]
        prompts = [Prompt(p, self.questions[i].ids) for p, i in zip(places, chosen, strict=True)]
        with autocast(settings.precision, self.model)():
            rollouts = roll_out(
                self.model,
                prompts,
                settings.rollout,
                self.ending,
                replicas=settings.replicas,
                seed=settings.seed,
                step=step,
            )
        scored = score_rollouts(rollouts, answers, self.reward, self.tokenizer, self.ending)
        table = (settings.prompts_per_step, settings.replicas)
        rewards = torch.tensor([s.reward for _, s in scored], dtype=torch.float64).view(table)
        correct = torch.tensor([s.correct for _, s in scored]).view(table)
        lengths = torch.tensor([len(r.completion_ids) for r in rollouts]).view(table)
        cut = torch.tensor([r.truncated for r in rollouts]).view(table)
        learnt = torch.ones_like(correct)
        # No reward is learnt from: advantages are 0, and each token weighs the same.
        judged = Judged(rewards, rewards, correct, lengths, cut, torch.zeros_like(rewards), learnt)
        total = sum(rollout.forced.count(False) for rollout in rollouts)
        weights = torch.full((len(rollouts),), 1 / max(total, 1), dtype=torch.float64)
        path = self.out / "rollouts" / f"step-{step + 1}.parquet"
        fingerprint = hash_value(self.described)
        write_rollouts(path, fingerprint, rollouts, each, answers, scored, judged, weights)
        means = {"reward": rewards, "accuracy": correct, "length": lengths, "truncated": cut}
        return rollouts, {name: float(values.double().mean()) for name, values in means.items()}

    def _evaluate(self) -> None:
        if not self.tests:
            return
        rollout = self.settings.rollout
        with autocast(self.settings.precision, self.model)():
            found = accuracy(self.model, self.tests, self.reward, self.tokenizer, rollout, ending=self.ending)
        self.log.evaluation({"step": self.run.step, **found.as_row()})

    def _checkpoint(self) -> None:
        """Write where the run stands; rows of the log up to here come first."""
        self.log.flush()
        step = self.run.step
        state = TrainingState(step, step * self.settings.prompts_per_step, 0, self.described)
        write_checkpoint(self.out / "resume" / f"step-{step}", state, self.model, self.run.optimizer, None)
        for other, older in list_checkpoints(self.out / "resume").items():
            if other != step:
                remove_checkpoint(older)


def as_chat(rollout: Rollout) -> RenderedChat:
    """A rollout as a chat of which the sampled tokens are the assistant's: forced ones are read, not learnt."""
    said = (False,) * len(rollout.prompt_ids) + tuple(not forced for forced in rollout.forced)
    return RenderedChat(rollout.prompt_ids + rollout.completion_ids, said)


def packed_batch(chats: Sequence[RenderedChat], seed: int, step: int) -> Batch:
    """The chats packed into rows as long as the longest of them; they do not see each other."""
    lengths = [len(chat.ids) - 1 for chat in chats]
    rows = pack_chats(lengths, max(lengths), seed, step)
    return chat_batch(chats, rows, max(lengths))
