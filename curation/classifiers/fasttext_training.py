"""A fastText classifier from annotated texts, with the same bytes for the same table, settings and version.

fastText with one thread initialises only the first tenth of its word vectors (`DenseMatrix::uniform` gives each of
ten blocks to a thread) and leaves the rest as the memory was found: a fresh process finds zeros, a busy one
anything, and training then differs from call to call or ends in "Encountered NaN". So the allocator is told to
hand out zeros while it trains, which is what the results of fresh processes are (`mallopt(M_PERTURB)` of glibc;
elsewhere a training that meets NaN says so).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.atomic import replacing_folder
from curation.classifiers.annotated import Annotated, positive_label, split_annotated
from curation.classifiers.fasttext_model import MODEL, PREFIX, FastTextClassifier, one_line
from curation.classifiers.record import FILE, write_record
from curation.errors import MachineError

MOST_GRADES = 11
BINS = 5
_M_PERTURB = -6


@dataclass(frozen=True)
class FastTextSettings:
    """Of fastText's supervised training; always with one thread, since more are not reproducible.

    word_ngrams : 2 sees word pairs, with a model of `bucket` x `dim` x 4 bytes more
    """

    dim: int = 100
    epochs: int = 5
    learning_rate: float = 0.5
    word_ngrams: int = 1
    bucket: int = 200_000
    minimum_count: int = 1
    seed: int = 0


DEFAULTS = FastTextSettings()


def train_fasttext(
    examples: Sequence[Annotated],
    out: Path | str,
    settings: FastTextSettings = DEFAULTS,
    *,
    positive_from: float | None = None,
) -> dict[str, Any]:
    """Train on annotated texts, write the folder `out` and return its record (`classifier.json`).

    Labels that are up to 11 whole numbers, or 0 and 1, are classes of their own; others, such as a judge's
    probabilities, fall into five classes of equal width, each worth the mean label of its training texts.
    Raises DataError for tables that are too small or have labels on one side only.
    """
    split = split_annotated(examples, settings.seed)
    positive_from = positive_label(examples, positive_from)
    classes, values = _classes([e.label for e in split.train], positive_from)
    with replacing_folder(out) as folder:
        lines = folder / "train.txt"
        with lines.open("w", encoding="utf-8") as file:
            for example, name in zip(split.train, classes, strict=True):
                file.write(f"{PREFIX}{name} {one_line(example.text)}\n")
        _train(lines, folder / MODEL, settings)
        lines.unlink()
        _write_values(folder, values, positive_from, [e.label for e in examples])
        scorer = FastTextClassifier(str(folder))
        scores = [scorer.grades([e.text for e in part]) for part in (split.validation, split.held_out)]
        (folder / FILE).unlink()
        # Where the labels are probabilities, P(positive) is judged and the expected label decides.
        return write_record(
            folder,
            kind="fasttext",
            examples=examples,
            split=split,
            positive_from=positive_from,
            settings=settings,
            scores=(scores[0][1], scores[1][1]),
            probabilities=scores[1][0],
            packages=("fasttext-numpy2-wheel", "numpy"),
            extra={"values": values},
        )


def _write_values(folder: Path, values: dict[str, float], positive_from: float, labels: list[float]) -> None:
    """A record just good enough for scoring the validation and held-out parts; the full one follows."""
    from curation.atomic import hash_file, write_json

    mean = float(np.mean(labels))
    record = {"mixwright_classifier": 1, "values": values, "positive_from": positive_from}
    files = {MODEL: hash_file(folder / MODEL)}
    write_json(folder / FILE, record | {"files": files, "table": {"mean_label": mean}})


def _classes(labels: list[float], positive_from: float) -> tuple[list[str], dict[str, float]]:
    """The class of each label by name, and the value of each class."""
    distinct = sorted(set(labels))
    if len(distinct) <= MOST_GRADES and all(label == round(label) for label in distinct):
        return [f"{label:g}" for label in labels], {f"{label:g}": label for label in distinct}
    low, high = distinct[0], distinct[-1]
    places = [min(BINS - 1, int((label - low) / (high - low) * BINS)) for label in labels]
    values = {
        f"bin{p}": float(np.mean([label for label, place in zip(labels, places, strict=True) if place == p]))
        for p in sorted(set(places))
    }
    return [f"bin{place}" for place in places], values


def _train(lines: Path, model_file: Path, settings: FastTextSettings) -> None:
    import fasttext

    try:
        with _zeroed_memory():
            model = fasttext.train_supervised(
                str(lines),
                dim=settings.dim,
                epoch=settings.epochs,
                lr=settings.learning_rate,
                wordNgrams=settings.word_ngrams,
                bucket=settings.bucket,
                minCount=settings.minimum_count,
                thread=1,
                seed=settings.seed,
                label=PREFIX,
                verbose=0,
            )
    except RuntimeError as error:
        raise MachineError(
            f"fastText gives up: {error}",
            where=str(model_file.parent),
            remedy="Train again in a fresh process, or with a smaller learning rate",
        ) from error
    model.save_model(str(model_file))


@contextmanager
def _zeroed_memory() -> Iterator[None]:
    """Inside the block, memory from glibc's allocator is zeros; a no-op where there is another allocator."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        yield
        return
    mallopt(_M_PERTURB, 0xFF)  # memory is filled with the complement of this byte
    try:
        yield
    finally:
        mallopt(_M_PERTURB, 0)
