"""The scorer of a classifier's folder, whatever its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curation.classifiers.fasttext_model import FastTextClassifier
from curation.classifiers.record import FILE, read_classifier
from curation.educational import EducationalClassifier
from curation.scorer import Scorer


def open_classifier(model: str, **options: Any) -> Scorer:
    """The scorer of a folder that `mixwright classifier train` made, or of any transformers classifier.

    options : for transformers classifiers, those of EducationalClassifier; a regression head of one's own reads
              as many tokens as it was trained on
    Column `educational_score`. Raises DataError when a folder of ours is damaged.
    """
    if not (Path(model) / FILE).is_file():
        return EducationalClassifier(model, **options)
    record = read_classifier(model)
    if record["kind"] == "fasttext":
        return FastTextClassifier(model)
    return EducationalClassifier(model, **{**options, "max_tokens": record["settings"]["max_tokens"]})
