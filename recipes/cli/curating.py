"""Commands about text: curate, dedup, decontaminate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from curation.errors import MixwrightError
from recipes.cli import app
from recipes.cli.funnel import print_budget, print_funnel, print_warnings
from recipes.cli.output import JsonOption, SetOption, output_is_json, print_json, say
from recipes.cli.running import OutOption, RecipeArgument, execute
from recipes.funnel import funnel_of

FilesArgument = Annotated[
    list[Path], typer.Argument(help="Documents: .jsonl, .jsonl.gz, .jsonl.zst, .parquet, .txt.")
]
OutFile = Annotated[
    Path, typer.Option("--out", help="File to write (.parquet or .jsonl, also .gz and .zst).")
]


@app.command()
def curate(
    recipe: RecipeArgument,
    out: OutOption = None,
    set_: SetOption = None,
    plan_budget: Annotated[
        int | None,
        typer.Option(
            "--plan-budget",
            metavar="N",
            help="Only a pilot: how much of each source must be read to end with N documents.",
        ),
    ] = None,
    pilot: Annotated[int, typer.Option(help="Documents of each source in the pilot.")] = 2000,
    as_json: JsonOption = False,
) -> None:
    """Sources to representative sets and probes, with the funnel; or, with --plan-budget, what that will take."""
    if plan_budget is not None:
        _plan_budget(recipe, out, set_, plan_budget, pilot, as_json)
        return
    try:
        run = execute(recipe, out, set_, goal="probes")
    except MixwrightError:
        # The funnel says why too little was left for what comes behind it.
        _show_funnel_if_done(recipe, out, set_)
        raise
    if as_json:
        print_json(funnel_of(run.folder))
    else:
        print_funnel(funnel_of(run.folder))
    print_warnings(run.folder)


def _show_funnel_if_done(recipe: str, out: Path | None, overrides: list[str] | None) -> None:
    from recipes.execute import open_run
    from recipes.pipeline import is_done
    from recipes.stages import STAGES

    run = open_run(recipe, out, overrides or [])
    if not output_is_json() and is_done(run, STAGES["representative"], STAGES):
        print_funnel(funnel_of(run.folder))
        print_warnings(run.folder)


def _plan_budget(
    recipe: str, out: Path | None, overrides: list[str] | None, target: int, pilot: int, as_json: bool
) -> None:
    from recipes.budget import plan_recipe_budget

    execute(recipe, out, overrides, goal="near_duplicates")
    plans = plan_recipe_budget(execute(recipe, out, overrides, goal="raters"), target, pilot)
    if as_json:
        print_json([asdict(plan) for plan in plans])
        return
    print_budget(plans)


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
    against: Annotated[
        list[str],
        typer.Option(
            "--against", help="A benchmark: a file, or owner/name[:subset[:split]] of the hub; repeatable."
        ),
    ],
    out: OutFile,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            help="Field of the benchmarks that holds text; repeatable, each uses those that it has. "
            "`text` when left out.",
        ),
    ] = None,
    remove: Annotated[
        str, typer.Option(help="Documents to leave out: `any` shared run, `half` of an item's, or `none`.")
    ] = "any",
    shortest: Annotated[int, typer.Option(help="Words of the shortest item that is searched for.")] = 8,
    as_json: JsonOption = False,
) -> None:
    """Drop documents that share 13 words in a row with a benchmark; also writes which, where and how much of it."""
    from curation.decontaminate import decontaminate as drop_overlaps

    report = drop_overlaps(
        files,
        against,
        out,
        fields=fields or ["text"],
        remove=remove,  # type: ignore[arg-type]  # checked there, with a sentence
        shortest=shortest,
    )
    if as_json:
        print_json(asdict(report))
        return
    counts = {key: value for key, value in asdict(report).items() if isinstance(value, int)}
    say("  ".join(f"{key}: {value}" for key, value in counts.items()))
    for found in report.benchmarks:
        say(
            f"  {found.benchmark}: of {found.items} items {found.any_share:.1%} share a run of words with the corpus, "
            f"{found.half_share:.1%} at least half of theirs; {found.too_short} are too short"
        )
