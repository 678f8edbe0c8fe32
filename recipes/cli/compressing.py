"""`mixwright compress`: rounds of mid-training on what helps, beside the uncompressed set."""

from __future__ import annotations

from typing import Any

from curation.errors import RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, SetOption, print_json, print_table, say
from recipes.cli.running import OutOption, RecipeArgument, execute


@app.command()
def compress(
    recipe: RecipeArgument, out: OutOption = None, set_: SetOption = None, as_json: JsonOption = False
) -> None:
    """Mid-train on what helps: score, keep, mix, train, and score again, beside the whole set at equal tokens."""
    from curation.atomic import read_json
    from recipes.execute import open_run

    if open_run(recipe, out, set_ or ()).recipe.compression is None:
        raise RecipeError(
            "The recipe has no `compression` block",
            where=recipe,
            remedy="Add one, or give it here: --set compression.rounds=2 --set compression.tokens=1000000",
        )
    run = execute(recipe, out, set_, goal="compression")
    result = read_json(run.path("training", "compression", "compression.json"))
    if as_json:
        print_json(result)
        return
    for name, seeds in result["arms"].items():
        for seed, arm in seeds.items():
            if "rounds" in arm:
                _show_rounds(f"{name}, seed {seed}", arm)
    for kind, comparison in result["comparison"].items():
        if comparison is None:
            say(f"  {kind}: nothing was trained, so there is nothing to compare.")
        for row in (comparison or {}).get("differences", ()):
            say(f"  {kind}: {row['text']}")


def _show_rounds(title: str, arm: dict[str, Any]) -> None:
    rows = []
    for found in arm["rounds"]:
        for source, tokens in found["tokens"].items():
            rows.append(
                {
                    "round": str(found["number"]),
                    "source": source,
                    "kept": f"{found['kept_tokens'][source] / tokens:.1%}",
                    "weight": found["weights"].get(source, 0.0),
                }
            )
    print_table(
        f"Kept of each source: {title}",
        rows,
        {"round": "Round", "source": "Source", "kept": "Tokens kept", "weight": "Weight"},
    )
    say(f"  {arm['stop']['text']}.")
