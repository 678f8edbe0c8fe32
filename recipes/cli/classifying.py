"""Commands about scores of one's own: classifier train, classifier report, score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from curation.errors import DataError, RecipeError
from recipes.cli import app
from recipes.cli.curating import FilesArgument
from recipes.cli.output import JsonOption, console, print_json, print_table

if TYPE_CHECKING:
    from curation.classifiers import Annotated as AnnotatedText
    from curation.documents import Document
    from curation.scorer import Scorer

classifier = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train a quality classifier of your own, and see how good it is.",
)
app.add_typer(classifier, name="classifier")


@classifier.command()
def train(
    table: Annotated[
        list[Path], typer.Argument(help="Annotated texts: .jsonl, .jsonl.gz, .jsonl.zst, .parquet.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    kind: Annotated[
        Literal["fasttext", "regression"],
        typer.Option(help="fasttext: bags of words; regression: a head on a frozen encoder."),
    ] = "fasttext",
    encoder: Annotated[
        str | None, typer.Option(help="For regression: folder or hub id of a transformers encoder.")
    ] = None,
    label_column: Annotated[str, typer.Option(help="Column of the labels: 0 and 1, or grades.")] = "label",
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    scores: Annotated[
        Path | None,
        typer.Option(help="Distil a judge: labels are `p1_calibrated` of this score table instead."),
    ] = None,
    positive_from: Annotated[
        float | None, typer.Option(help="Label from which a text is good; 0.5, or 3 for grades.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the table.")] = None,
    word_ngrams: Annotated[int, typer.Option(min=1, max=5, help="For fasttext: runs of words seen.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the split and the training.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier from an annotated table; ends with its report on held-out texts."""
    from curation.classifiers import FastTextSettings, RegressionSettings, train_fasttext, train_regression

    if (encoder is None) == (kind == "regression"):
        what = "A regression head needs an encoder" if encoder is None else "fastText takes no encoder"
        raise RecipeError(
            what, where="--encoder", remedy="Give --kind regression and --encoder FOLDER together"
        )
    examples = _annotated(table, text_column, label_column, scores)
    if kind == "fasttext":
        settings = FastTextSettings(epochs=epochs or 5, word_ngrams=word_ngrams, seed=seed)
        record = train_fasttext(examples, out, settings, positive_from=positive_from)
    else:
        head = RegressionSettings(epochs=epochs or 20, seed=seed)
        record = train_regression(examples, str(encoder), out, head, positive_from=positive_from)
    _show(record, out, as_json)


@classifier.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `classifier train` made.")],
    as_json: JsonOption = False,
) -> None:
    """Show how good a classifier is on the texts that were held out."""
    from curation.classifiers import read_classifier

    _show(read_classifier(folder), folder, as_json)


