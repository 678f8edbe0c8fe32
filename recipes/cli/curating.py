"""Commands about text: curate, dedup, decontaminate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from recipes.cli import app
from recipes.cli.output import JsonOption, SetOption, print_json, print_table, say
from recipes.cli.running import OutOption, RecipeArgument, execute

FilesArgument = Annotated[
    list[Path], typer.Argument(help="Documents: .jsonl, .jsonl.gz, .jsonl.zst, .parquet, .txt.")
]
OutFile = Annotated[
    Path, typer.Option("--out", help="File to write (.parquet or .jsonl, also .gz and .zst).")
]


@app.command()
def curate(recipe: RecipeArgument, out: OutOption = None, set_: SetOption = None) -> None:
    """Sources to representative sets and probes, with the funnel."""
    from curation.atomic import read_json

    run = execute(recipe, out, set_, goal="probes")
    rows: dict[str, dict[str, object]] = {}
    for count in read_json(run.path("representative", "funnel.json")):
        rows.setdefault(count["source"], {"source": count["source"]})[count["stage"]] = count["documents"]
    stages = ("read", "educational", "reasoning", "domain", "deduplicated", "representative")
    table = [{stage: row.get(stage, 0) for stage in ("source", *stages)} for row in rows.values()]
    headings = ("Source", "Read", "Edu.", "Reason.", "Domain", "Dedup.", "Repr.")
    print_table(
        "Documents left after each step", table, dict(zip(("source", *stages), headings, strict=True))
    )


@app.command()
def dedup(
    files: FilesArgument,
    out: OutFile,
    threshold: Annotated[float, typer.Option(help="Cosine above which the later document is dropped.")] = 0.9,
    embedder: Annotated[
        str | None,
        typer.Option(help="sentence-transformers folder or id; latent semantic analysis when left out."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Drop documents that say what an earlier one says; also writes who duplicates whom."""
    from curation.deduplicate import deduplicate_files

    report = asdict(deduplicate_files(files, threshold, out, embedder=embedder))
    if as_json:
        print_json({key: str(value) if isinstance(value, Path) else value for key, value in report.items()})
        return
    say("  ".join(f"{key}: {value}" for key, value in report.items()))


@app.command()
def decontaminate(
    files: FilesArgument,
    against: Annotated[list[Path], typer.Option("--against", help="Benchmark texts; repeatable.")],
    out: OutFile,
    as_json: JsonOption = False,
) -> None:
    """Drop documents that share 13 words in a row with a benchmark; also writes which and where."""
    from curation.decontaminate import decontaminate as drop_overlaps

    report = asdict(drop_overlaps(files, against, out))
    if as_json:
        print_json({key: str(value) if isinstance(value, Path) else value for key, value in report.items()})
        return
    say("  ".join(f"{key}: {value}" for key, value in report.items()))
