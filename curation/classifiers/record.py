"""`classifier.json`, which makes a folder a classifier of one's own: what it was made from, and how good it is."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from curation.atomic import hash_file, read_json, write_json
from curation.classifiers.annotated import Annotated, Split, table_facts
from curation.classifiers.evaluation import best_threshold, held_out_report
from curation.classifiers.leakage import leaked
from curation.errors import DataError

FILE = "classifier.json"
VERSION = 1


def write_record(
    folder: Path,
    *,
    kind: str,
    examples: Sequence[Annotated],
    split: Split,
    positive_from: float,
    settings: Any,
    scores: tuple[np.ndarray, np.ndarray],
    probabilities: np.ndarray | None,
    packages: Sequence[str],
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure on the held-out part, write `classifier.json` into `folder` and return it.

    scores        : of the validation and of the held-out part, in their order
    probabilities : P(positive) of the held-out part, for classifiers that say it
    """
    validation, held_out = scores
    truth = np.array([e.label for e in split.validation]) >= positive_from
    labels = np.array([e.label for e in split.held_out])
    threshold = best_threshold(validation, truth)
    facts: dict[str, Any] = {"positive_from": positive_from, "threshold": threshold, "seed": settings.seed}
    report = held_out_report(held_out, labels, probabilities=probabilities, **facts)
    near = leaked([e.text for e in split.train], [e.text for e in split.held_out])
    rest = np.setdiff1d(np.arange(len(labels)), near)
    leakage: dict[str, Any] = {"near_equal_to_training_texts": len(near)}
    if near and len(rest):
        clean = held_out_report(held_out[rest], labels[rest], **facts)
        leakage["f1_without_them"] = clean["best_threshold"]["f1"]
    record = {
        "mixwright_classifier": VERSION,
        "kind": kind,
        "table": table_facts(examples),
        "split": {name: len(part) for name, part in asdict_split(split).items()},
        "positive_from": positive_from,
        "threshold": round(threshold, 6),
        "settings": asdict(settings),
        "files": {p.name: hash_file(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != FILE},
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "held_out": report | {"leakage": leakage},
        **(extra or {}),
    }
    write_json(folder / FILE, record)
    return record


def asdict_split(split: Split) -> dict[str, list[Annotated]]:
    """The parts of a split by name."""
    return {"train": split.train, "validation": split.validation, "held_out": split.held_out}


def read_classifier(folder: Path | str) -> dict[str, Any]:
    """The record of a classifier's folder; DataError when it is none or a file of it is missing or damaged."""
    path = Path(folder) / FILE
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            "This is no folder of a classifier that mixwright trained",
            where=str(folder),
            remedy="Name a folder that `mixwright classifier train` made",
        ) from error
    if not isinstance(record, dict) or record.get("mixwright_classifier") != VERSION:
        raise DataError(f"This {FILE} is of another version", where=str(path), remedy="Train it again")
    for name, digest in record["files"].items():
        file = path.parent / Path(name).name
        if not file.is_file() or hash_file(file) != digest:
            raise DataError(
                "The classifier's file is missing or has changed since it was trained",
                where=str(file),
                remedy="Train it again, or copy the whole folder again",
            )
    return record
