"""The stages from corpora to documents and a tokenizer."""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from curation.documents import Document, document_files, iterate_documents
from curation.local import local_files
from curation.scoring.corpus import Corpus
from curation.scoring.rows import iterate_batches
from curation.sources import SourceSpec, read_source
from curation.splits import split_of
from curation.workers import Advance, Job, run_jobs
from recipes.curation_settings import SourceSettings
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe


def source_spec(source: SourceSettings, recipe: Recipe) -> SourceSpec:
    """The curation floor's record of a source of the recipe."""
    options: dict[str, Any] = {"piece_bytes": recipe.curation.piece_bytes}
    if source.kind != "python":
        options["text_field"] = source.text_field
    if source.kind == "hub":
        options |= {"subset": source.subset, "split": source.split}
    return SourceSpec(
        name=source.name,
        kind=source.kind,
        path=source.path,
        dataset=source.dataset,
        collection=source.collection,
        capabilities=tuple(source.capabilities),
        options=options,
    )


def training_documents(run: Run, source: str) -> Iterator[Document]:
    """Documents of a source that were not set aside for the test, in the order of their file, a batch in memory."""
    return _documents_of(run, source, "train")


def training_corpus(run: Run, source: str) -> Corpus:
    """The same documents as `training_documents`, in their files: only ids and origins are read."""
    files = tuple(document_files(run.path("documents", source)))
    ids = [
        row["id"]
        for file in files
        for batch in iterate_batches(file, ("id", "url", "meta"))
        for row in batch.to_pylist()
        if _split(Document(row["id"], "", source, row["url"], json.loads(row["meta"] or "null")), run)
        == "train"
    ]
    return Corpus(source, files, pl.Series("id", ids, dtype=pl.String))


def test_documents(run: Run, source: str) -> Iterator[Document]:
    """Documents of a source that were set aside, by file of origin, before anything else."""
    return _documents_of(run, source, "test")


def _documents_of(run: Run, source: str, split: str) -> Iterator[Document]:
    found = iterate_documents(run.path("documents", source))
    return (document for document in found if _split(document, run) == split)


def _split(document: Document, run: Run) -> str:
    share = run.recipe.probes.test_share
    return split_of(document, run.recipe.seed, {"train": 1 - share, "test": share})


def _documents_settings(recipe: Recipe) -> Any:
    """Settings of the sources; local files count with their sizes and times, so that a changed file is read again."""
    files = {
        source.name: [
            (str(file), file.stat().st_size, file.stat().st_mtime_ns)
            for _, file in local_files(source.path).files
        ]
        for source in recipe.sources
        if source.path is not None
    }
    return {
        "sources": [source.model_dump(mode="json") for source in recipe.sources],
        "piece_bytes": recipe.curation.piece_bytes,
        "broken_tolerance": recipe.curation.broken_tolerance,
        "seed": recipe.seed,
        "files": files,
    }


def _read_one(argument: tuple[SourceSpec, Path, int, int, float], advance: Advance) -> int:
    spec, out, max_bytes, seed, tolerance = argument
    return read_source(spec, out, max_bytes=max_bytes, seed=seed, broken_tolerance=tolerance).kept


def _documents(run: Run) -> Spent:
    recipe = run.recipe
    jobs = [
        Job(
            source.name,
            _read_one,
            (
                source_spec(source, recipe),
                run.path("documents"),
                int(source.max_megabytes * 1e6),
                recipe.seed,
                recipe.curation.broken_tolerance,
            ),
        )
        for source in recipe.sources
        if not run.path("documents", source.name, "read.json").is_file()
    ]
    run_jobs(jobs, workers=run.workers, description="reading sources", unit="sources")
    return Spent()


def _train_tokenizer(run: Run) -> Spent:
    from training.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

    settings = run.recipe.tokenizer
    folder = run.path("tokenizer", "model")
    if settings.model is not None:
        save_tokenizer(load_tokenizer(settings.model), folder)
        return Spent()
    budget = int(settings.sample_megabytes * 1e6 / len(run.recipe.sources))
    texts: list[str] = []
    for source in run.recipe.sources:
        texts.extend(_first_bytes(training_documents(run, source.name), budget))
    train_tokenizer(texts, settings.vocabulary, folder)
    return Spent()


def _first_bytes(documents: Iterable[Document], budget: int) -> list[str]:
    """Texts of the first documents by id, as many as fit into `budget` bytes, at least one; no more are in memory."""
    chosen: list[tuple[str, str, int]] = []
    size = 0
    limit: str | None = None  # the least id that did not fit; none above it can be among the first
    for document in documents:
        if limit is not None and document.id >= limit:
            continue
        own = len(document.text.encode("utf-8"))
        bisect.insort(chosen, (document.id, document.text, own), key=lambda entry: entry[0])
        size += own
        while size > budget and len(chosen) > 1:
            limit, _, dropped = chosen.pop()
            size -= dropped
    return [text for _, text, _ in chosen]


DOCUMENTS = Stage(
    name="documents",
    folder="documents",
    needs=(),
    settings=_documents_settings,
    outputs=("*/part-*.parquet", "*/read.json"),
    work=_documents,
    about="read the sources, cut them into pieces",
    fixed_seconds=12,
)

TOKENIZER = Stage(
    name="tokenizer",
    folder="tokenizer",
    needs=("documents",),
    settings=lambda recipe: [recipe.tokenizer.model_dump(mode="json"), recipe.probes.test_share, recipe.seed],
    outputs=("model/*.json",),
    work=_train_tokenizer,
    about="learn from equal parts of every source",
    fixed_seconds=8,
)
