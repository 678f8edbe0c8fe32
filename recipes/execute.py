"""Running a recipe: bind it to a folder, then run its stages in order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from curation.atomic import write_json, write_text
from curation.errors import RecipeError
from recipes.curation_settings import CurationSettings
from recipes.final_settings import CompressionSettings, FinalPhase
from recipes.load import dump_recipe, load_recipe
from recipes.open_settings import open_settings
from recipes.pipeline import Run, is_done, locked, run_stage
from recipes.schema import Recipe

Taught = TypeVar("Taught", FinalPhase, CompressionSettings)


def open_run(recipe: str | Path, out: Path | None = None, overrides: Iterable[str] = ()) -> Run:
    """Bind a recipe to its run folder (runs/<name> unless `out` says otherwise); nothing is written yet."""
    loaded, file = load_recipe(recipe, overrides)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = cores if loaded.workers == "auto" else int(loaded.workers)
    bound = _with_absolute_paths(loaded, file.resolve().parent)
    return Run(bound, file.resolve(), Path(out) if out else Path("runs") / loaded.name, workers)


def run_recipe(run: Run, goal: str | None = None, say: Callable[[str], None] = print) -> list[str]:
    """Run every stage that is not done, up to `goal` when given, and return the names of those that ran.

    Raises the errors of curation.errors; whatever was finished before stays and is not repeated.
    """
    from mixing.report import write_report
    from recipes.stages import STAGES, stages_for

    if goal is not None and goal not in STAGES:
        raise RecipeError(f"There is no stage `{goal}`", remedy=f"Choose one of: {', '.join(STAGES)}")
    chosen = stages_for(run.recipe, goal)
    with locked(run.folder):
        write_text(run.path("recipe.yaml"), dump_recipe(run.recipe))
        write_json(run.path("settings.json"), open_settings(run.recipe))
        ran = []
        for stage in chosen:
            if not is_done(run, stage, STAGES):
                stage.check(run)
        for number, stage in enumerate(chosen, 1):
            if is_done(run, stage, STAGES):
                continue
            say(f"[{number:>2}/{len(chosen)}] {stage.name}: {stage.about}")
            started = time.monotonic()
            run_stage(run, stage, STAGES)
            say(f"        {time.monotonic() - started:.1f} s")
            ran.append(stage.name)
        if goal is None and (ran or not run.path("report.html").is_file()):
            write_report(run.folder)
    return ran


def remaining(run: Run) -> set[str]:
    """Names of the stages of the recipe that a run would still have to do."""
    from recipes.stages import STAGES, stages_for

    missing: set[str] = set()
    for stage in stages_for(run.recipe):
        if missing.intersection(stage.needs) or not is_done(run, stage, STAGES):
            missing.add(stage.name)
    return missing


def _with_absolute_paths(recipe: Recipe, base: Path) -> Recipe:
    """The recipe with its files named absolutely, so that the copy kept in the run folder means the same files."""
    sources = [
        source.model_copy(update={"path": str(base / source.path)}) if source.path else source
        for source in recipe.sources
    ]
    post: dict[str, object] = {}
    for name in ("sft", "grpo"):
        block = getattr(recipe.post_training, name)
        if block is not None and block.data != "generated":
            post[name] = block = block.model_copy(update={"data": str(base / block.data)})
        if name == "sft" and block is not None and block.general is not None:
            general = block.general.model_copy(update={"data": str(base / block.general.data)})
            post[name] = block.model_copy(update={"general": general})
    training = recipe.post_training.model_copy(update=post)
    phases = [_with_absolute_teacher(phase, base) for phase in recipe.final.phases]
    final = recipe.final.model_copy(update={"phases": phases})
    curation = _curation_with_absolute_paths(recipe.curation, base)
    compression = _with_absolute_teacher(recipe.compression, base) if recipe.compression else None
    changed = {"sources": sources, "post_training": training, "curation": curation, "final": final}
    changed["compression"] = compression
    return recipe.model_copy(update=changed)


def _with_absolute_teacher(phase: Taught, base: Path) -> Taught:
    """A teacher that is no folder beside the recipe is a name on the hub, and stays what it is."""
    if phase.distill is None or not (base / phase.distill.teacher).is_dir():
        return phase
    teacher = str(base / phase.distill.teacher)
    return phase.model_copy(update={"distill": phase.distill.model_copy(update={"teacher": teacher})})


def _curation_with_absolute_paths(curation: CurationSettings, base: Path) -> CurationSettings:
    """Prompts that are files beside the recipe (others are names of packaged ones), models that are folders beside it
    (others are names on the hub), and the language model.
    """
    prompts = {
        purpose: str(base / name) if (base / name).is_file() else name
        for purpose, name in curation.judge.prompts.items()
    }
    judge = curation.judge.model_copy(update={"prompts": prompts})
    blocks = {
        "educational": ("model", curation.educational),
        "deduplication": ("embedder", curation.deduplication),
    }
    changed: dict[str, object] = {}
    for name, (key, block) in (blocks | {"judge": ("model", judge)}).items():
        model = getattr(block, key)
        beside = model is not None and (base / model).is_dir()
        changed[name] = block.model_copy(update={key: str(base / model)}) if beside else block
    if curation.language is not None:
        model = str(base / curation.language.model)
        changed["language"] = curation.language.model_copy(update={"model": model})
    return curation.model_copy(update=changed)
