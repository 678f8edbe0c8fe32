"""`mixwright loo` and `mixwright doremi`."""

from __future__ import annotations

from typing import Any

from recipes.cli import app
from recipes.cli.output import JsonOption, SetOption, print_json, print_table, say
from recipes.cli.running import OutOption, RecipeArgument, execute


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


@app.command()
def doremi(
    recipe: RecipeArgument, out: OutOption = None, set_: SetOption = None, as_json: JsonOption = False
) -> None:
    """Train DoReMi's reference model and proxy, and show the weights that group-DRO found."""
    from curation.atomic import read_json

    run = execute(recipe, out, set_, goal="doremi")
    file = run.path("doremi", "doremi.json")
    result = read_json(file)
    if as_json:
        print_json(result)
        return
    course = result["trajectory"]
    rows = [
        {
            "source": name,
            "reference": result["reference"].get(name, 0.0),
            "weight": weight,
            "last": course["weights"][name][-1],
            "excess": course["excess"][name][-1],
        }
        for name, weight in result["weights"].items()
    ]
    print_table(
        f"DoReMi's weights: mean over {result['updates']:,} updates, the last ones, and the last excess loss",
        rows,
        {
            "source": "Source",
            "reference": "Reference",
            "weight": "Weight",
            "last": "Last",
            "excess": "Excess, nats",
        },
    )
    for note in result["notes"]:
        say(f"  {note}.")
    say(f"  mixwright fit --method doremi --doremi {file} --out mixture.json makes a mixture of it.")
