"""Answers that are paid for one by one, kept beside the parts until the part of their unit is there.

A part is whole or absent, and its unit may hold a thousand documents. For a model on this machine to do a unit again
costs a minute; for a judge behind a server it costs money. So each answer is appended to a file of its writer's own
as soon as it has come, and whoever does the unit next, after a kill, an error or Ctrl-C, asks only for the others.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from curation.atomic import writing_to
from curation.documents import Document

Kept = MutableMapping[str, list[Any]]
"""One row of scores for each document id; what is put in is kept."""


@runtime_checkable
class PaidScorer(Protocol):
    """A scorer whose answer for a document depends on that document alone, and is dear."""

    def score_kept(self, documents: Sequence[Document], kept: Kept) -> dict[str, np.ndarray]:
        """As `Scorer.score`; uses the rows in `kept` and puts each new one there as soon as it is known."""
        ...


class Answers(dict[str, list[Any]]):
    """The rows of one unit, by document id; each row that is set is in a file when the call returns.

    folder, name : of the unit's part. Reads what earlier writers left; a line that a kill cut short is passed over
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        self._pattern = f".{name}.*.answers"
        self._folder, self._own = folder, folder / f".{name}.{uuid.uuid4().hex[:12]}.answers"
        for file in folder.glob(self._pattern):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    document, row = json.loads(line)
                    super().__setitem__(document, row)
                except (ValueError, TypeError):
                    continue

    def __setitem__(self, document: str, row: list[Any]) -> None:
        line = json.dumps([document, row], allow_nan=False) + "\n"
        with writing_to(self._own):
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._own, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        super().__setitem__(document, row)

    def forget(self) -> None:
        """Remove the files: the part is there."""
        for file in self._folder.glob(self._pattern):
            file.unlink(missing_ok=True)
