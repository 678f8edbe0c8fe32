"""`mixwright compare`: the recipe's mixtures, or anybody's, trained with paired seeds and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from curation.errors import RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, SetOption, print_json, print_table, say
from recipes.cli.running import OutOption, RecipeArgument, execute
from recipes.pipeline import Run, locked


@app.command()
def compare(
    recipe: RecipeArgument,
    mixtures: Annotated[
        list[str] | None,
        typer.Option(
            "--mixtures", metavar="[NAME=]FILE", help="A mixture.json to compare with uniform; repeatable."
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="A paired seed; repeatable. The recipe's without it.")
    ] = None,
    out: OutOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train on each mixture with paired seeds, and compare on text that nothing has seen.

    Without `--mixtures` those of the recipe; with it the files given, beside the uniform mixture.
    """
    from curation.atomic import read_json

    if not mixtures:
        if seeds:
            raise RecipeError(
                "`--seed` is for mixtures given with `--mixtures`",
                where="--seed",
                remedy="Set `comparison.seeds` in the recipe, or with --set",
            )
        folder = execute(recipe, out, set_, goal="comparison").path("comparison")
    else:
        given = dict(_named(text) for text in mixtures)
        if len(given) != len(mixtures):
            raise RecipeError(
                "Two mixtures have one name", where="--mixtures", remedy="Name them: --mixtures NAME=FILE"
            )
        for goal in ("tokens", "probes", "test"):
            run = execute(recipe, out, set_, goal=goal)
        folder = _compare_given(run, given, seeds or run.recipe.comparison.seeds)
    result = read_json(folder / "comparison.json")
    if as_json:
        print_json(result | {"folder": str(folder)})
        return
    _show(result)
    say(f"  {folder}")


def _compare_given(run: Run, given: dict[str, Path], seeds: list[int]) -> Path:
    """Train and compare the mixtures of files; a comparison that is done is not repeated."""
    from curation.atomic import hash_value
    from mixing.mixture import read_mixture
    from recipes.stages.proxies import compare_mixtures, uniform_weights

    names = [source.name for source in run.recipe.sources]
    mixtures = {"uniform": uniform_weights(run)}
    for name, file in given.items():
        mixture = read_mixture(file)
        mixture.check_sources(names, where=str(file))
        mixtures[name] = {source: mixture.weights.get(source, 0.0) for source in names}
    folder = run.path("comparisons", hash_value([mixtures, sorted(seeds)])[:12])
    with locked(run.folder):
        compare_mixtures(run, mixtures, seeds, folder)
    return folder


def _show(result: dict[str, Any]) -> None:
    rows = [
        {
            "mixture": row["mixture"],
            "capability": row["capability"],
            "difference": row["difference"],
            "interval": "-" if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}",
            "p": row["p_holm"],
            "verdict": "equivalent"
            if row["equivalent"] and row["verdict"] == "not separable"
            else row["verdict"],
        }
        for row in result["differences"]
    ]
    print_table(
        "Bits per byte against uniform (negative is better)",
        rows,
        {
            "mixture": "Mixture",
            "capability": "Capability",
            "difference": "Diff.",
            "interval": f"{result['level']:.0%} interval",
            "p": "p (Holm)",
            "verdict": "Verdict",
        },
    )


def _named(text: str) -> tuple[str, Path]:
    """NAME=FILE, or a file whose name, or whose folder's for mixture.json, is the mixture's."""
    name, equals, file = text.partition("=")
    path = Path(file if equals else text)
    if not equals:
        name = path.parent.name if path.name == "mixture.json" and path.parent.name else path.stem
    if not name or name == "uniform":
        raise RecipeError(
            f"`--mixtures {text}` gives a mixture no name of its own ({name or 'empty'!r})",
            where="--mixtures",
            remedy="Name it: --mixtures NAME=FILE; `uniform` is always there",
        )
    return name, path
