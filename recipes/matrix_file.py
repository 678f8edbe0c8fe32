"""A matrix as it is asked for: the YAML file and the options of `mixwright matrix`, and the split of its data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.atomic import hash_file, hash_value, read_json, write_json, write_text
from curation.errors import DataError, RecipeError
from recipes.load import read_values
from recipes.matrix_plan import MatrixPlan, changed, measures_of
from training.budgets import RolloutSettings
from training.examples import Broken, read_rows
from training.matrix import Measure, Outcome, Pipeline, greedy, run_matrix
from training.matrix_steps import Inputs

KEYS = (
    *("data", "prompts", "held_out", "hold_out", "reward", "seeds", "teacher", "against", "pipelines"),
    *(
        "measures",
        "steps",
        "sft",
        "rl",
        "gkd",
        "teaching",
        "keep",
        "lead",
        "rollout",
        "budget",
        "distillation",
    ),
)
PIPELINES = ("start", "sft", "rl", "sft+rl")
HELD_OUT = 200


@dataclass(frozen=True)
class MatrixRequest:
    """What `mixwright matrix` was asked for.

    data     : rows of chats, with prompt and answer where GRPO or a teacher reads them too, unless `prompts` names a
               file of its own
    hold_out : so many problems are taken out of `data` for measuring, where `held_out` names no file
    """

    data: Path
    prompts: Path | None
    held_out: Path | None
    hold_out: int
    reward: str
    seeds: tuple[int, ...]
    against: str | None
    pipelines: tuple[Pipeline, ...]
    measures: Mapping[str, Measure]


def read_matrix(
    file: Path | None, options: Mapping[str, Any], overrides: Iterable[str] = ()
) -> MatrixRequest:
    """The request of a YAML file and of the command's options, which go before it.

    Paths in the file are relative to it. RecipeError for unknown keys and settings that cannot be.
    """
    values: dict[str, Any] = {}
    if file is not None:
        if not file.is_file():
            raise RecipeError("There is no such plan", where=str(file), remedy="Name a .yaml file")
        values = _found_from(file.parent, read_values(file, overrides)[0])
    elif list(overrides):
        values = _overridden(overrides)
    where = str(file or "matrix")
    unknown = sorted(set(values) - set(KEYS))
    if unknown:
        raise RecipeError(
            f"There is no key `{unknown[0]}`", where=where, remedy=f"Choose of {', '.join(KEYS)}"
        )
    values |= options
    if "data" not in values:
        raise RecipeError("No data is named", where=where, remedy="Give --data, or data: in the plan")
    plan = _plan(values, where)
    asked = values.get("pipelines", list(PIPELINES))
    if not isinstance(asked, Sequence) or isinstance(asked, str):
        raise RecipeError("pipelines is no list", where=where, remedy="Write [sft, rl, sft+rl]")
    measures = measures_of(values["measures"]) if "measures" in values else {"plain": greedy(plan.rollout)}
    if "measures" not in values and plan.budget is not None:
        measures["budget"] = greedy(plan.budget)
    return MatrixRequest(
        data=Path(values["data"]),
        prompts=Path(values["prompts"]) if values.get("prompts") else None,
        held_out=Path(values["held_out"]) if values.get("held_out") else None,
        hold_out=int(values.get("hold_out", HELD_OUT)),
        reward=str(values.get("reward", "math")),
        seeds=_seeds(values.get("seeds", 3), where),
        against=values.get("against"),
        pipelines=tuple(plan.pipeline(text) for text in asked),
        measures=measures,
    )


def run(request: MatrixRequest, model: Path, out: Path) -> list[Outcome]:
    """Split the data where that is needed, and run the matrix into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    chats, held_out = request.data, request.held_out
    if held_out is None:
        chats, held_out = _split(request.data, request.hold_out, out)
    inputs = Inputs(chats=chats, prompts=request.prompts or chats, reward=request.reward)
    return run_matrix(
        model, request.pipelines, inputs, held_out, out, seeds=request.seeds, measures=request.measures
    )


def _plan(values: Mapping[str, Any], where: str) -> MatrixPlan:
    base = MatrixPlan()
    records = ("sft", "rl", "teaching", "keep", "lead", "rollout")
    said: dict[str, Any] = {
        name: changed(getattr(base, name), _block(values, name, where), name) for name in records
    }
    budget = (
        changed(said["rollout"], _block(values, "budget", where), "budget") if "budget" in values else None
    )
    if budget is not None and not isinstance(budget, RolloutSettings):
        raise RecipeError("budget is no block of settings", where=where, remedy="Give thinking_tokens")
    blocks: dict[str, Any] = {name: _block(values, name, where) for name in ("gkd", "distillation")}
    return MatrixPlan(
        **said, **blocks, budget=budget, teacher=values.get("teacher"), own=_block(values, "steps", where)
    )


def _block(values: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    block = values.get(name) or {}
    if not isinstance(block, dict):
        raise RecipeError(
            f"{name} is no block of settings", where=where, remedy="Write one setting to a line"
        )
    return block


def _seeds(said: Any, where: str) -> tuple[int, ...]:
    """A number of seeds from 0, or a list of them."""
    listed = list(range(said)) if isinstance(said, int) and not isinstance(said, bool) else said
    if not isinstance(listed, list) or not listed or not all(isinstance(seed, int) for seed in listed):
        raise RecipeError(f"seeds is {said!r}", where=where, remedy="Give a number of seeds, or a list")
    return tuple(listed)


def _overridden(overrides: Iterable[str]) -> dict[str, Any]:
    from recipes.load import _override

    values: dict[str, Any] = {}
    for override in overrides:
        _override(values, override)
    return values


def _found_from(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Paths of files in a plan as seen from the plan's folder, where they are there."""

    def found(path: Any) -> Any:
        return str(folder / path) if isinstance(path, str) and (folder / path).exists() else path

    moved = {key: found(values[key]) for key in ("data", "prompts", "held_out", "teacher") if key in values}
    for step in (values.get("steps") or {}).values():
        if isinstance(step, dict) and "data" in step:
            data = step["data"]
            step["data"] = [found(file) for file in data] if isinstance(data, list) else found(data)
    return values | moved


def _split(data: Path, count: int, out: Path) -> tuple[Path, Path]:
    """Two files of `data`: to train on, and `count` problems with all rows of the same prompt, chosen by a hash."""
    files = (out / "training.jsonl", out / "held_out.jsonl")
    key, made = [hash_file(data) if data.is_file() else "", count], out / "split.json"
    if made.exists() and all(file.exists() for file in files) and read_json(made) == key:
        return files
    rows = [row.value for row in read_rows(data) if not isinstance(row, Broken)]
    prompts = {hash_value(row.get("prompt", row.get("question"))): row for row in rows if row.get("answer")}
    if len(prompts) < 2 * count:
        raise DataError(
            f"{count} problems cannot be held out of {len(prompts)} different ones with an answer",
            where=str(data),
            remedy="Set hold_out lower, or name a file with held_out",
        )
    chosen = set(sorted(prompts)[:count])
    kept = [row for row in rows if hash_value(row.get("prompt", row.get("question"))) not in chosen]
    for file, part in zip(files, (kept, [prompts[key] for key in sorted(chosen)]), strict=True):
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part))
    write_json(made, key)
    return files