@app.command()
def score(
    files: FilesArgument,
    out: Annotated[Path, typer.Option("--out", help="Score table to write (.parquet or .jsonl).")],
    model: Annotated[
        str | None, typer.Option("--model", help="A classifier: its folder, or a hub id.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option("--judge", help="A judge for Ask-LLM: its folder, a hub id, or a server's URL."),
    ] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", help="For a judge: reasoning-v1 and others, or a file.")
    ] = "reasoning-v1",
    server_model: Annotated[
        str | None, typer.Option(help="For a server: the judge's name there. Texts are sent to it.")
    ] = None,
    api: Annotated[Literal["completions", "chat"], typer.Option(help="For a server.")] = "completions",
    key_variable: Annotated[
        str | None, typer.Option(help="For a server: environment variable with its API key.")
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="A fastText model of languages, such as lid.176.bin.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    as_json: JsonOption = False,
) -> None:
    """Score any files with a classifier, a judge or a language model; nothing is dropped."""
    from curation.score_tables import score_source

    if out.suffix not in (".parquet", ".jsonl"):
        raise RecipeError("Score tables are .parquet or .jsonl", where=str(out), remedy="Change --out")
    if sum(choice is not None for choice in (model, judge, language)) != 1:
        raise RecipeError("Nothing says who scores", remedy="Give one of --model, --judge and --language")
    if model is not None:
        from curation.classifiers import open_classifier

        scorer = open_classifier(model)
    elif judge is not None:
        scorer = _judge(judge, prompt, server_model, api, key_variable)
    else:
        from curation.classifiers import LanguageScorer

        scorer = LanguageScorer(str(language))
    documents = _distinct(_read(files, text_column))
    # Ids of the user's files stay when a text is edited, and its old score must not be found under them.
    keyed = [replace(d, id=_key(d)) for d in documents]
    scored = score_source(keyed, scorer, out.with_name(f".{out.name}.scores"))
    table = _for_documents(scored, documents)
    _write(table, documents, out)
    _summary(table, out, as_json)


def _judge(
    judge: str, prompt: str, server_model: str | None, api: Literal["completions", "chat"], key: str | None
) -> Scorer:
    from curation.judge_prompt import load_prompt

    if judge.startswith(("http://", "https://")):
        from curation.judge_server import ServerJudge

        if server_model is None:
            raise RecipeError("A server offers models by name", remedy="Give the judge's with --server-model")
        return ServerJudge(judge, server_model, load_prompt(prompt), api=api, key_variable=key)
    from curation.ask_llm import AskLLM

    return AskLLM(judge, load_prompt(prompt))


def _annotated(
    files: list[Path], text_column: str, label_column: str, scores: Path | None
) -> list[AnnotatedText]:
    from curation.classifiers import distilled, read_annotated

    if scores is None:
        return read_annotated(files, text_column=text_column, label_column=label_column)
    import polars as pl

    try:
        table = pl.read_parquet(scores) if scores.suffix == ".parquet" else pl.read_ndjson(scores)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RecipeError(
            f"The score table cannot be read: {str(error).splitlines()[0]}",
            where=str(scores),
            remedy="Give what `mixwright score` wrote",
        ) from error
    column = "p1_calibrated" if label_column == "label" else label_column
    return distilled(_distinct(_read(files, text_column)), table, column)


def _read(files: list[Path], text_column: str) -> list[Document]:
    from curation.readers import read_file
    from curation.records import ReadCounts

    documents: list[Document] = []
    for file in files:
        counts = ReadCounts()
        documents += counts.documents(read_file(file, text_field=text_column))
        counts.check(str(file), 0.01, option="--text-column")
    return documents


def _distinct(documents: list[Document]) -> list[Document]:
    """Each id and text once: what is there twice has one score."""
    found = {(d.id, d.text): d for d in documents}
    return list(found.values())


def _key(document: Document) -> str:
    """The id and what stands for the text, where the id does not follow from the text."""
    from curation.documents import document_id
    from curation.scoring.parts import text_hash

    if document.id == document_id(document.source, document.text):
        return document.id
    return f"{document.id} (text {text_hash(document.text)[:16]})"


def _for_documents(scored: Any, documents: list[Document]) -> Any:
    """Rows by key as rows by id, sorted; DataError for an id of two texts."""
    import polars as pl

    keys = pl.DataFrame({"id": [d.id for d in documents], "key": [_key(d) for d in documents]})
    if keys["id"].n_unique() != keys.height:
        twice = keys.filter(pl.col("id").is_duplicated())["id"].sort()[0]
        raise DataError(f"Two documents have the id {twice}", remedy="Give each document its own id")
    return keys.join(scored.rename({"id": "key"}), on="key", how="left").drop("key").sort("id")


def _write(table: Any, documents: list[Document], out: Path) -> None:
    import polars as pl

    from curation.atomic import replacing

    sources = pl.DataFrame({"id": [d.id for d in documents], "source": [d.source for d in documents]})
    named = table.join(sources, on="id", how="left").select("id", "source", pl.exclude("id", "source"))
    with replacing(out) as temporary:
        if out.suffix == ".parquet":
            named.write_parquet(temporary, compression="zstd")
        else:
            named.write_ndjson(temporary)


def _summary(table: Any, out: Path, as_json: bool) -> None:
    import polars as pl

    rows: list[dict[str, Any]] = []
    counts: dict[str, Any] = {}
    for name in table.columns[1:]:
        column = table[name]
        if column.dtype == pl.Boolean:
            counts[name] = int(column.sum())
        elif column.dtype == pl.String:
            counts[name] = dict(column.value_counts(sort=True).head(10).rows())
        else:
            marks = {f"p{q}": column.quantile(q / 100, "linear") for q in (10, 50, 90)}
            rows.append({"column": name, "lowest": column.min(), **marks, "highest": column.max()})
    if as_json:
        print_json({"documents": table.height, "table": str(out), "columns": rows, "counts": counts})
        return
    headings = {"column": "Score", "lowest": "Lowest", "p10": "10 %", "p50": "Median", "p90": "90 %"}
    print_table(f"{table.height:,} documents scored, into {out}", rows, headings | {"highest": "Highest"})
    for name, count in counts.items():
        text = ", ".join(f"{k} {v:,}" for k, v in count.items()) if isinstance(count, dict) else f"{count:,}"
        _result(f"  {name}: {text}")


def _show(record: dict[str, Any], folder: Path, as_json: bool) -> None:
    if as_json:
        print_json(record)
        return
    held = record["held_out"]
    best, macro, calibration = held["best_threshold"], held["macro_f1"], held["calibration"]
    rows = [
        {key: row[key] for key in ("threshold", "kept", "precision", "recall", "f1")}
        for row in held["thresholds"]
    ]
    title = f"{folder}: {record['kind']}, {held['texts']} held-out texts, {held['positives']} good"
    headings = {"threshold": "Threshold", "kept": "Kept", "precision": "Precision", "recall": "Recall"}
    print_table(title, rows, headings | {"f1": "F1"})
    square = "brier" if "brier" in calibration else "mean_squared_error"
    _result(f"  best threshold {best['threshold']:.4g} (chosen on the validation texts):")
    _result(f"    F1 {_range(best['f1'])}, precision {_range(best['precision'])},")
    _result(f"    recall {_range(best['recall'])}")
    auc = "-" if held["auc"] is None else f"{held['auc']:.3f}"
    _result(f"  macro F1 of {macro['classes']} classes {_range(macro)}; area under the curve {auc}")
    _result(f"  calibration of the {calibration['of']}: error {_range(calibration['ece'])},")
    _result(f"    {square.replace('_', ' ')} {_range(calibration[square])}")
    near = held["leakage"]["near_equal_to_training_texts"]
    _result(f"  {near} held-out texts nearly equal a training text" + _without(held["leakage"]))
    _result("  Brackets are 95 % intervals. The folder can be a recipe's")
    _result("  `curation.educational.model`.")


def _result(line: str) -> None:
    """A line of the result, which is printed when quiet, too."""
    console.print(line, markup=False, soft_wrap=True)


def _without(leakage: dict[str, Any]) -> str:
    clean = leakage.get("f1_without_them")
    return f"; F1 without them {_range(clean)}" if clean else ""


def _range(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
