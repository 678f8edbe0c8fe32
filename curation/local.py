"""Local corpora: one file, a folder with all folders in it, or a glob pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curation.documents import Document
from curation.errors import DataError
from curation.readers import EXTENSIONS, extension_of, read_file
from curation.records import BrokenRecord

SKIPPED_EXAMPLES = 20


@dataclass(frozen=True)
class LocalFiles:
    """Files to read, each with its name relative to the corpus, in the order of these names.

    skipped : names of files in a folder whose format is not read, the first `SKIPPED_EXAMPLES`
    """

    files: tuple[tuple[str, Path], ...]
    skipped: tuple[str, ...]


def local_files(path: str) -> LocalFiles:
    """The files that `path` names; DataError if there is none that can be read."""
    expanded = Path(path).expanduser()
    if expanded.is_file():
        extension_of(expanded)
        return LocalFiles(((_name(expanded.name), expanded),), ())
    if expanded.is_dir():
        root, found = expanded, [p for p in expanded.rglob("*") if p.is_file()]
    else:
        root = _fixed_part(expanded)
        found = (
            [p for p in root.glob(str(expanded.relative_to(root))) if p.is_file()] if root.is_dir() else []
        )
    visible = [p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts)]
    named = sorted((_name(p.relative_to(root).as_posix()), p) for p in visible)
    files = tuple((name, p) for name, p in named if name.lower().endswith(EXTENSIONS))
    skipped = tuple(name for name, _ in named if not name.lower().endswith(EXTENSIONS))
    if not files:
        if skipped:
            what = f"None of the {len(skipped)} files here can be read, {skipped[0]} for instance"
        else:
            what = "There is no such file or folder, or it is empty"
        known = ", ".join(EXTENSIONS)
        raise DataError(what, where=path, remedy=f"Point `path` at {known} files, or at a folder of them")
    return LocalFiles(files, skipped[:SKIPPED_EXAMPLES])


def read_local(path: str, *, source: str, text_field: str = "text") -> Iterator[Document | BrokenRecord]:
    """Stream the records of all files of a local corpus, file by file; errors as `local_files`."""
    for name, file in local_files(path).files:
        yield from read_file(file, source=source, text_field=text_field, label=name)


def _fixed_part(pattern: Path) -> Path:
    """The folder above the first part of a glob pattern that holds a wildcard."""
    for parent in reversed(pattern.parents):
        if glob.has_magic(str(parent)):
            return parent.parent
    return pattern.parent


def _name(name: str) -> str:
    """File names are bytes; one that is not UTF-8 must still fit into a report."""
    return os.fsencode(name).decode("utf-8", "replace")
