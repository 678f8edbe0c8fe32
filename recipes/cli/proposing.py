"""The command `propose`: the mixtures to train next, from anybody's proxy runs, or the first ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curation.errors import RecipeError
from recipes.cli import app
from recipes.cli.limits import (
    AvailableTokensOption,
    BudgetTokensOption,
    FixedOption,
    MaxEpochsOption,
    MaximumOption,
    MetricsOption,
    MinimumOption,
    ObjectiveOption,
    RatiosOption,
    SourceOption,
    count,
    numbers,
    tokens,
)
from recipes.cli.output import JsonOption, print_json, print_table, say

if TYPE_CHECKING:
    from mixing.fit.search import Simplex


@app.command()
def propose(
    out: Annotated[Path, typer.Option("--out", help="The CSV to write: run_id and a share for each source.")],
    runs: Annotated[int, typer.Option("--runs", help="How many mixtures.")] = 8,
    ratios: RatiosOption = None,
    metrics: MetricsOption = None,
    source: SourceOption = None,
    objective: ObjectiveOption = None,
    available_tokens: AvailableTokensOption = None,
    budget_tokens: BudgetTokensOption = None,
    max_epochs: MaxEpochsOption = None,
    minimum: MinimumOption = None,
    maximum: MaximumOption = None,
    fixed: FixedOption = None,
    leave_one_out: Annotated[
        Path | None, typer.Option("--leave-one-out", help="leave_one_out.json, as evidence.")
    ] = None,
    influence: Annotated[
        Path | None, typer.Option("--influence", help="Table of benefits, .parquet or .csv, as evidence.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="The reference model of the influence that counts.")
    ] = None,
    current: Annotated[
        Path | None, typer.Option("--current", help="The mixture.json at which influence was measured.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """The mixtures to train next: those that are expected to improve the decision most.

    Without --ratios and --metrics: a first round, spread over the allowed mixtures of the sources that --source
    or --available-tokens name.
    """
    from mixing.mixture import read_mixture
    from mixing.posterior import decision_problem, first_mixtures
    from mixing.posterior import propose as propose_runs
    from mixing.posterior.next_runs import next_run_ids, write_next_runs

    if not 1 <= runs <= 1000:
        raise RecipeError(f"{runs} runs cannot be proposed", where="--runs", remedy="Ask for 1 to 1000")
    sizes = tokens(available_tokens)
    limits: dict[str, Any] = {
        "available_tokens": sizes,
        "budget_tokens": count(budget_tokens, "--budget-tokens"),
        "max_epochs": max_epochs,
        "minimum": numbers(minimum, "--minimum"),
        "maximum": numbers(maximum, "--maximum"),
        "fixed": numbers(fixed, "--fixed"),
    }
    known: tuple[str, ...] = ()
    if ratios is None and metrics is None:
        simplex = _first(source, limits, leave_one_out or influence)
        found = first_mixtures(simplex, runs, seed=seed)
    else:
        if ratios is None or (metrics is None and not source):
            raise RecipeError(
                "Proxy runs are two tables, and one is missing",
                where="--ratios, --metrics",
                remedy="Give both, or one that holds both together with --source for each column of shares",
            )
        problem = decision_problem(
            ratios if metrics is None else (ratios, metrics),
            sources=source,
            objective=numbers(objective, "--objective"),
            leave_one_out=leave_one_out,
            influence=influence,
            measured_at=None if current is None else read_mixture(current).weights,
            reference=reference,
            seed=seed,
            **limits,
        )
        simplex, known = problem.simplex, problem.run_ids
        found = propose_runs(problem.posterior, simplex, runs, objective=problem.objective, seed=seed)
    ids = next_run_ids(known, runs)
    write_next_runs(out, ids, simplex.sources, found)
    rows = [
        {"run_id": name, **dict(zip(simplex.sources, map(float, row), strict=True))}
        for name, row in zip(ids, found, strict=True)
    ]
    if as_json:
        print_json(rows)
        return
    shown = [
        {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]
    print_table(
        "Mixtures to train, in shares of tokens", shown, {"run_id": "Run"} | {s: s for s in simplex.sources}
    )
    after = "append these rows to ratios.csv and what they gave to metrics.csv, and ask again"
    say(f"  Written: {out}. Train them with one budget and recipe, {after}.")


def _first(source: list[str] | None, limits: dict[str, Any], evidence: Path | None) -> Simplex:
    """The allowed mixtures of the named sources, about which nothing is known."""
    from mixing.fit.limits import allowed_mixtures

    names = tuple(sorted(source or limits["available_tokens"] or ()))
    if len(set(names)) < 2 or len(set(names)) != len(names):
        raise RecipeError(
            "A first round needs the names of two sources or more, each once",
            where="--source",
            remedy="Name them with --source or --available-tokens, or give --ratios and --metrics of runs",
        )
    if evidence is not None:
        raise RecipeError(
            "Leave-one-out and influence say nothing about the first round, which only spreads",
            where="--leave-one-out, --influence",
            remedy="Give them together with --ratios and --metrics",
        )
    return allowed_mixtures(names, **limits)
