"""Commands around post-training: solve-rate, replay."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from curation.errors import RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, main_rank, print_json, print_table, say


@app.command("solve-rate")
def solve_rate(
    model: Annotated[Path, typer.Argument(help="A Hugging Face model folder, usually after SFT.")],
    data: Annotated[Path, typer.Option("--data", help='JSON lines of {"prompt", "answer", "source"?}.')],
    out: Annotated[Path, typer.Option("--out", help="The .jsonl of kept prompts to write.")],
    keep: Annotated[str, typer.Option(help="Solve rates to keep, ends included.")] = "0.2:0.8",
    samples: Annotated[int, typer.Option(min=1, help="Most answers to one prompt.")] = 13,
    error: Annotated[
        float, typer.Option(help="Chance, at most, that all samples would decide otherwise.")
    ] = 0.05,
    reward: Annotated[str, typer.Option("--reward", help="Name of a reward in training.rewards.")] = "math",
    per_source: Annotated[
        str | None, typer.Option(help="Most prompts of a source: a number, or `smallest`.")
    ] = None,
    thinking_tokens: Annotated[
        int | None, typer.Option(help="Budget for thinking; none when left out.")
    ] = None,
    answer_tokens: Annotated[int | None, typer.Option(help="Budget for the answer after it.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer without budgets.")] = 1024,
    temperature: float = 1.0,
    seed: int = 0,
    as_json: JsonOption = False,
) -> None:
    """Keep the prompts of middling difficulty: those that the model solves sometimes."""
    from recipes.stages.training_setup import one_thread
    from training.rollout import RolloutSettings
    from training.solve_rate import SolveRateSettings, filter_by_solve_rate
    from training.stopping import StoppingRule

    lowest, highest = _range(keep)
    rollout = RolloutSettings(
        max_tokens=max_tokens,
        thinking_tokens=thinking_tokens,
        answer_tokens=answer_tokens,
        temperature=temperature,
    )
    rule = StoppingRule(lowest, highest, samples, error)
    limit = int(per_source) if per_source and per_source.isdigit() else per_source
    if not (limit is None or limit == "smallest" or isinstance(limit, int)):
        raise RecipeError(
            f"`{limit}` is no number of prompts", where="--per-source", remedy="Or say `smallest`"
        )
    settings = SolveRateSettings(rule=rule, rollout=rollout, per_source=limit, seed=seed)  # type: ignore[arg-type]
    with one_thread():
        result = filter_by_solve_rate(model, data, reward, out, settings)
    if as_json:
        print_json(asdict(result))
        return
    rows = [{"source": source, **counts} for source, counts in result.by_source.items()]
    headings = {
        "source": "Source",
        "hard": f"below {lowest:g}",
        "keep": "kept",
        "easy": f"above {highest:g}",
        "chosen": "written",
    }
    print_table(f"Solve rates of {result.prompts:,} prompts", rows, headings)
    saved = result.samples_of_fixed_rule / max(result.samples, 1)
    say(
        f"{result.samples:,} answers were sampled, {saved:.1f} times fewer than {samples} for each. "
        f"{result.chosen:,} prompts are in {result.out}; all rates in {result.table}"
    )


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="A GRPO run's folder, or a recipe's run folder.")],
    step: Annotated[int, typer.Option("--step", min=1, help="The step to do again.")],
    start: Annotated[
        Path | None, typer.Option(help="The model that the run began with, if it has moved.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Do a GRPO step again from its record, and compare rewards, advantages, loss and gradient norm."""
    from recipes.stages.training_setup import one_thread
    from training.replay import replay as do_again

    nested = run / "training" / "grpo"
    with one_thread():
        found = do_again(nested if nested.is_dir() else run, step, start=start)
    if not main_rank():
        pass
    elif as_json:
        print_json(asdict(found) | {"same": found.same})
    else:
        pairs = ((found.loss, found.recorded_loss), (found.grad_norm, found.recorded_grad_norm))
        # A step in which no group trained has neither; the log has zeros for it.
        (loss, loss_then), (norm, norm_then) = (
            ("no group trained", "none" if then == 0 else repr(then))
            if now is None
            else (repr(now), repr(then))
            for now, then in pairs
        )
        rewards = "unknown" if found.rewards_differ is None else f"{found.rewards_differ} differ"
        rows = [
            {"what": "rewards", "now": rewards, "then": f"{found.rollouts} rollouts"},
            {"what": "advantages and weights", "now": f"{found.verdicts_differ} differ", "then": ""},
            {"what": "loss", "now": loss, "then": loss_then},
            {"what": "gradient norm", "now": norm, "then": norm_then},
        ]
        print_table(f"Step {step}", rows, {"what": "What", "now": "Now", "then": "On record"})
        if found.ranks != found.ranks_now:
            say(
                f"The step was made by {found.ranks} processes and repeated by {found.ranks_now}, so sums are rounded "
                "otherwise. " + ("The same up to that." if found.same else "Not the same.")
            )
        else:
            say("The same, bit for bit." if found.same else "Not the same.")
    if not found.same:
        raise typer.Exit(1)


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise RecipeError(f"`{text}` is no range", where="--keep", remedy="Write 0.2:0.8") from None
    return low, high
