"""fastText models: read, asked in lists, with texts that cannot break a line and probabilities that are ones.

fastText reads one line per text, ends a text at the word `</s>` and takes words that begin with `__label__` for
labels, so these three are taken out of documents. The probabilities that it prints are p + 1e-5 (its logarithm
is log(p + 1e-5)), which is why they reach 1.00001; the 1e-5 is taken off again.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from curation.classifiers.record import read_classifier
from curation.documents import Document
from curation.errors import DataError
from curation.score_tables import model_fingerprint

PREFIX = "__label__"
MODEL = "model.bin"
_MAGIC = 793712314
_OFFSET = 1e-5


def one_line(text: str) -> str:
    """`text` as fastText may read it: no line break, no end of text, no label."""
    text = text.replace("\n", " ")
    if "</s>" in text:
        text = text.replace("</s>", "< /s>")
    if PREFIX in text:
        text = text.replace(PREFIX, "_ _label__")
    return text


def predict(model: Any, texts: Sequence[str], labels: int = -1) -> list[tuple[list[str], np.ndarray]]:
    """The `labels` most probable labels (all with -1) of each text, without prefix, with probabilities in [0, 1]."""
    lines = [one_line(text) + "\n" for text in texts]
    names, probabilities = model.f.multilinePredict(lines, labels, 0.0, "strict")
    return [
        ([name.removeprefix(PREFIX) for name in row], np.clip(np.asarray(p) - _OFFSET, 0.0, 1.0))
        for row, p in zip(names, probabilities, strict=True)
    ]


def load_fasttext(file: Path | str) -> Any:
    """A supervised fastText model; DataError when the file is none. Read again only when the file has changed."""
    path = Path(file)
    try:
        status = path.stat()
        with path.open("rb") as handle:
            head = handle.read(8)
    except OSError as error:
        raise DataError(
            f"The fastText model cannot be read: {error.strerror}", where=str(path), remedy="Check the path"
        ) from error
    if len(head) < 8 or struct.unpack("<ii", head)[0] != _MAGIC:
        raise DataError(
            "This is not a fastText model",
            where=str(path),
            remedy="Give a .bin or .ftz file such as lid.176.bin (not .vec, not compressed)",
        )
    return _load(str(path), (status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=2)
def _load(file: str, stamp: tuple[int, int]) -> Any:
    import fasttext
    from fasttext.FastText import _FastText

    try:
        model = _FastText(model_path=file)
        if str(model.f.getArgs().model).rsplit(".", 1)[-1] != "supervised":
            raise ValueError("it has word vectors and no labels")
    except (ValueError, RuntimeError, MemoryError) as error:
        raise DataError(
            f"The fastText model cannot be loaded: {error}",
            where=file,
            remedy="Copy the file again; it may have been cut short",
        ) from error
    assert fasttext
    return model


@dataclass(frozen=True)
class FastTextClassifier:
    """The scorer (see scorer.Scorer) of a fastText classifier that `train_fasttext` made.

    Column `educational_score`, so that the rules of the educational cut apply: P(positive) of a classifier of
    two labels, the expected grade of one of several.
    """

    model: str
    name: str = "educational"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("educational_score",)

    def fingerprint(self) -> dict[str, Any]:
        """The folder's hash, classifier and record."""
        return {"model": model_fingerprint(self.model)}

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        """Float32 [n]."""
        _, expected = self.grades([document.text for document in documents])
        return {"educational_score": expected.astype(np.float32)}

    def grades(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """P(positive) and the expected label, float64 [n] each; a text without a known word gets the mean label."""
        values, positive_from, mean = _grades_of(self.model, str(model_fingerprint(self.model)))
        model = load_fasttext(Path(self.model) / MODEL)
        lines = [one_line(text) + "\n" for text in texts]
        names, found = model.f.multilinePredict(lines, -1, 0.0, "strict")
        if names and all(len(row) == len(values) for row in names):
            grade = np.array([[values[name] for name in row] for row in names])
            share = np.clip(np.array(found, dtype=np.float64) - _OFFSET, 0.0, 1.0)
            share /= share.sum(axis=1, keepdims=True)
            return ((grade >= positive_from) * share).sum(axis=1), (grade * share).sum(axis=1)
        likely, expected = np.full(len(texts), float(mean >= positive_from)), np.full(len(texts), mean)
        for index, (row, shares) in enumerate(zip(names, found, strict=True)):
            if len(row):
                grade = np.array([values[name] for name in row])
                share = np.clip(np.asarray(shares, dtype=np.float64) - _OFFSET, 0.0, 1.0)
                share /= share.sum()
                likely[index], expected[index] = share[grade >= positive_from].sum(), grade @ share
        return likely, expected


@lru_cache(maxsize=4)
def _grades_of(folder: str, stamp: str) -> tuple[dict[str, float], float, float]:
    """Value of each label, the least positive value, and the mean label of the training table."""
    record = read_classifier(folder)
    values = {PREFIX + name: float(value) for name, value in record["values"].items()}
    return values, float(record["positive_from"]), float(record["table"]["mean_label"])
