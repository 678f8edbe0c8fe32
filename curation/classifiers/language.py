"""Which language a document is in, by a fastText model that the user gives, such as lid.176.bin.

As all scores, the table comes first (columns `language`, `language_probability`) and the decision afterwards.
Published models are not shipped: lid.176 is CC BY-SA, and is downloaded from fasttext.cc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.atomic import hash_file
from curation.classifiers.fasttext_model import load_fasttext, predict
from curation.documents import Document
from curation.errors import DataError, RecipeError
from curation.score_tables import score_source
from curation.scoring.execution import Runner

HEAD_CHARACTERS = 4000
UNKNOWN = "und"


@dataclass(frozen=True)
class LanguageRule:
    """Which rows pass: `language` is one of `languages`, with at least `minimum_probability`.

    0.65 is FineWeb's threshold for lid.176.
    """

    languages: tuple[str, ...]
    minimum_probability: float = 0.65

    def __str__(self) -> str:
        return f"language {' or '.join(self.languages)}, probability >= {self.minimum_probability:g}"


@dataclass(frozen=True)
class LanguageScorer:
    """The scorer (see scorer.Scorer) of a language model file.

    model : .bin or .ftz of a supervised fastText model whose labels are languages (`__label__en`)
    Of a document the first `HEAD_CHARACTERS` are read. One without a known word is `und`, probability 0.
    """

    model: str
    name: str = "language"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("language", "language_probability")

    def fingerprint(self) -> dict[str, Any]:
        """The file's hash and how much of a document is read."""
        load_fasttext(self.model)  # a sentence when there is no such file
        return {"model_sha256": hash_file(self.model), "head_characters": HEAD_CHARACTERS}

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        """Label of the most probable language, object [n], and its probability, float32 [n]."""
        found = predict(load_fasttext(self.model), [d.text[:HEAD_CHARACTERS] for d in documents], labels=1)
        return {
            "language": np.array([names[0] if names else UNKNOWN for names, _ in found], dtype=object),
            "language_probability": np.array(
                [shares[0] if names else 0.0 for names, shares in found], dtype=np.float32
            ),
        }


def language_scores(
    documents: Sequence[Document], model: str, folder: Path | str, *, runner: Runner | None = None
) -> pl.DataFrame:
    """`id, language, language_probability` of the documents of one source, as `score_source`."""
    return score_source(documents, LanguageScorer(model), folder, runner=runner)


def passing_language(table: pl.DataFrame, rule: LanguageRule) -> pl.DataFrame:
    """The rows of one source's table that pass `rule`, sorted by id."""
    wanted = pl.col("language").is_in(list(rule.languages))
    return table.filter(wanted & (pl.col("language_probability") >= rule.minimum_probability)).sort("id")


def check_languages(model: str, rule: LanguageRule) -> None:
    """RecipeError when the model does not know a language of the rule: nothing would ever pass."""
    known = {name.removeprefix("__label__") for name in load_fasttext(model).get_labels()}
    for language in rule.languages:
        if language not in known:
            raise RecipeError(
                f"The language model has no language `{language}`",
                where=model,
                remedy=f"Choose of {', '.join(sorted(known)[:12])}{' …' if len(known) > 12 else ''}",
            )


def none_passed(source: str, table: pl.DataFrame, rule: LanguageRule) -> DataError:
    """The error for a source of which nothing passes."""
    common = table["language"].value_counts(sort=True)["language"].to_list()[:3]
    return DataError(
        f"No document of {source} passes `{rule}`; the most frequent are {', '.join(common)}",
        where=source,
        remedy="Change `curation.language.languages`, or leave the source out",
    )
