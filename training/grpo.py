"""GRPO: the model answers prompts, rewards judge the answers, and one on-policy update follows each step.

A step samples `replicas` answers to each of `prompts_per_step` prompts, scores them, subtracts each group's
baseline, and makes one update (by default) with the log-probabilities recomputed in chunks. Every random
number is keyed by seed, step, prompt, replica and position, and the prompts' order is a pure function of seed
and place: the state of a run is its weights, Adam's moments and two integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.atomic import hash_value, read_json, write_json
from curation.errors import DataError
from training.checkpoint import describe_run, list_checkpoints, refuse_other_settings, remove_checkpoint
from training.distributed import check_ranks, choose_device, join_ranks
from training.grpo_run import GrpoRun
from training.grpo_settings import GrpoSettings, ObjectiveSettings
from training.huggingface import read_generation
from training.prompts import Question, read_questions
from training.rewards import Reward, describe_reward, named_reward
from training.run_lock import only_process_in
from training.start import load_policy, save_policy, start_hash, start_tokenizer

INPUTS = "inputs.json"
"""Where a run's start lies, for a replay; its hash is in training.json."""

__all__ = ["GrpoResult", "GrpoSettings", "ObjectiveSettings", "grpo"]


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

    Called by every process that torchrun has started, it trains one model with all of them: each samples and judges
    the answers to its part of a step's prompts, and all share the updates. Tokens are those of one process (up to
    float32 rounding of logits, see roll_out), gradients equal up to rounding, files the same; a run may go on with
    another number of ranks. `out` must be a folder that all of them see.
    """
    settings = settings or GrpoSettings()
    out, start = Path(out), Path(start)
    ranks = join_ranks(settings.device)
    check_ranks(ranks, settings.prompts_per_step, "prompts", "prompts_per_step")
    tokenizer = start_tokenizer(start, tokenizer)
    questions = read_questions(prompts, tokenizer).items
    tests = read_questions(held_out, tokenizer).items if held_out is not None else ()
    refuse_overlap(questions, tests, str(held_out))
    device, model = choose_device(settings.device, ranks), load_policy(start)
    name = reward if isinstance(reward, str) else describe_reward(reward)
    inputs = hash_value([[(q.ids, q.answer) for q in part] for part in (questions, tests)])
    described = describe_run(model.config, inputs, settings.deciding() | {"reward": name}, start_hash(start))
    with ExitStack() as held:
        ranks.from_main(lambda: _claim(held, out, described, {"start": str(start.resolve()), "reward": name}))
        if not ranks.from_main((out / "result.json").exists):
            function = named_reward(reward) if isinstance(reward, str) else reward
            model.to(device)
            reference = None
            if settings.objective.kl_coefficient:
                reference = load_policy(start).requires_grad_(False).to(device)
            run = GrpoRun(
                out, model, reference, tokenizer, questions, tests, function, settings, described, ranks
            )
            run.train()
            generation = read_generation(start) | (generation or {})
            ranks.from_main(lambda: _finish(run, generation))
        result = ranks.from_main(lambda: read_json(out / "result.json"))
    return GrpoResult(out / "model", result["steps"], result["updates"], result["before"], result["after"])


def _claim(held: ExitStack, out: Path, described: dict[str, Any], inputs: dict[str, str]) -> None:
    """Lock the folder and note what it is for; refuse if it is for other settings."""
    held.enter_context(only_process_in(out))
    if not (out / "training.json").exists():
        write_json(out / "training.json", described)
    refuse_other_settings(read_json(out / "training.json"), described, out)
    if not (out / INPUTS).exists():
        write_json(out / INPUTS, inputs)


def _finish(run: GrpoRun, generation: dict[str, Any]) -> None:
    """Leave the model and the result, and what served to continue no more."""
    save_policy(run.model, run.out / "model", run.tokenizer, generation)
    counts = {"steps": run.settings.steps, "updates": run.policy.updates}
    write_json(run.out / "result.json", counts | run.evaluations())
    for older in list_checkpoints(run.out / "resume").values():
        remove_checkpoint(older)


def refuse_overlap(questions: Sequence[Question], tests: Sequence[Question], where: str) -> None:
    """Raise DataError when a held-out prompt is also trained on: its accuracy would prove nothing."""
    trained = {q.ids for q in questions}
    shared = [q for q in tests if q.ids in trained]
    if shared:
        raise DataError(
            f"{len(shared)} held-out prompts are also among those to train on",
            where=f"{where}: {shared[0].where}",
            remedy="Remove them from one of the files",
        )
