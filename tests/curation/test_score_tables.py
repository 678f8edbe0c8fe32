"""Score tables: used again, extended, continued after a kill at any part, equal for any order and worker
count.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.atomic import hash_folder, read_json
from curation.documents import Document, document_id
from curation.errors import DataError
from curation.score_tables import score_source


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@dataclass
class Length:
    """Scores a document by its length, and dies after `lives` calls."""

    setting: int = 1
    lives: int = 1000
    name: str = "length"
    columns: tuple[str, ...] = ("score", "truncated")
    seen: list[str] = field(default_factory=list)

    def fingerprint(self) -> dict[str, Any]:
        return {"setting": self.setting}

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        if self.lives == 0:
            raise Killed
        self.lives -= 1
        self.seen += [d.id for d in documents]
        lengths = np.array([len(d.text) * self.setting for d in documents], dtype=np.float32)
        return {"score": lengths, "truncated": lengths > 50}


def documents(count: int = 95) -> list[Document]:
    texts = ["x" * i for i in range(count)]
    return [Document(document_id("s", text), text, "s") for text in texts]


def test_rows_are_keyed_by_id_whatever_the_order(tmp_path: Path) -> None:
    found = documents()
    table = score_source(found, Length(), tmp_path / "a", unit_documents=10)
    assert table["id"].to_list() == sorted(d.id for d in found)
    lengths = {d.id: len(d.text) for d in found}
    assert dict(zip(table["id"], table["score"], strict=True)) == lengths
    random.Random(0).shuffle(found)
    score_source(found, Length(), tmp_path / "b", unit_documents=10)
    assert hash_folder(tmp_path / "a") == hash_folder(tmp_path / "b")


@pytest.mark.parametrize("lives", range(0, 10))
def test_killed_at_any_part_it_ends_with_the_same_bytes(tmp_path: Path, lives: int) -> None:
    score_source(documents(), Length(), tmp_path / "whole", unit_documents=10)
    with pytest.raises(Killed):
        score_source(documents(), Length(lives=lives), tmp_path / "killed", unit_documents=10)
    assert not (tmp_path / "killed" / "length.parquet").exists()
    again = Length()
    score_source(documents(), again, tmp_path / "killed", unit_documents=10)
    assert len(again.seen) == 95 - 10 * lives  # what was done is not done again
    assert hash_folder(tmp_path / "whole") == hash_folder(tmp_path / "killed")
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["length.json", "length.parquet"]


def test_a_finished_table_is_used_again_and_extended(tmp_path: Path) -> None:
    score_source(documents(50), Length(), tmp_path)
    scorer = Length()
    assert score_source(documents(20), scorer, tmp_path).height == 20
    assert scorer.seen == []
    table = score_source(documents(60), scorer, tmp_path)
    assert table.height == 60 and len(scorer.seen) == 10
    assert read_json(tmp_path / "length.json")["documents"] == 60


def test_other_settings_or_a_damaged_table_mean_scoring_again(tmp_path: Path) -> None:
    score_source(documents(20), Length(), tmp_path)
    other = Length(setting=2)
    assert score_source(documents(20), other, tmp_path)["score"].max() == 38
    assert len(other.seen) == 20
    whole = (tmp_path / "length.parquet").read_bytes()
    (tmp_path / "length.parquet").write_bytes(whole[:100])
    repaired = Length(setting=2)
    score_source(documents(20), repaired, tmp_path)
    assert (tmp_path / "length.parquet").read_bytes() == whole


def test_no_documents_make_an_empty_table(tmp_path: Path) -> None:
    table = score_source([], Length(), tmp_path)
    assert table.height == 0 and table.columns == ["id", "score", "truncated"]


def test_repeated_ids_and_scores_that_are_no_numbers_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Two documents have the id"):
        score_source(documents(3) + documents(1), Length(), tmp_path)

    class Broken(Length):
        def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
            scores = super().score(documents)
            scores["score"][3] = np.nan
            return scores

    found = sorted(documents(9), key=lambda d: d.id)
    with pytest.raises(DataError, match=f"no finite `score` for the document {found[3].id}"):
        score_source(found, Broken(), tmp_path)
