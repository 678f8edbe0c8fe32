"""Scoring as datatrove blocks: they run wherever datatrove runs, alone or inside a pipeline of one's own.

`ReadUnits` yields the documents of its task's units; `ScoreBlock` scores what passes, in groups of at most
`unit_documents`, writes a part of the score table for each group, and lets every document pass: it never
drops one. datatrove copies the pipeline for each task, so nothing heavy is held here: scorers keep their
model in a cache of the process, which all tasks of the process share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document as TroveDocument
from datatrove.pipeline.base import PipelineStep

from curation.atomic import read_json, write_json
from curation.documents import Document
from curation.errors import DataError, MachineError, MixwrightError, RecipeError
from curation.scorer import Scorer
from curation.scoring.answers import Answers, PaidScorer
from curation.scoring.parts import (
    fingerprint_of,
    part_name,
    part_path,
    read_part,
    with_texts,
    write_part,
)
from curation.scoring.rows import RowReader
from curation.scoring.units import UNIT_DOCUMENTS, Unit, read_units

_COLUMNS = ("id", "text", "source", "url", "meta")


class ReadUnits(PipelineStep):
    """Read the units of a plan (`units.write_units`) that this task has, as datatrove documents.

    parts : units whose part is already in this folder are passed over
    Ids are those of the files. `metadata` holds `source`, `url`, `meta` (JSON or None), `file` and `unit`.
    """

    type = "📖 - READER"
    name = "📦 Units"

    def __init__(self, plan: Path | str, parts: Path | str | None = None) -> None:
        super().__init__()
        self.plan, self.parts = str(plan), None if parts is None else str(parts)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[TroveDocument]:
        if data:
            yield from data
        reader: RowReader | None = None
        for unit in read_units(self.plan, rank, world_size):
            if self.parts is not None and part_path(Path(self.parts), unit.name).is_file():
                self.stat_update("units_done_before")
                continue
            if reader is None or reader.file != unit.file:
                reader = RowReader(unit.file, _COLUMNS)
            with self.track_time("unit"):
                batches = reader.take(unit.rows)
                documents = [_trove(row, unit) for batch in batches for row in batch.to_pylist()]
            self.stat_update("documents", value=len(documents))
            yield from documents


class ScoreBlock(PipelineStep):
    """Score documents with any `Scorer`, write parts of its score table, and pass every document on.

    parts       : folder of the parts, `<name>.parquet` each; a part that is there is not made again
    fingerprint : of the scorer, where it is known already; hashing a large model takes a while
    source      : for documents without a `source` in their metadata

    Documents of one unit form a group; others are grouped as they come. Scores go into the metadata as
    `<scorer>/<column>`. An exception that the scorer raises becomes a DataError that names the document.
    """

    type = "🔢 - SCORER"
    name = "⚖️ Score"

    def __init__(
        self,
        scorer: Scorer,
        parts: Path | str,
        *,
        unit_documents: int = UNIT_DOCUMENTS,
        fingerprint: str | None = None,
        source: str = "",
    ) -> None:
        super().__init__()
        self.scorer, self.parts, self.unit_documents = scorer, str(parts), unit_documents
        self.fingerprint, self.source = fingerprint, source
        self.advance: Callable[[float], None] | None = None

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[TroveDocument]:
        fingerprint = self.fingerprint or fingerprint_of(self.scorer, self.unit_documents)
        for group in self._groups(data or ()):
            with self.track_time("group"):
                self._score(group, fingerprint)
            self.stat_update("scored", value=len(group))
            if self.advance is not None:
                self.advance(len(group))
            yield from group

    def _groups(self, data: Any) -> Iterator[list[TroveDocument]]:
        for _, unit in groupby(data, key=lambda document: document.metadata.get("unit")):
            group: list[TroveDocument] = []
            for document in unit:
                group.append(document)
                if len(group) == self.unit_documents:
                    yield group
                    group = []
            if group:
                yield group

    def _score(self, group: list[TroveDocument], fingerprint: str) -> None:
        ids = [document.id for document in group]
        if "unit" not in group[0].metadata:  # ids of a pipeline of one's own may be places, such as `web/7`
            fingerprint = with_texts(fingerprint, [document.text for document in group])
        name, folder = part_name(ids, fingerprint), Path(self.parts)
        where = self._where(group[0])
        table = read_part(folder, name, self.scorer.columns, fingerprint)
        if table is not None:
            scores = {column: table[column].to_numpy() for column in self.scorer.columns}
        else:
            answers = Answers(folder, name) if isinstance(self.scorer, PaidScorer) else None
            scores = self._scores([_document(document, self.source) for document in group], where, answers)
            write_part(folder, ids, scores, self.scorer, name, where)
            if answers is not None:
                answers.forget()
        for column in self.scorer.columns:
            for document, value in zip(group, scores[column].tolist(), strict=True):
                document.metadata[f"{self.scorer.name}/{column}"] = value

    def _scores(
        self, documents: list[Document], where: str, answers: Answers | None
    ) -> dict[str, np.ndarray]:
        try:
            if answers is not None and isinstance(self.scorer, PaidScorer):
                return self.scorer.score_kept(documents, answers)
            return self.scorer.score(documents)
        except MixwrightError:
            raise
        except MemoryError as error:
            raise MachineError(
                f"The memory ran out while {self.scorer.name} scored {len(documents)} documents",
                where=where,
                remedy="Use fewer workers or smaller batches and run again: what was scored is kept",
            ) from error
        except Exception as error:
            cause = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0].rstrip('. ')}"
            guilty = _guilty(self.scorer, documents)
            what = f"the document {guilty[0].id}" if len(guilty) == 1 else f"{len(guilty)} documents together"
            raise DataError(
                f"The scorer {self.scorer.name} failed on {what}: {cause}",
                where=where,
                remedy="Mend or remove the document and run again: what was scored is kept"
                if len(guilty) == 1
                else "Each of them passes alone; try smaller batches. What was scored is kept",
            ) from error

    def _where(self, document: TroveDocument) -> str:
        source = document.metadata.get("source") or self.source
        file = document.metadata.get("file") or document.metadata.get("file_path")
        return ", ".join(str(place) for place in (source, file) if place)


class KeepSentence(PipelineStep):
    """Last step of our own pipelines: an error that is a sentence is written to `folder` instead of a traceback
    to the log, so that it reaches the person who waits, from whichever machine.
    """

    type = "🛟 - ERRORS"
    name = "✉️ Keep sentence"

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        self.folder = str(folder)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[TroveDocument]:
        try:
            yield from data
        except MixwrightError as error:
            value = [type(error).__name__, error.what, error.where, error.remedy]
            write_json(Path(self.folder) / f"{rank:05d}.json", value)


def raise_kept_sentence(folder: Path) -> None:
    """Raise the first error that `KeepSentence` left in a folder, if any."""
    for path in sorted(folder.glob("*.json")):
        kind, what, where, remedy = read_json(path)
        errors = {kind.__name__: kind for kind in (RecipeError, DataError, MachineError)}
        raise errors.get(kind, MixwrightError)(what, where=where, remedy=remedy)


def _guilty(scorer: Scorer, documents: list[Document]) -> list[Document]:
    """The first document on which the scorer fails alone, by halving; all of them if none does."""
    suspects = documents
    while len(suspects) > 1:
        halves = suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]
        failed = next((half for half in halves if _fails(scorer, half)), None)
        if failed is None:
            return suspects
        suspects = failed
    return suspects


def _fails(scorer: Scorer, documents: list[Document]) -> bool:
    try:
        scorer.score(documents)
    except Exception:
        return True
    return False


def _document(document: TroveDocument, source: str) -> Document:
    meta = document.metadata.get("meta")
    if "unit" not in document.metadata:
        meta = {key: value for key, value in document.metadata.items() if key not in ("source", "url")}
    elif meta is not None:
        meta = json.loads(meta)
    owner = document.metadata.get("source") or source
    return Document(document.id, document.text, str(owner), document.metadata.get("url"), meta)


def _trove(row: dict[str, Any], unit: Unit) -> TroveDocument:
    if row["text"] is None:
        raise DataError(
            f"The document {row['id']} has no text",
            where=f"{unit.source}, {unit.file}",
            remedy="Remove it from the file",
        )
    metadata = {name: row.get(name) for name in ("url", "meta")}
    metadata |= {"source": row.get("source") or unit.source, "file": unit.file, "unit": unit.name}
    return TroveDocument(row["text"], row["id"], metadata=metadata)
