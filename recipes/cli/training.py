"""Commands about training: train, data show."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from curation.errors import RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, SetOption, print_json, print_table
from recipes.cli.running import OutOption, RecipeArgument, RunArgument, execute, from_folder

SNIPPET_WIDTH = 28
data_app = typer.Typer(no_args_is_help=True, help="What training reads.", rich_markup_mode=None)
app.add_typer(data_app, name="data")


@app.command()
def train(
    recipe: RecipeArgument,
    stage: Annotated[str, typer.Option("--stage", help="pretrain, sft, grpo or model.")] = "pretrain",
    out: OutOption = None,
    set_: SetOption = None,
) -> None:
    """Run a recipe up to one of its training stages."""
    if stage not in ("pretrain", "sft", "grpo", "model"):
        raise RecipeError(f"`{stage}` is no training stage", remedy="Choose pretrain, sft, grpo or model")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "A recipe's stages cannot be run by several ranks at once",
            where="torchrun",
            remedy="Run it alone with `--set final.processes=N`, which starts N ranks for the final training, or "
            "`torchrun ... -m training` with a file of its own",
        )
    execute(recipe, out, set_, goal=stage)


@data_app.command("show")
def show_data(
    run: RunArgument,
    step: Annotated[int, typer.Option("--step", min=0, help="Step of the final pre-training, from 0.")],
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Processes that train side by side.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """List what a step of the final pre-training reads, without training."""
    from recipes.stages.final import data_order
    from training.step_listing import list_step
    from training.tokenizer import load_tokenizer

    bound = from_folder(run)
    order = data_order(bound)
    tokenizer = load_tokenizer(bound.path("tokenizer", "model"))
    rows = list_step(
        order,
        step,
        bound.recipe.final.batch_sequences,
        ranks=ranks,
        decode=lambda ids: str(tokenizer.decode(list(ids))),
    )
    if as_json:
        print_json(rows, ascii_only=True)
        return
    headings = {"index": "Seq.", "rank": "Rank"} if ranks > 1 else {"index": "Seq."}
    headings |= {
        "source": "Source",
        "epoch": "Ep.",
        "document": "Document",
        "tokens": "Tokens",
        "text": "Text",
    }
    phases = " and ".join(dict.fromkeys(row["phase"] for row in rows))
    print_table(f"Step {step}, phase {phases}", _by_document(rows, ranks), headings, cut="text")


def _by_document(rows: list[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
    """A row for each document of a listing; what concerns the whole sequence stands in its first row only."""
    from mixing.report.elements import visible

    shown = []
    for row in rows:
        for number, document in enumerate(row["documents"]):
            whole = row if number == 0 else {}
            shown.append(
                {
                    "index": str(whole.get("index", "")),
                    "rank": str(whole.get("rank", "")),
                    "source": whole.get("source", ""),
                    "epoch": str(whole.get("epoch", "")),
                    "document": document["id"][:8],
                    "tokens": f"{document['start']}:{document['stop']}",
                    "text": visible(" ".join(document["text"].split())[:SNIPPET_WIDTH]),
                }
            )
    return shown
