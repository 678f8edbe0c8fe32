"""Commands over a whole recipe or run: run, plan, report, verify, show, stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curation.errors import DataError, RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, SetOption, console, print_json, print_table, say
from recipes.pipeline import Run

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, or the name of a built-in one (quickstart).")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Run folder; runs/<name> when left out.")]
RunArgument = Annotated[Path, typer.Argument(help="A run folder.")]


@app.command()
def run(recipe: RecipeArgument, out: OutOption = None, set_: SetOption = None) -> None:
    """Run a recipe; continue it where it was, or do nothing when it is done."""
    execute(recipe, out, set_, goal=None)


@app.command()
def stage(
    recipe: RecipeArgument,
    name: Annotated[str, typer.Option("--name", help="The stage to reach; `mixwright plan` lists them.")],
    out: OutOption = None,
    set_: SetOption = None,
) -> None:
    """Run a recipe up to one stage, with what that stage needs."""
    execute(recipe, out, set_, goal=name)


@app.command()
def plan(
    recipe: RecipeArgument, out: OutOption = None, set_: SetOption = None, as_json: JsonOption = False
) -> None:
    """Show what would run and what it would cost, without running it."""
    from recipes.plan import make_plan

    made = make_plan(_open(recipe, out, set_))
    if as_json:
        print_json(made)
        return
    print_table(
        f"Plan of {made['name']}, into {made['folder']}",
        made["stages"],
        {"stage": "Stage", "state": "State", "tokens": "Tokens", "flops": "FLOPs", "seconds": "Seconds"},
    )
    if all(row["state"] == "done" for row in made["stages"]):
        say("  Nothing is left to do: every stage is done. The times above are estimates,")
    else:
        to_go = f"{made['seconds'] / 60:.1f} minutes and {made['disk_megabytes']:,.0f} MB of disk"
        say(f"  About {to_go} still to go,")
    say(f"  {made['speed']}")
    final = made["final_training"]
    say(
        f"  The final training: {final['parameters']:,} parameters, {final['steps']:,} steps of "
        f"{final['step_seconds']:.3g} s,"
    )
    say(f"  {final['process_megabytes']:,.0f} MB of memory at its peak (the {final['peak_at']}):")
    memory = ("weights", "gradients", "moments", "mean", "activations", "working")
    say("  " + ", ".join(f"{name} {final[f'{name}_megabytes']:,.0f}" for name in memory) + ".")
    say("  The rest is Python and torch themselves.")
    for note in made["notes"]:
        say(f"  {note}")


@app.command()
def report(run: RunArgument) -> None:
    """Write the page report.html from what a run has so far."""
    from mixing.report import write_report

    console.print(str(write_report(_existing(run))), markup=False, soft_wrap=True)


@app.command()
def verify(run: RunArgument, as_json: JsonOption = False) -> None:
    """Compare every result of a run with the hash that was recorded when it was made."""
    from recipes.pipeline import verify as find_problems
    from recipes.stages import stages_for

    opened = from_folder(run)
    problems = find_problems(opened, {stage.name: stage for stage in stages_for(opened.recipe)})
    if as_json:
        print_json({"problems": problems})
    for problem in problems if not as_json else ():
        console.print(problem, markup=False)
    if problems:
        raise typer.Exit(DataError.exit_code)
    if not as_json:
        say(f"All results of {run} are as they were written.")


@app.command()
def show(
    run: RunArgument,
    document: Annotated[str, typer.Argument(help="The id of a document, or its first characters.")],
    as_json: JsonOption = False,
) -> None:
    """Show one document with every score that decided its fate, in order, and its verdict."""
    from mixing.report.elements import visible
    from recipes.show import document_lines, find_document

    found = find_document(_existing(run), document)
    if as_json:
        print_json(found, ascii_only=True)
        return
    # A text could hold sequences that command the terminal, or turn the direction of what follows.
    for line in document_lines(found):
        console.print(visible(line), markup=False, soft_wrap=True)


def execute(recipe: str, out: Path | None, overrides: list[str] | None, goal: str | None) -> Run:
    """Run the stages of a recipe up to `goal` (all when None), saying what happens."""
    from recipes.execute import run_recipe

    bound = _open(recipe, out, overrides)
    done = run_recipe(bound, goal, say)
    if not done:
        say(f"Nothing to do: every stage of {bound.folder} is done for this recipe.")
    if goal is None:
        from mixing.report.terminal import print_summary

        print_summary(bound.folder, console)
    return bound


def _open(recipe: str, out: Path | None, overrides: list[str] | None) -> Run:
    from recipes.execute import open_run

    return open_run(recipe, out, overrides or ())


def _existing(run: Path) -> Path:
    if not (run / "recipe.yaml").is_file():
        raise RecipeError(f"{run} is not a run folder", remedy="Name a folder that `mixwright run` made")
    return run


def from_folder(run: Path) -> Run:
    """The run of a folder, bound to the recipe that is kept in it."""
    from recipes.execute import open_run

    return open_run(str(_existing(run) / "recipe.yaml"), run, ())
