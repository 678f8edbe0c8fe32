"""The command `fit`: a mixture, and how sure it is, from anybody's proxy runs, influence table or probe scores."""

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
    pairs,
    tokens,
)
from recipes.cli.output import JsonOption, print_json, print_table, say

if TYPE_CHECKING:
    from mixing.evidence import Estimate, Evidence
    from mixing.mixture import Mixture
    from mixing.posterior import DecisionProblem


@app.command()
def fit(
    out: Annotated[Path, typer.Option("--out", help="The mixture.json to write.")],
    method: Annotated[
        str, typer.Option("--method", help="How to find the mixture; a wrong name lists them.")
    ] = "gaussian-process",
    ratios: RatiosOption = None,
    metrics: MetricsOption = None,
    source: SourceOption = None,
    objective: ObjectiveOption = None,
    available_tokens: AvailableTokensOption = None,
    budget_tokens: BudgetTokensOption = None,
    batch_tokens: Annotated[
        str | None, typer.Option("--batch-tokens", help="Tokens of one update; the budget holds one or more.")
    ] = None,
    max_epochs: MaxEpochsOption = None,
    minimum: MinimumOption = None,
    maximum: MaximumOption = None,
    fixed: FixedOption = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option("--candidate", metavar="NAME=FILE", help="A mixture to compare with; repeatable."),
    ] = None,
    influence: Annotated[
        Path | None,
        typer.Option("--influence", help="influence, posterior: table of benefits, .parquet or .csv."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="influence, posterior: the reference model that counts.")
    ] = None,
    leave_one_out: Annotated[
        Path | None, typer.Option("--leave-one-out", help="posterior: leave_one_out.json, as evidence.")
    ] = None,
    pareto: Annotated[
        Path | None,
        typer.Option("--pareto", help="posterior: the front between metrics, with prices; .json to write."),
    ] = None,
    current: Annotated[
        Path | None,
        typer.Option(
            "--current", help="influence: the mixture.json to leave; posterior: where influence was measured."
        ),
    ] = None,
    step: Annotated[
        float | None, typer.Option("--step", help="influence: bounded step, .7 = at most a factor 2.")
    ] = None,
    likelihoods: Annotated[
        Path | None,
        typer.Option("--likelihoods", help="mixmin: probe texts under one model per source, or its runs."),
    ] = None,
    doremi: Annotated[Path | None, typer.Option("--doremi", help="doremi: result of a run, .json.")] = None,
    temperature: Annotated[float, typer.Option(help="temperature: exponent on the size.")] = 0.5,
    prior_strength: Annotated[float, typer.Option(help="log-linear: weight of KL to uniform.")] = 0.0,
    shrink: Annotated[float, typer.Option(help="leave-one-out: share of uniform in the result.")] = 0.5,
    epsilon: Annotated[
        float, typer.Option(help="Gaussian processes: smallest share that matters; .002 if many are 0.")
    ] = 0.02,
    seed: Annotated[int, typer.Option(help="Of resampling and search.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """A mixture, and how sure it is, from anybody's proxy runs."""
    from mixing.fit import fit_mixture
    from mixing.mixture import mixture_json, read_mixture, write_mixture

    if pareto is not None and method != "posterior":
        raise RecipeError(
            f"The front between metrics comes from a posterior, and the method is {method!r}",
            where="--pareto",
            remedy="Add --method posterior",
        )
    shared: dict[str, Any] = {
        "sources": source,
        "objective": numbers(objective, "--objective"),
        "available_tokens": tokens(available_tokens),
        "budget_tokens": count(budget_tokens, "--budget-tokens"),
        "max_epochs": max_epochs,
        "minimum": numbers(minimum, "--minimum"),
        "maximum": numbers(maximum, "--maximum"),
        "fixed": numbers(fixed, "--fixed"),
        "leave_one_out": leave_one_out,
        "influence": influence,
        "reference": reference,
        "seed": seed,
    }
    at = None if current is None else read_mixture(current).weights
    problem = None
    if pareto is not None:
        problem = _decision(ratios, metrics, shared | {"measured_at": at})
    mixture = fit_mixture(
        ratios,
        metrics,
        method,
        **shared,
        posterior=None if problem is None else problem.posterior,
        batch_tokens=count(batch_tokens, "--batch-tokens"),
        candidates=pairs(candidate, "--candidate"),
        current=at,
        step=step,
        likelihoods=likelihoods,
        doremi=doremi,
        temperature=temperature,
        prior_strength=prior_strength,
        shrink=shrink,
        epsilon=epsilon,
    )
    write_mixture(out, mixture)
    if as_json:
        print_json(mixture_json(mixture))
    else:
        _show(mixture, out)
    if problem is not None and pareto is not None:
        _front(problem, pareto, seed)


def _decision(ratios: Path | None, metrics: Path | None, options: dict[str, Any]) -> DecisionProblem:
    from mixing.posterior import decision_problem

    if ratios is None or (metrics is None and not options["sources"]):
        raise RecipeError(
            "The front between metrics needs proxy runs",
            where="--pareto",
            remedy="Give --ratios and --metrics",
        )
    return decision_problem(ratios if metrics is None else (ratios, metrics), **options)


def _front(problem: DecisionProblem, path: Path, seed: int) -> None:
    """Write the front, and say what each metric costs in the others."""
    from curation.atomic import write_json
    from mixing.posterior import pareto_front

    front = pareto_front(problem.posterior, problem.simplex, objective=problem.objective, seed=seed)
    write_json(path, front.record())
    for price in front.prices:
        say(f"  {price.sentence('unit')}.")
    say(f"  Front of {len(front.points)} mixtures written: {path}")


def _show(mixture: Mixture, out: Path) -> None:
    columns = {"source": "Source", "weight": "Weight", "interval": "90 % interval", "epochs": "Epochs"}
    rows = [
        {
            "source": name,
            "weight": round(weight, 4),
            "interval": "-"
            if mixture.intervals is None
            else f"{mixture.intervals[name][0]:.3f} to {mixture.intervals[name][1]:.3f}",
            "epochs": None if mixture.epochs is None else round(mixture.epochs[name], 2),
        }
        for name, weight in sorted(mixture.weights.items(), key=lambda item: (-item[1], item[0]))
    ]
    if mixture.epochs is None:
        del columns["epochs"]
    print_table(f"Mixture by {mixture.method}, in shares of tokens", rows, columns, cut="source")
    if mixture.evidence is not None:
        _show_evidence(mixture.evidence)
    for note in mixture.notes:
        say(f"  {note}.")
    say(f"  Written: {out}")


def _show_evidence(evidence: Evidence) -> None:
    say(f"  {evidence.verdict}.")
    for name, gain in evidence.gain_percent.items():
        chance = evidence.beats[name]
        say(
            f"  Against {name}: gain {gain.value:.2f} % [{gain.low:.2f}, {gain.high:.2f}], P(better) {chance:.2f}"
        )
    if evidence.best:
        chances = ", ".join(f"{name} {chance:.2f}" for name, chance in evidence.best.items())
        say(f"  P(best of these): {chances}")
    predicted: dict[str, Estimate] = dict(evidence.predicted)
    if evidence.objective is not None and len(predicted) > 1:
        predicted["objective"] = evidence.objective
    if predicted:
        rows: list[dict[str, Any]] = [
            {"metric": name, "loss": e.value, "interval": f"{e.low:.4g} to {e.high:.4g}"}
            for name, e in predicted.items()
        ]
        print_table(
            "Predicted loss of this mixture",
            rows,
            {"metric": "Metric", "loss": "Loss", "interval": "90 % interval"},
            cut="metric",
        )
    if evidence.runs:
        flops = "" if evidence.flops is None else f", {evidence.flops:.3g} FLOPs"
        seconds = "" if evidence.seconds is None else f", {evidence.seconds:,.0f} s of training"
        basis = f", weighed by {evidence.basis}" if evidence.basis else ""
        say(f"  From {evidence.runs} runs{flops}{seconds}{basis}.")
    for reason in evidence.reasons:
        say(f"  {reason}.")
