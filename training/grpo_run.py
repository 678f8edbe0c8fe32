"""The loop of GRPO: steps of rollouts, verdicts, a record and an update, which go on after a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from curation.atomic import hash_value
from curation.progress import progress
from training.budgets import Ending
from training.checkpoint import (
    TrainingState,
    list_checkpoints,
    remove_checkpoint,
    restore_checkpoint,
    write_checkpoint,
)
from training.distributed import ALONE, Ranks
from training.grpo_settings import GrpoSettings
from training.grpo_step import GradientStats, Judged, step_weights
from training.grpo_update import PolicyUpdates, autocast, judge_step, rate_at, steps_made
from training.model import Decoder
from training.prompts import Question, accuracy, question_at, score_rollouts
from training.rewards import Reward, Scored
from training.rollout import Prompt, Rollout, roll_out
from training.rollout_records import read_rollouts, write_rollouts
from training.run_log import RunLog, read_rows
from training.start import save_policy


class GrpoRun:
    """A run while it trains: the model, the optimizer, and how many steps and updates it has made.

    Of several ranks each samples and judges its part of a step's prompts; then all know all of them, and share the
    updates. The main one writes.
    """

    def __init__(
        self,
        out: Path,
        model: Decoder,
        reference: Decoder | None,
        tokenizer: Any,
        questions: Sequence[Question],
        tests: Sequence[Question],
        reward: Reward,
        settings: GrpoSettings,
        described: dict[str, Any],
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.out, self.model, self.tokenizer, self.reward = out, model, tokenizer, reward
        self.questions, self.tests, self.settings, self.described = questions, tests, settings, described
        self.fingerprint = hash_value(described)
        self.ending = Ending.of(tokenizer, settings.rollout)
        self.policy = PolicyUpdates(model, reference, settings, ranks)
        self.step = 0
        self._vllm: Callable[..., list[Rollout]] | None = None
        saved = ranks.from_main(lambda: list_checkpoints(out / "resume"))
        if saved:
            state, _ = restore_checkpoint(saved[max(saved)], described, model, self.policy.optimizer)
            self.policy.updates, self.step = state.step, steps_made(state, settings)
        self.log = RunLog(out, self.step) if ranks.main else None

    def train(self) -> None:
        """Make the steps that are left."""
        settings = self.settings
        left = settings.steps - self.step
        with ExitStack() as held:
            if self.log:
                held.callback(self.log.close)
            task = held.enter_context(progress("GRPO", left, "steps"))
            if self.step == 0:
                self._evaluate()
            while self.step < settings.steps:
                row = self._step()
                if self.log:
                    self.log.metrics(row)
                last = self.step == settings.steps
                if last or (settings.evaluate_every and self.step % settings.evaluate_every == 0):
                    self._evaluate()
                if last or self.step % settings.checkpoint_every == 0:
                    self._checkpoint()
                task.advance(1)

    def evaluations(self) -> dict[str, Any]:
        """The first and the last evaluation, for the result."""
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
        recorded = self.ranks.from_main(lambda: read_rollouts(path, self.fingerprint))
        rollouts, scored = recorded or self._sample(places, chosen, answers)
        limit = settings.rollout.longest(len(self.ending.closing))
        judged = judge_step(rollouts, [verdict for _, verdict in scored], settings, limit)
        weights = step_weights(rollouts, judged, limit, settings.objective)
        self.ranks.from_main(
            lambda: write_rollouts(path, self.fingerprint, rollouts, each, answers, scored, judged, weights)
        )
        rate = rate_at(self.step, settings)
        stats, norm = GradientStats(), 0.0
        if judged.groups_used:
            stats, norm = self._update(rollouts, judged, weights, rate)
        self.step = number
        row = _row(number, judged, stats, norm, rate)
        # Sums over several ranks are rounded otherwise than those of one process, as a replay needs to know.
        return row | ({"ranks": self.ranks.size} if self.ranks.size > 1 else {})

    def _sample(
        self, places: Sequence[int], chosen: Sequence[int], answers: Sequence[str]
    ) -> tuple[list[Rollout], list[tuple[str, Scored]]]:
        """The rollouts of the whole step with their scores, on all ranks; each has made those of its prompts."""
        settings = self.settings
        first, count = self.ranks.share(0, len(places))
        part, rows = (
            slice(first, first + count),
            slice(first * settings.replicas, (first + count) * settings.replicas),
        )
        prompts = [Prompt(p, self.questions[i].ids) for p, i in zip(places[part], chosen[part], strict=True)]
        more = {"replicas": settings.replicas, "seed": settings.seed, "step": self.step}
        decode = self._decoder()

        def work() -> tuple[list[Rollout], list[tuple[str, Scored]]]:
            with autocast(settings.precision, self.model)():
                rollouts = decode(self.model, prompts, settings.rollout, self.ending, **more)
            return rollouts, score_rollouts(rollouts, answers[rows], self.reward, self.tokenizer, self.ending)

        parts = self.ranks.gather(work)
        return [r for rollouts, _ in parts for r in rollouts], [s for _, scored in parts for s in scored]

    def _decoder(self) -> Callable[..., list[Rollout]]:
        """What decodes: our loop, or vLLM, which is started at the first use and reads the policy's folder."""
        if self.settings.rollout.engine == "own":
            return roll_out
        if self._vllm is None:
            from training.vllm_rollout import VllmEngine

            self.ranks.from_main(lambda: save_policy(self.model, self.out / "vllm", self.tokenizer))
            dtype = "float32" if self.settings.precision == "float32" else "bfloat16"
            self._vllm = VllmEngine(self.out / "vllm", dtype=dtype).roll_out
        return self._vllm

    def _update(
        self, rollouts: Sequence[Rollout], judged: Judged, weights: torch.Tensor, rate: float
    ) -> tuple[GradientStats, float]:
        return self.policy.update(rollouts, judged, weights, rate, where=f"{self.out}, step {self.step + 1}")

    def _evaluate(self) -> None:
        if not self.tests:
            return
        with autocast(self.settings.precision, self.model)():
            found = accuracy(
                self.model,
                self.tests,
                self.reward,
                self.tokenizer,
                self.settings.rollout,
                ending=self.ending,
                ranks=self.ranks,
            )
        if self.log:
            self.log.evaluation({"step": self.step, **found.as_row()})

    def _checkpoint(self) -> None:
        """Write where the run stands; rows of the log up to here come first."""
        read = self.step * self.settings.prompts_per_step
        state = TrainingState(self.policy.updates, read, 0, self.described)

        def write() -> None:
            assert self.log is not None
            self.log.flush()
            folder = self.out / "resume" / f"step-{self.step}"
            write_checkpoint(folder, state, self.model, self.policy.optimizer, None)
            for step, older in list_checkpoints(self.out / "resume").items():
                if step != self.step:
                    remove_checkpoint(older)

        self.ranks.from_main(write)


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
