"""What a recipe would do and cost, before it does anything."""

from __future__ import annotations

import time
from typing import Any

from curation.progress import progress
from recipes.execute import remaining
from recipes.pipeline import Run
from recipes.schema import Recipe
from recipes.stages import STAGES, stages_for
from recipes.stages.training_setup import model_config

MEASURE_STEPS = 3


def make_plan(run: Run) -> dict[str, Any]:
    """Stages with state, tokens, FLOPs and seconds; total seconds and megabytes of disk still to go.

    Seconds follow from a measurement made now: a few training steps of the recipe's own model on one thread.
    Stages that train side by side are divided by the number of workers. The estimate leaves out loading libraries.
    """
    rate = measure_flops(run.recipe)
    missing = remaining(run, STAGES)
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
    import torch

    from training.losses import linear_cross_entropy
    from training.model import Decoder

    config = model_config(recipe)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = Decoder(config)
        shape = (recipe.proxy.batch_sequences, recipe.proxy.sequence_tokens)
        tokens = torch.randint(0, config.vocab_size, shape)
        low = recipe.proxy.precision == "bfloat16"
        with progress("measuring the speed of training", MEASURE_STEPS + 1, "steps") as task:
            for step in range(MEASURE_STEPS + 1):
                if step == 1:
                    started = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    hidden = model(tokens).flatten(0, 1)
                    linear_cross_entropy(hidden, model.output_weight, tokens.flatten()).backward()
                task.advance()
        seconds = (time.perf_counter() - started) / MEASURE_STEPS
        return tokens.numel() * config.flops_per_token(shape[1]) / seconds
    finally:
        torch.set_num_threads(threads)


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
