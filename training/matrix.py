"""A matrix of post-training: pipelines of steps from one starting model, with several seeds, measured alike.

Pipelines that begin with the same steps share them: the SFT model of SFT -> RL is trained once for each seed. Every
step and every measurement is a folder or a file of its own, so that a killed matrix goes on, a finished one is only
read, and a longer list of pipelines adds to it.

    out/seed-0/sft/           a step's run folder with its model, metrics.jsonl, rollouts, and step.json
    out/seed-0/sft+rl/        the next step of a pipeline
    out/seed-0/sft+rl/measured-plain.json    right answers and lengths by problem
    out/matrix.json, matrix.csv              what all of it says, see training.matrix_table
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.atomic import hash_value, read_json, write_json
from curation.errors import DataError, RecipeError
from curation.progress import progress
from training.budgets import Ending, RolloutSettings
from training.distributed import choose_device
from training.matrix_steps import Cost, Inputs, Step
from training.prompts import Question, read_questions, score_rollouts
from training.rewards import named_reward
from training.rollout import Prompt, roll_out
from training.start import load_policy, start_hash, start_tokenizer

START = "start"
"""The pipeline of no step: the model that all begin with."""


@dataclass(frozen=True)
class Measure:
    """How a model is measured: `samples` answers to each held-out problem under the limits of `rollout`, at its
    temperature (0 is greedy, and one sample is enough)."""

    rollout: RolloutSettings
    samples: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1 or (self.rollout.temperature == 0 and self.samples > 1):
            raise RecipeError(
                f"{self.samples} samples at temperature {self.rollout.temperature:g} cannot be",
                where="matrix measures",
                remedy="Give at least 1, and 1 when greedy",
            )


@dataclass(frozen=True)
class Pipeline:
    """Steps in their order; the empty one is the starting model itself."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a pipeline: for each seed either its measurements or the sentence why there are none.

    right, length, truncated : by measure, tables [seeds that ended, problems] of means over samples
    costs : of all steps of the pipeline, shared ones too, for each seed that ended
    """

    pipeline: str
    steps: tuple[str, ...]
    seeds: tuple[int, ...]
    right: dict[str, np.ndarray]
    length: dict[str, np.ndarray]
    truncated: dict[str, np.ndarray]
    costs: tuple[Cost, ...]
    failures: dict[int, str] = field(default_factory=dict)


def run_matrix(
    start: Path | str,
    pipelines: Sequence[Pipeline],
    inputs: Inputs,
    held_out: Path | str,
    out: Path | str,
    *,
    seeds: Sequence[int],
    measures: Mapping[str, Measure],
) -> list[Outcome]:
    """Train and measure every pipeline with every seed; what is done already in `out` is not done again.

    start : a Hugging Face folder with its tokenizer;  held_out : problems to measure on, never trained on
    A seed of a pipeline that cannot go on for its data (DataError: a divergence, nothing left by a filter) is noted
    in its outcome and the others go on. Raises RecipeError for pipelines that cannot be, or when a folder of `out`
    was made with other settings, data or start; MachineError ends the matrix, which continues when called again.
    """
    check_pipelines(pipelines, seeds, measures)
    start, out = Path(start), Path(out)
    tokenizer = start_tokenizer(start, None)
    tests = read_questions(held_out, tokenizer).items
    trained = {question.ids for question in read_questions(inputs.prompts, tokenizer).items}
    if shared := [question for question in tests if question.ids in trained]:
        raise DataError(
            f"{len(shared)} held-out problems are also among the prompts to train on",
            where=shared[0].where,
            remedy="Remove them from one of the files",
        )
    ended: dict[tuple[str, int], Any] = {}
    with progress("matrix", len(pipelines) * len(seeds), "pipelines") as task:
        for seed in seeds:
            for pipeline in pipelines:
                try:
                    folder, model, cost = _train(start, pipeline, out / f"seed-{seed}", seed, inputs)
                    found = {
                        name: _measured(model, folder, name, measure, tests, inputs.reward, seed)
                        for name, measure in measures.items()
                    }
                    ended[pipeline.name, seed] = (cost, found)
                except DataError as error:
                    ended[pipeline.name, seed] = str(error)
                task.advance(1)
    return [_outcome(pipeline, seeds, measures, ended) for pipeline in pipelines]


def check_pipelines(
    pipelines: Sequence[Pipeline], seeds: Sequence[int], measures: Mapping[str, Measure]
) -> None:
    """Raise RecipeError for a matrix without anything to do, or with names that mean two things."""
    names = [pipeline.name for pipeline in pipelines]
    twice = sorted({name for name in names if names.count(name) > 1})
    meant: dict[str, Step] = {}
    for step in (step for pipeline in pipelines for step in pipeline.steps):
        if meant.setdefault(step.name, step) != step:
            twice.append(step.name)
    if twice:
        raise RecipeError(
            f"{twice[0]!r} is the name of two things", where="matrix", remedy="Give each a name of its own"
        )
    if not pipelines or not seeds or not measures or len(set(seeds)) != len(seeds):
        raise RecipeError(
            f"{len(pipelines)} pipelines with the seeds {list(seeds)} and {len(measures)} measures make no matrix",
            where="matrix",
            remedy="Give at least one of each, and every seed once",
        )


def _train(
    start: Path, pipeline: Pipeline, place: Path, seed: int, inputs: Inputs
) -> tuple[Path, Path, Cost]:
    """The folder, the model and the cost of a pipeline, of which finished steps are read."""
    model, total, said = start, Cost(), []
    folder = place / START
    for step in pipeline.steps:
        said.append(step.name)
        folder = place / "+".join(said)
        key = hash_value([start_hash(model), step.describe(inputs), seed])
        done = folder / "step.json"
        if done.exists() and (record := read_json(done))["key"] != key:
            raise RecipeError(
                "This folder holds a step with other settings, data or start",
                where=str(folder),
                remedy="Choose another folder for the matrix, or delete this one to train it again",
            )
        if not done.exists():
            cost = step.run(model, folder, seed, inputs)
            record = {"key": key, "step": step.name, "seed": seed, "cost": asdict(cost)}
            write_json(done, record)
        total += Cost(**record["cost"])
        model = folder / "model"
    return folder, model, total


def _measured(
    model: Path, folder: Path, name: str, measure: Measure, tests: Sequence[Question], reward: str, seed: int
) -> dict[str, list[float]]:
    """Means over samples by problem: right, length, truncated; from the file where it is of the same model."""
    path = folder / f"measured-{name}.json"
    key = hash_value([start_hash(model), asdict(measure), [(q.ids, q.answer) for q in tests], reward, seed])
    if path.exists() and (found := read_json(path))["key"] == key:
        return found["problems"]
    tokenizer = start_tokenizer(model, None)
    settings = measure.rollout
    ending = Ending.of(tokenizer, settings)
    network = load_policy(model).to(choose_device("auto")).requires_grad_(False)
    with torch.inference_mode():
        prompts = [Prompt(at, question.ids) for at, question in enumerate(tests)]
        rollouts = roll_out(network, prompts, settings, ending, replicas=measure.samples, seed=seed)
    answers = [question.answer for question in tests for _ in range(measure.samples)]
    scored = score_rollouts(rollouts, answers, named_reward(reward), tokenizer, ending)
    columns = {
        "right": [float(verdict.correct) for _, verdict in scored],
        "length": [float(len(rollout.completion_ids)) for rollout in rollouts],
        "truncated": [float(rollout.truncated) for rollout in rollouts],
    }
    table = (len(tests), measure.samples)
    problems = {key: np.reshape(values, table).mean(1).tolist() for key, values in columns.items()}
    write_json(path, {"key": key, "measure": asdict(measure), "problems": problems})
    return problems


def _outcome(
    pipeline: Pipeline,
    seeds: Sequence[int],
    measures: Mapping[str, Measure],
    ended: Mapping[tuple[str, int], Any],
) -> Outcome:
    by_seed = {seed: ended[pipeline.name, seed] for seed in seeds}
    good = {seed: found for seed, found in by_seed.items() if not isinstance(found, str)}

    def tables(column: str) -> dict[str, np.ndarray]:
        return {name: np.array([found[name][column] for _, found in good.values()]) for name in measures}

    return Outcome(
        pipeline=pipeline.name,
        steps=tuple(step.name for step in pipeline.steps),
        seeds=tuple(good),
        right=tables("right"),
        length=tables("length"),
        truncated=tables("truncated"),
        costs=tuple(cost for cost, _ in good.values()),
        failures={seed: found for seed, found in by_seed.items() if isinstance(found, str)},
    )


def greedy(rollout: RolloutSettings) -> Measure:
    """One greedy answer to each problem under these limits."""
    return Measure(replace(rollout, temperature=0.0))
