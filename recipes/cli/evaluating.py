"""Commands about what a model answers: eval, eval-compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curation.errors import RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, print_json, print_table, say

if TYPE_CHECKING:
    from probes.task_results import TaskResult

DIAGNOSED, DIAGNOSED_TOKENS = 64, 1024  # documents, and tokens of each


@app.command("eval")
def eval_(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="A model folder with its tokenizer, a checkpoint, or a folder of checkpoints (a run); or several.",
        ),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", help="A task's name, or a task file (.yaml); repeatable, or commas."),
    ] = None,
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
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            help="Training text to look for the questions in: a run, token shards, or a file; repeatable.",
        ),
    ] = None,
    diagnostics: Annotated[
        Path | None,
        typer.Option("--diagnostics", metavar="FILE", help="Documents to measure norms and attention on."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of each task, drawn by the seed.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Answers to each question of generation tasks.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest answer of generation tasks; larger budgets are left out."),
    ] = None,
    seed: int = 0,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens fed at once; the model's by default.")
    ] = None,
    bos: Annotated[bool, typer.Option(help="Begin every prompt with the bos token.")] = True,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer, where a checkpoint's run has none.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of matrix products: float32 or bfloat16.")] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Score a model, or every checkpoint of a run, on tasks; finished tasks are not repeated."""
    from curation.atomic import hash_folder
    from probes.checkpoint_series import evaluate_series, models_in, tokenizer_beside
    from probes.evaluate import evaluate

    names = [name for entry in tasks or () for name in entry.split(",") if name]
    if not names and diagnostics is None:
        raise RecipeError(
            "There is nothing to do", where="eval", remedy="Give --tasks, or --diagnostics FILE"
        )
    settings: dict[str, Any] = {
        "data": _pairs("--data", data), "shots": _pairs("--shots", shots), "limit": limit, "seed": seed,
        "context": context, "bos": bos, "device": device, "precision": precision, "against": against or (),
        "samples": samples, "max_tokens": max_tokens,
    }  # fmt: skip
    found = models_in(models)
    if out is None:
        first = models[0].resolve().name
        out = Path("evaluation") / (
            first if len(found) > 1 else f"{first}-{hash_folder(found[0].folder)[:8]}"
        )
    beside = {} if tokenizer else {model.name: tokenizer_beside(model) for model in found}
    for folder in sorted({str(place) for place in beside.values() if place is not None}):
        taken = ", ".join(name for name, place in beside.items() if str(place) == folder)
        say(f"  No tokenizer in {taken}: that of {folder} is taken. --tokenizer names another.")
    places = {found[0].name: out} if len(found) == 1 else {model.name: out / model.name for model in found}
    every: dict[str, dict[str, TaskResult]] = {}
    if names and len(found) == 1:
        own = tokenizer or tokenizer_beside(found[0])
        every = {found[0].name: evaluate(found[0].folder, names, out=out, tokenizer=own, **settings)}
    elif names:
        every = evaluate_series(found, names, out, tokenizer=tokenizer, **settings)
    inside = {}
    if diagnostics is not None:
        for model in found:
            own = tokenizer or tokenizer_beside(model)
            inside[model.name] = _diagnosed(
                model.folder, diagnostics, places[model.name], own, device, context
            )
    if as_json:
        told = {name: {task: r.described for task, r in results.items()} for name, results in every.items()}
        if len(found) == 1:
            split = {t: r.contamination for t, r in every.get(found[0].name, {}).items() if r.contamination}
            only = {"out": str(out), "tasks": told.get(found[0].name, {})}
            print_json(
                only
                | ({"contamination": split} if split else {})
                | ({"diagnostics": inside[found[0].name]} if inside else {})
            )
        else:
            print_json({"out": str(out), "models": told} | ({"diagnostics": inside} if inside else {}))
        return
    for name, results in every.items():
        _show_scores(results, name if len(every) > 1 else "")
    for name, described in inside.items():
        _show_diagnostics(described, name if len(inside) > 1 else "")
    say(f"  Every question, and all metrics: {out}")
    if len(every) > 1:
        say(
            f"  The table of all models: {out / 'trajectory.csv'}; "
            f"a page: mixwright eval-compare {out} --html FILE"
        )


