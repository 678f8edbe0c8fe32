"""Scorers with known scores that workers can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from curation.documents import Document

_loaded: dict[str, int] = {}


@dataclass
class Length:
    """Scores a document by its length.

    seconds : how long each call takes
    model   : a folder in which each process that "loads the model" leaves a file of its own, once
    fail    : text on which the scorer raises
    """

    setting: int = 1
    seconds: float = 0.0
    model: str = ""
    fail: str = ""
    name: str = "length"
    columns: tuple[str, ...] = ("score", "truncated")
    seen: list[str] = field(default_factory=list)

    def fingerprint(self) -> dict[str, Any]:
        return {"setting": self.setting}

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        if self.model and self.model not in _loaded:
            _loaded[self.model] = 1
            (Path(self.model) / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(self.seconds)
        for document in documents:
            if self.fail and document.text == self.fail:
                raise ValueError("a text that the model cannot bear")
        self.seen += [d.id for d in documents]
        lengths = np.array([len(d.text) * self.setting for d in documents], dtype=np.float32)
        return {"score": lengths, "truncated": lengths > 50}


@dataclass(frozen=True)
class DiesOnce:
    """Counts every document, but the first process that asks is killed, once for all."""

    folder: str

    def __call__(self, document: Document) -> bool:
        try:
            (Path(self.folder) / "died").touch(exist_ok=False)
        except FileExistsError:
            return True
        os.kill(os.getpid(), signal.SIGKILL)
        return True
