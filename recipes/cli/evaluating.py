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
            "metric": _words(metric),
            "value": _interval(metrics[metric]),
            "chance": metrics["chance"]["value"] if "chance" in metrics else None,
            "items": result.described["counts"][form]["items"],
        }
        for name, result in results.items()
        for form, metrics in result.metrics.items()
        for metric in result.headlines(form)
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
    shown = [
        {
            "task": f"{row['task']}, {row['form']}",
            "metric": _words(row["metric"]),
            "a": f"{row['a']:.3f}",
            "b": f"{row['b']:.3f}",
            "difference": f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
        }
        for row in rows
        if row["headline"]
    ]
    columns = {"task": "Task", "metric": "Metric", "a": "A", "b": "B", "difference": "A - B [95 %]"}
    print_table("On the same questions; intervals resample questions", shown, columns)
    say("  --json has the other metrics.")


def _interval(metric: dict[str, float]) -> str:
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def _words(metric: str) -> str:
    """A metric's name, short enough for a table of 80 columns."""
    kind, _, normalization = metric.partition("accuracy_")
    if normalization:
        return "acc" if normalization == "none" else f"acc {normalization}"
    return {"norm_correct_prob": "P(gold)"}.get(kind, kind.replace("_", " "))


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
