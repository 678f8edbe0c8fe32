"""`mixwright export`: a mixture in another trainer's terms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipes.cli import app
from recipes.cli.limits import AvailableTokensOption, BudgetTokensOption, count, numbers, pairs, tokens
from recipes.cli.output import JsonOption, print_json, print_table, say

if TYPE_CHECKING:
    from mixing.export import Exported
    from mixing.mixture import Mixture


@app.command()
def export(
    mixture: Annotated[Path, typer.Argument(help="A mixture.json.")],
    to: Annotated[
        str, typer.Option("--to", help="nanotron, olmo-core, megatron, torchtitan, litdata, datasets, olmix.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the files.")] = Path(),
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME=PATH", help="Where the trainer finds a source; repeatable."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="A run folder: sizes of the sources and of their documents.")
    ] = None,
    budget_tokens: BudgetTokensOption = None,
    available_tokens: AvailableTokensOption = None,
    tokens_per_document: Annotated[
        list[str] | None,
        typer.Option("--tokens-per-document", metavar="NAME=N", help="Mean of a source; repeatable."),
    ] = None,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a training sequence.")] = 2048,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens of a global batch.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the trainer's order.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a mixture as another trainer's configuration, in the unit that it counts."""
    from mixing.export import ExportPlan, export_mixture, write_export
    from mixing.mixture import read_mixture

    weights = read_mixture(mixture)
    sizes, lengths, documents = _sizes(run, weights) if run is not None else ({}, {}, {})
    paths = documents if to == "datasets" else {}
    plan = ExportPlan(
        paths={**paths, **(pairs(data, "--data") or {})},
        budget_tokens=count(budget_tokens, "--budget-tokens"),
        sequence_length=sequence_length,
        batch_tokens=batch_tokens,
        seed=seed,
        available_tokens={**sizes, **(tokens(available_tokens) or {})} or None,
        tokens_per_document={**lengths, **(numbers(tokens_per_document, "--tokens-per-document") or {})}
        or None,
    )
    exported = export_mixture(weights, to, plan)
    files = [str(path) for path in write_export(exported, out)]
    if as_json:
        print_json(_record(exported, files))
        return
    _show(exported, weights)
    for file in files:
        say(f"  {file}")


def _show(exported: Exported, mixture: Mixture) -> None:
    rows: list[dict[str, Any]] = []
    for name, share in exported.shares.items():
        row: dict[str, Any] = {"source": name, "tokens": mixture.weights[name], "share": share}
        row["count"] = exported.tokens[name] if exported.tokens else None
        row["epochs"] = exported.epochs[name]
        rows.append(row)
    columns = {"source": "Source", "tokens": "Of tokens"}
    if exported.unit == "documents":
        columns["share"] = "Of documents"
    print_table(
        f"{exported.format}: weights by {exported.unit}",
        rows,
        columns | {"count": "Tokens", "epochs": "Epochs"},
    )
    for note in exported.notes:
        say(f"  {note}")


def _record(exported: Exported, files: list[str]) -> dict[str, Any]:
    return {
        "format": exported.format,
        "unit": exported.unit,
        "files": files,
        "shares": exported.shares,
        "tokens": exported.tokens,
        "epochs": exported.epochs,
        "notes": list(exported.notes),
    }


def _sizes(run: Path, mixture: Mixture) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Tokens, mean tokens a document, and the files of documents of each source, from a run's folder."""
    from training.tokens import TokenSource

    sizes, lengths, documents = {}, {}, {}
    for name in mixture.weights:
        source = TokenSource.open(run / "tokens" / name)
        sizes[name] = float(source.total_tokens)
        if len(source.ids):
            lengths[name] = source.total_tokens / len(source.ids)
        documents[name] = str((run / "documents" / name).resolve() / "*.parquet")
    return sizes, lengths, documents
