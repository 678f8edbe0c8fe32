"""Doing a step of GRPO again from its record: rewards, advantages, loss and gradient norm, bit for bit.

The record of a step holds tokens, texts and verdicts, but no weights. Those of an earlier step are made again
from the nearest checkpoint, or from the model that the run began with, by the updates in between, whose rollouts
are on record: nothing is sampled, and a replay costs the training part of the steps alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from curation.atomic import read_json
from curation.errors import DataError, RecipeError
from curation.progress import progress
from training.advantages import LeadSettings
from training.budgets import Ending, RolloutSettings
from training.checkpoint import list_checkpoints, restore_checkpoint
from training.distributed import Ranks, choose_device, join_ranks
from training.grpo import INPUTS
from training.grpo_settings import GrpoSettings, ObjectiveSettings
from training.grpo_step import GradientStats, step_weights
from training.grpo_update import PolicyUpdates, judge_step, rate_at, steps_made
from training.rewards import REWARDS, Reward, named_reward, score
from training.rollout_records import read_rollouts
from training.run_log import read_rows
from training.start import load_policy, start_hash, start_tokenizer

ROUNDING = 1e-3
"""Relative difference of loss and gradient norm that other sums in float32 may make over the steps of a replay."""
VERDICTS = ("shaped", "advantage", "trained", "weight")


@dataclass(frozen=True)
class Replay:
    """What came out again, and what the run had recorded.

    rewards_differ    : rollouts whose reward, parts or outcome is another now; None when the reward is not known
    verdicts_differ   : rollouts whose shaped reward, advantage, place in the loss or weight is another now
    loss, grad_norm   : of the step's first update; None where no group trained, as the run recorded
    ranks             : that made the step; where that is not the number that repeated it, sums are rounded otherwise
    """

    step: int
    rollouts: int
    rewards_differ: int | None
    verdicts_differ: int
    loss: float | None
    grad_norm: float | None
    recorded_loss: float
    recorded_grad_norm: float
    updates_repeated: int
    ranks: int = 1
    ranks_now: int = 1

    @property
    def same(self) -> bool:
        """Whether everything that could be done again came out with the same bits; with another number of ranks,
        loss and gradient norm up to float32 rounding."""
        now, then = (self.loss or 0.0, self.grad_norm or 0.0), (self.recorded_loss, self.recorded_grad_norm)
        if self.ranks == self.ranks_now:
            equal = now == then
        else:
            equal = all(
                math.isclose(a, b, rel_tol=ROUNDING, abs_tol=1e-7) for a, b in zip(now, then, strict=True)
            )
        return not self.rewards_differ and not self.verdicts_differ and equal


def replay(
    run: Path | str,
    step: int,
    *,
    start: Path | str | None = None,
    reward: Reward | None = None,
    tokenizer: Any = None,
) -> Replay:
    """Do step `step` (from 1) of the GRPO run in folder `run` again, and compare with what it recorded.

    start  : where the run's start lies now, if not where it was
    reward : the function, for runs with one of their own; known by name otherwise
    Bits are equal on the same machine with the same torch and number of threads, and for a step that several ranks
    made, when as many (started by torchrun) repeat it. Raises RecipeError for a step that was not made or a start
    with other weights, DataError for a broken record.
    """
    run = Path(run)
    described, metrics = _described(run), {row["step"]: row for row in read_rows(run / "metrics.jsonl")}
    if step not in metrics:
        raise RecipeError(
            f"The run has not made step {step}",
            where=str(run),
            remedy=f"It stands at {max(metrics, default=0)}",
        )
    settings = settings_of(described["training"])
    inputs = read_json(run / INPUTS) if (run / INPUTS).exists() else {}
    start = Path(start or inputs.get("start", ""))
    if start_hash(start) != described["start"]:
        raise RecipeError(
            "The model that the run began with is not there, or has other weights",
            where=str(start),
            remedy="Name it with --start",
        )
    name = described["training"]["reward"]
    if reward is None and name in REWARDS:
        reward = named_reward(name)
    ending = Ending.of(start_tokenizer(start, tokenizer), settings.rollout)
    limit = settings.rollout.longest(len(ending.closing))
    ranks = join_ranks(settings.device)
    policy, made = _policy(run, start, described, settings, step, ranks)
    again: tuple[GradientStats, float] | None = None
    with progress("replaying", step - made, "steps") as task:
        for number in range(made + 1, step + 1):
            again = _repeat(run, policy, number, settings, limit)
            task.advance(1)
    rewards_differ, verdicts_differ, count = _compare(run, step, settings, limit, reward)
    row = metrics[step]
    return Replay(
        step,
        count,
        rewards_differ,
        verdicts_differ,
        None if again is None else again[0].loss,
        None if again is None else again[1],
        row["loss"],
        row["grad_norm"],
        policy.updates,
        row.get("ranks", 1),
        ranks.size,
    )


def settings_of(recorded: dict[str, Any]) -> GrpoSettings:
    """The settings of a run from the dictionary in its training.json."""
    values = {key: value for key, value in recorded.items() if key != "reward"}
    objective = dict(values.pop("objective"))
    lead = objective.pop("lead")
    return GrpoSettings(
        rollout=RolloutSettings(**values.pop("rollout")),
        objective=ObjectiveSettings(lead=LeadSettings(**lead) if lead else None, **objective),
        **values,
    )


def _described(run: Path) -> dict[str, Any]:
    path = run / "training.json"
    if not path.exists() or "objective" not in read_json(path).get("training", {}):
        raise RecipeError(
            "This is no folder of a GRPO run", where=str(run), remedy="It has a training.json and rollouts/"
        )
    return dict(read_json(path))


def _policy(
    run: Path, start: Path, described: dict[str, Any], settings: GrpoSettings, step: int, ranks: Ranks
) -> tuple[PolicyUpdates, int]:
    """The policy at the nearest moment before `step` that can be had, and how many steps it has made."""
    device = choose_device(settings.device, ranks)
    model = load_policy(start).to(device)
    reference = None
    if settings.objective.kl_coefficient:
        reference = load_policy(start).requires_grad_(False).to(device)
    policy = PolicyUpdates(model, reference, settings, ranks)
    saved = {made: folder for made, folder in list_checkpoints(run / "resume").items() if made < step}
    if not saved:
        return policy, 0
    state, _ = restore_checkpoint(saved[max(saved)], described, model, policy.optimizer)
    policy.updates = state.step
    return policy, steps_made(state, settings)


def _repeat(
    run: Path, policy: PolicyUpdates, number: int, settings: GrpoSettings, limit: int
) -> tuple[GradientStats, float] | None:
    """The updates of step `number` from its record; None where no group trained."""
    rollouts, scored = _record(run, number)
    judged = judge_step(rollouts, [verdict for _, verdict in scored], settings, limit)
    if not judged.groups_used:
        return None
    weights = step_weights(rollouts, judged, limit, settings.objective)
    rate = rate_at(number - 1, settings)
    return policy.update(rollouts, judged, weights, rate, where=f"{run}, step {number}")


def _compare(
    run: Path, step: int, settings: GrpoSettings, limit: int, reward: Callable[..., Any] | None
) -> tuple[int | None, int, int]:
    """How many rollouts have another reward, and how many another verdict, than on record; and how many there are."""
    rollouts, scored = _record(run, step)
    table = parquet.read_table(_path(run, step), columns=["answer", *VERDICTS]).to_pydict()
    judged = judge_step(rollouts, [verdict for _, verdict in scored], settings, limit)
    weights = step_weights(rollouts, judged, limit, settings.objective)
    columns = [x.reshape(-1).tolist() for x in (judged.shaped, judged.advantages, judged.trained, weights)]
    now = list(zip(*columns, strict=True))
    then = list(zip(*(table[name] for name in VERDICTS), strict=True))
    verdicts = sum(a != b for a, b in zip(now, then, strict=True))
    if reward is None:
        return None, verdicts, len(rollouts)
    rewards = 0
    for at, (text, before) in enumerate(scored):
        found = score(reward, text, table["answer"][at], f"{run}, step {step}, rollout {at}")
        rewards += found != before
    return rewards, verdicts, len(rollouts)


def _record(run: Path, step: int) -> Any:
    found = read_rollouts(_path(run, step))
    if found is None:
        raise DataError(
            "The record of a step is missing",
            where=str(_path(run, step)),
            remedy="Nothing before it can be replayed without it",
        )
    return found


def _path(run: Path, step: int) -> Path:
    return run / "rollouts" / f"step-{step}.parquet"
