"""The command `fit`: a mixture, and how sure it is, from anybody's proxy runs, influence table or probe scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curation.errors import DataError, RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, print_json, print_table, say

if TYPE_CHECKING:
    from mixing.evidence import Estimate, Evidence
    from mixing.mixture import Mixture


@app.command()
def fit(
    out: Annotated[Path, typer.Option("--out", help="The mixture.json to write.")],
    method: Annotated[
        str, typer.Option("--method", help="How to find the mixture; a wrong name lists them.")
    ] = "gaussian-process",
    ratios: Annotated[
        Path | None, typer.Option("--ratios", help="ratios.csv: the mixture of each proxy run.")
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option("--metrics", help="metrics.csv: the losses of each proxy run.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="A column of shares, where one table holds all; repeatable."),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option("--objective", metavar="NAME=W", help="Weight of a metric; repeatable. All equal."),
    ] = None,
    available_tokens: Annotated[
        list[str] | None,
        typer.Option(
            "--available-tokens", metavar="FILE|NAME=N", help="Tokens of each source: JSON, or one by one."
        ),
    ] = None,
    budget_tokens: Annotated[
        str | None,
        typer.Option("--budget-tokens", help="Tokens to be trained on; 2e9 and 2_000 are numbers."),
    ] = None,
    batch_tokens: Annotated[
        str | None, typer.Option("--batch-tokens", help="Tokens of one update; the budget holds one or more.")
    ] = None,
    max_epochs: Annotated[
        float | None, typer.Option("--max-epochs", help="How often a source may be read.")
    ] = None,
    minimum: Annotated[
        list[str] | None, typer.Option("--minimum", metavar="NAME=SHARE", help="Least share; repeatable.")
    ] = None,
    maximum: Annotated[
        list[str] | None, typer.Option("--maximum", metavar="NAME=SHARE", help="Greatest share; repeatable.")
    ] = None,
    fixed: Annotated[
        list[str] | None, typer.Option("--fixed", metavar="NAME=SHARE", help="Fixed share; repeatable.")
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option("--candidate", metavar="NAME=FILE", help="A mixture to compare with; repeatable."),
    ] = None,
    influence: Annotated[
        Path | None, typer.Option("--influence", help="influence: table of benefits, .parquet or .csv.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="influence: the reference model that counts.")
    ] = None,
    current: Annotated[
        Path | None, typer.Option("--current", help="influence: the mixture.json to step away from.")
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

    mixture = fit_mixture(
        ratios,
        metrics,
        method,
        sources=source,
        objective=_numbers(objective, "--objective"),
        available_tokens=_tokens(available_tokens),
        budget_tokens=_count(budget_tokens, "--budget-tokens"),
        batch_tokens=_count(batch_tokens, "--batch-tokens"),
        max_epochs=max_epochs,
        minimum=_numbers(minimum, "--minimum"),
        maximum=_numbers(maximum, "--maximum"),
        fixed=_numbers(fixed, "--fixed"),
        candidates=_pairs(candidate, "--candidate"),
        influence=influence,
        reference=reference,
        current=None if current is None else read_mixture(current).weights,
        step=step,
        likelihoods=likelihoods,
        doremi=doremi,
        temperature=temperature,
        prior_strength=prior_strength,
        shrink=shrink,
        epsilon=epsilon,
        seed=seed,
    )
    write_mixture(out, mixture)
    if as_json:
        print_json(mixture_json(mixture))
        return
    _show(mixture, out)


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


def _pairs(texts: list[str] | None, option: str) -> dict[str, str] | None:
    if texts is None:
        return None
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or not name or not value:
            raise RecipeError(
                f"`{option} {text}` is not of the form NAME=VALUE",
                where=option,
                remedy=f"For example {option} wiki=0.2",
            )
        if name in found:
            raise RecipeError(f"{option} names {name!r} twice", where=option, remedy="Name it once")
        found[name] = value
    return found


def _numbers(texts: list[str] | None, option: str) -> dict[str, float] | None:
    pairs = _pairs(texts, option)
    return None if pairs is None else {name: _number(value, option) for name, value in pairs.items()}


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RecipeError(
            f"`{option}` was given {text!r}, which is not a number", where=option, remedy="Give a number"
        ) from error


def _count(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    value = _number(text, option)
    if not (1 <= value < 1e18):
        raise RecipeError(
            f"`{option}` was given {text}, which is not a number of tokens",
            where=option,
            remedy="Give 1 or more",
        )
    return int(value)


def _tokens(texts: list[str] | None) -> dict[str, float] | None:
    """One JSON file of {source: tokens}, or NAME=N, or both, of which the second wins."""
    if texts is None:
        return None
    found: dict[str, float] = {}
    for text in texts:
        if Path(text).suffix == ".json" and "=" not in Path(text).name:
            found |= _token_file(Path(text))
    pairs = [text for text in texts if "=" in Path(text).name]
    odd = [text for text in texts if text not in pairs and Path(text).suffix != ".json"]
    if odd:
        raise RecipeError(
            f"`--available-tokens {odd[0]}` is neither NAME=N nor a .json file",
            where="--available-tokens",
            remedy="For example --available-tokens wiki=2e9",
        )
    return found | (_numbers(pairs, "--available-tokens") or {})


def _token_file(path: Path) -> dict[str, float]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(tokens) for name, tokens in value.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"The file holds no tokens by source: {error}",
            where=str(path),
            remedy='It needs {"<source>": <tokens>, ...}',
        ) from error