def _show_scores(results: dict[str, TaskResult], name: str) -> None:
    rows = [
        {
            # One column for both, so that the intervals keep to one line of 80 characters.
            "task": f"{task}, {form}" if form in ("cloze", "letters") else task,
            "metric": _words(metric),
            "value": _interval(metrics[metric]),
            "chance": round(metrics["chance"]["value"], 3) if "chance" in metrics else None,
            "items": result.described["counts"][form]["items"],
        }
        for task, result in results.items()
        for form, metrics in result.metrics.items()
        for metric in result.headlines(form)
    ]
    columns = {"task": "Task", "metric": "Metric", "value": "Value [95 %]", "chance": "Chance"}
    print_table(f"Evaluation{': ' if name else ''}{name}", rows, columns | {"items": "Items"})
    for task, result in results.items():
        for form, counts in result.described["counts"].items():
            if counts["items_with_dropped_context"]:
                label = f"{task}, {form}" if form in ("cloze", "letters") else task
                say(
                    f"  {label}: prompts longer than the context, which lost tokens on their left: "
                    f"{counts['items_with_dropped_context']}."
                )
            ties = max((int(m.get("ties", 0)) for m in result.metrics[form].values()), default=0)
            if ties:
                say(f"  {task}, {form}: up to {ties} questions were tied; the first of equal choices counts.")
    _show_contamination(results)


def _show_contamination(results: dict[str, TaskResult]) -> None:
    rows = []
    for task, result in results.items():
        for form in result.metrics if result.contamination else ():
            split = result.contamination["scores"][form]  # type: ignore[index]
            metric = next((name for name in result.headlines(form) if name in split), None)
            if metric is not None:
                sides = {side: _side(split[metric][side]) for side in ("clean", "dirty", "too_short")}
                rows.append({"task": f"{task}, {_words(metric)}"} | sides)
    if rows:
        columns = {"task": "Task", "clean": "Clean [95 %] (questions)"}
        columns |= {"dirty": "In the training text", "too_short": "Too short"}
        print_table("Scores by what the training text holds of a question", rows, columns)


def _side(found: dict[str, float] | None) -> str:
    if found is None:
        return "none"
    between = f" [{found['low']:.2f}, {found['high']:.2f}]" if "low" in found else ""
    return f"{found['value']:.2f}{between} ({found['questions']:.0f})"


def _diagnosed(
    model: Path, file: Path, out: Path, tokenizer: Path | None, device: str, context: int | None
) -> dict[str, Any]:
    """Diagnostics of a model on the documents of a file, written to OUT/diagnostics.json."""
    from curation.atomic import write_json
    from curation.readers import read_files
    from probes.diagnostics import diagnose
    from probes.likelihood import tokenize_documents
    from probes.side_by_side import DIAGNOSTICS
    from probes.task_scoring import Loaded

    loaded = Loaded.of(model, context=context, tokenizer_folder=tokenizer, device=device)
    documents, _ = read_files([file])
    texts = [document.ids for document in tokenize_documents(documents[:DIAGNOSED], loaded.tokenizer)]
    described = diagnose(loaded.model, texts, context=min(loaded.context, DIAGNOSED_TOKENS)).described()
    write_json(out / DIAGNOSTICS, described)
    return described


def _show_diagnostics(described: dict[str, Any], name: str) -> None:
    rows = [
        {
            "layer": row["layer"],
            "rms": row["residual_rms"],
            "largest": row["largest"],
            "entropy": f"{row['entropy']:.2f}",
            "sink": f"{row['sink']:.2f}",
            "dead": f"{100 * row['dead_channels']:.1f} %",
            "huge": row["huge_channels"],
        }
        for row in described["layers"]
    ]
    columns = {"layer": "Layer", "rms": "Residual RMS", "largest": "Largest", "entropy": "Attention entropy"}
    columns |= {"sink": "On the first token", "dead": "Dead channels", "huge": "Huge"}
    print_table(f"Inside the model{': ' if name else ''}{name}", rows, columns)
    say(f"  Logits: root mean square {described['logit_rms']:.3g}, largest {described['largest_logit']:.3g}.")


@app.command("eval-compare")
def eval_compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="The --out folders of evaluations; two or more, or one series."
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="The folder that the others are compared with; the first by default.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page for the browser to this file.")] = None,
    seed: int = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare evaluations question by question, with intervals; optionally as a page."""
    from dataclasses import asdict

    from probes.side_by_side import compare_many

    found = compare_many(folders, baseline=baseline, seed=seed)
    if html is not None:
        from mixing.report.comparison import write_comparison

        write_comparison(found, html)
        say(f"  Written: {html}")
    elif len(found.contenders) < 2:
        raise RecipeError(
            "One evaluation has nothing to be compared with", remedy="Name another, or give --html"
        )
    others = {name: [asdict(d) for d in differences] for name, differences in found.differences.items()}
    if as_json:
        print_json({"baseline": found.baseline, "differences": others})
        return
    for name, rows in others.items():
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
        print_table(f"A: {name}, B: {found.baseline}; on the same questions", shown, columns)
    if others:
        say("  Intervals resample questions. --json has the other metrics, --html a page.")


def _interval(metric: dict[str, float]) -> str:
    between = f" [{metric['low']:.3f}, {metric['high']:.3f}]" if "low" in metric else ""
    return f"{metric['value']:.3f}{between}"


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
