"""Commands about mixtures: influence, loo, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from curation.errors import RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, SetOption, print_json, print_table, say
from recipes.cli.running import OutOption, RecipeArgument, execute


@app.command()
def influence(
    model: Annotated[str, typer.Option("--model", help="A Hugging Face folder or id.")],
    samples: Annotated[Path, typer.Option("--samples", help="Documents to be scored.")],
    probe: Annotated[
        list[str], typer.Option("--probe", metavar="NAME=FILE", help="A probe set; repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Table to write, .parquet.")],
    preconditioner: Annotated[str, typer.Option(help="identity, adam, datainf or ekfac.")] = "identity",
    context: Annotated[int, typer.Option(help="Tokens of each document that are read.")] = 1024,
    as_json: JsonOption = False,
) -> None:
    """How much each document of a file would lower a model's loss on each probe."""
    from mixing.influence import InfluenceSettings, score_files
    from mixing.influence.weights import densities

    probes = dict(_pair(text) for text in probe)
    settings = InfluenceSettings(preconditioner=preconditioner, context=context)  # type: ignore[arg-type]
    table = score_files(model, samples, probes, preconditioner, out, settings)  # type: ignore[arg-type]
    rows = []
    for name in probes:
        chosen = table.filter([value == name for value in table["capability"].to_pylist()])
        rows += [
            {"source": source, "probe": name, "benefit": value}
            for source, value in sorted(densities(chosen).items())
        ]
    if as_json:
        print_json({"out": str(out), "documents": table.num_rows // len(probes), "benefit_per_token": rows})
        return
    print_table(
        "Mean benefit, weighted by tokens (positive lowers the loss)",
        rows,
        {"source": "Source", "probe": "Probe", "benefit": "Benefit"},
    )
    say(f"  Every document: {out}")


@app.command()
def loo(
    recipe: RecipeArgument, out: OutOption = None, set_: SetOption = None, as_json: JsonOption = False
) -> None:
    """Train without each source in turn, and show what each is worth."""
    from curation.atomic import read_json

    run = execute(recipe, out, set_, goal="leave_one_out")
    result = read_json(run.path("leave_one_out", "leave_one_out.json"))
    if as_json:
        print_json(result)
        return
    rows: dict[str, dict[str, Any]] = {}
    for effect in result["effects"]:
        interval = f"{effect['delta']:+.3f} [{effect['low']:+.3f}, {effect['high']:+.3f}]"
        rows.setdefault(effect["source"], {"source": effect["source"]})[effect["capability"]] = interval
    capabilities = run.recipe.capabilities
    print_table(
        "Bits per byte lost on each probe without the source (positive: it helps)",
        list(rows.values()),
        {"source": "Source"} | {name: name.capitalize() for name in capabilities},
    )


def _pair(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not equals or not name or not file:
        raise RecipeError(
            f"`--probe {text}` is not of the form NAME=FILE", remedy="For example --probe code=code.jsonl"
        )
    return name, Path(file)
