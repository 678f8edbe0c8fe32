"""Commands about measuring a model: eval, eval-compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from curation.errors import RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, print_json, print_table, say


@app.command("eval")
def eval_(
    model: Annotated[Path, typer.Argument(help="A Hugging Face model folder with its tokenizer.")],
    tasks: Annotated[
        list[str],
        typer.Option("--tasks", help="A task's name, or a task file (.yaml); repeatable, or commas."),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME=FILE", help="Rows of a task, .jsonl or .parquet; repeatable."),
    ] = None,
    shots: Annotated[
        list[str] | None,
        typer.Option("--shots", metavar="NAME=FILE", help="Few-shot examples of a task; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for results; by default evaluation/MODEL-HASH.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of each task, drawn by the seed.")
    ] = None,
    seed: int = 0,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens fed at once; the model's by default.")
    ] = None,
    bos: Annotated[bool, typer.Option(help="Begin every prompt with the bos token.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Score a model on tasks; finished tasks are not repeated."""
    from curation.atomic import hash_folder
    from probes.evaluate import evaluate

    if out is None and model.is_dir():
        out = Path("evaluation") / f"{model.resolve().name}-{hash_folder(model)[:8]}"
    names = [name for entry in tasks for name in entry.split(",") if name]
    results = evaluate(
        model,
        names,
        data=_pairs("--data", data),
        shots=_pairs("--shots", shots),
        out=out,
        limit=limit,
        seed=seed,
        context=context,
        bos=bos,
    )
    if as_json:
        print_json({"out": str(out), "tasks": {name: result.described for name, result in results.items()}})
        return
    rows = [
        {
            "task": name,
            "form": form,
            "metric": metric,
            "value": _interval(metrics[metric]),
            "chance": metrics["chance"]["value"] if "chance" in metrics else None,
            "items": result.described["counts"][form]["items"],
        }
        for name, result in results.items()
        for form, metrics in result.metrics.items()
        for metric in headlines(form, metrics, result.described["normalization"])
    ]
    columns = {"task": "Task", "form": "Form", "metric": "Metric", "value": "Value [95 %]"}
    print_table("Evaluation", rows, columns | {"chance": "Chance", "items": "Items"})
    for name, result in results.items():
        for form, counts in result.described["counts"].items():
            if counts["items_with_dropped_context"]:
                say(
                    f"  {name}, {form}: {counts['items_with_dropped_context']} prompts were longer than the "
                    "context and lost tokens on the left."
                )
            ties = max((int(m.get("ties", 0)) for m in result.metrics[form].values()), default=0)
            if ties:
                say(f"  {name}, {form}: up to {ties} questions were tied; the first of equal choices counts.")
    say(f"  Every question, and all metrics: {out}")


@app.command("eval-compare")
def eval_compare(
    a: Annotated[Path, typer.Argument(help="The --out folder of one evaluation.")],
    b: Annotated[Path, typer.Argument(help="The --out folder of another.")],
    seed: int = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare two evaluations question by question, with intervals."""
    from dataclasses import asdict

    from probes.result_comparison import compare_results

    differences = compare_results(a, b, seed=seed)
    rows: list[dict[str, Any]] = [asdict(difference) for difference in differences]
    if as_json:
        print_json({"a": str(a), "b": str(b), "differences": rows})
        return
    for row in rows:
        row["interval"] = f"[{row['low']:+.4f}, {row['high']:+.4f}]"
    print_table(
        "A minus B on the same questions (95 % of a bootstrap over questions)",
        rows,
        {
            "task": "Task", "form": "Form", "metric": "Metric", "a": "A", "b": "B",
            "difference": "Diff.", "interval": "Interval", "items": "Items",
        },
    )  # fmt: skip


def headlines(form: str, metrics: dict[str, Any], normalization: str | None) -> list[str]:
    """The metrics that a table of few lines shows; letters are of equal length, so they are not normalised."""
    if "bits_per_byte" in metrics:
        return ["bits_per_byte"]
    return [f"accuracy_{'none' if form == 'letters' else normalization}", "norm_correct_prob"]


def _interval(metric: dict[str, float]) -> str:
    return f"{metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]"


def _pairs(option: str, given: list[str] | None) -> dict[str, Path]:
    pairs = {}
    for text in given or []:
        name, equals, file = text.partition("=")
        if not equals or not name or not file:
            raise RecipeError(
                f"`{option} {text}` is not of the form NAME=FILE",
                remedy=f"For example {option} arc_easy=arc.jsonl",
            )
        pairs[name] = Path(file)
    return pairs
