"""What a recipe would do and cost, before it does anything."""

from __future__ import annotations

from typing import Any

from recipes.execute import remaining
from recipes.pipeline import Run
from recipes.schema import Recipe
from recipes.stages import stages_for
from recipes.stages.training_setup import model_config, one_thread, train_settings


def make_plan(run: Run) -> dict[str, Any]:
    """Stages with state, tokens, FLOPs and seconds; total seconds and megabytes of disk still to go.

    Seconds follow from a measurement made now: a few training steps of the recipe's own model on one thread.
    Stages that train side by side are divided by the number of workers. The estimate leaves out loading libraries.
    """
    rate = measure_flops(run.recipe)
    missing = remaining(run)
    rows = []
    for stage in stages_for(run.recipe):
        spent = stage.estimate(run.recipe)
        parallel = run.workers if stage.parallel else 1
        rows.append(
            {
                "stage": stage.name,
                "state": "to do" if stage.name in missing else "done",
                "tokens": spent.tokens,
                "flops": float(f"{spent.flops:.3g}"),
                "seconds": round(spent.flops / rate / parallel + stage.fixed_seconds, 1),
            }
        )
    todo = [row for row in rows if row["state"] == "to do"]
    return {
        "name": run.recipe.name,
        "folder": str(run.folder),
        "stages": rows,
        "seconds": sum(row["seconds"] for row in todo),
        "disk_megabytes": disk_megabytes(run.recipe) if todo else 0.0,
        "final_training": plan_final(run.recipe),
        "notes": _notes(run.recipe),
        "speed": f"measured now: {rate / 1e9:.0f} GFLOP/s of training on one thread, {run.workers} workers.",
    }


def _notes(recipe: Recipe) -> list[str]:
    """What a user should know before starting."""
    server = recipe.curation.judge.server
    if server is None:
        return []
    return [f"The text of documents is sent to {server.url}, to be judged by {server.model}."]


def measure_flops(recipe: Recipe) -> float:
    """Floating-point operations per second of training the recipe's model on one thread of this machine."""
    from training.training_plan import measure_step

    settings = train_settings(recipe.proxy, recipe.proxy.tokens, seed=0)
    config = model_config(recipe)
    with one_thread():
        seconds = measure_step(config, settings)
    return settings.tokens_per_step * config.flops_per_token(settings.sequence_tokens) / seconds


def plan_final(recipe: Recipe) -> dict[str, Any]:
    """Memory and time of one process of the final training, from its shapes and a few of its steps."""
    from recipes.stages.final import final_settings
    from training.training_plan import plan_training

    with one_thread():
        plan = plan_training(model_config(recipe), final_settings(recipe.final), ranks=recipe.final.processes)
    memory = plan.memory
    parts = ("weights", "gradients", "moments", "mean", "activations", "working", "peak")
    return {
        "parameters": model_config(recipe).parameters(),
        "steps": plan.steps,
        "tokens": plan.tokens,
        "step_seconds": float(f"{plan.step_seconds:.4g}"),
        "seconds": round(plan.seconds, 1),
        "process_megabytes": round(plan.total_bytes / 1e6, 1),
        "peak_at": memory.moment,
    } | {f"{name}_megabytes": round(getattr(memory, name) / 1e6, 1) for name in parts}


def disk_megabytes(recipe: Recipe) -> float:
    """Megabytes a whole run leaves behind: documents, tokens, checkpoints with optimizer state, the model."""
    parameters = model_config(recipe).parameters()
    text = sum(source.max_megabytes for source in recipe.sources)
    capabilities, sources = len(recipe.capabilities), len(recipe.sources)
    with_moments = len(recipe.leave_one_out.seeds) + capabilities
    runs = (sources + 1) * len(recipe.leave_one_out.seeds) + len(recipe.comparison.mixtures) * len(
        recipe.comparison.seeds
    )
    weights = 4 * parameters / 1e6
    return round(1.6 * text + weights * (runs + 3 * recipe.influence.checkpoints * with_moments + 8), 1)
