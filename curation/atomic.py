"""Files that are either whole or absent, and the hashes that tell whether they changed.

Every file of a run is written to a temporary name in its own folder, flushed to the disk and renamed, so
that a run killed at any instruction leaves no half-written file under a final name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curation.errors import MachineError

_DISK_REMEDY = {
    errno.ENOSPC: (
        "The disk is full",
        "Free some space, or choose another folder with --out; the run continues",
    ),
    errno.EDQUOT: ("The disk quota is used up", "Free some space, or choose another folder with --out"),
    errno.EFBIG: (
        "A file would be larger than the system allows",
        "Raise the limit (ulimit -f), or choose another folder with --out; the run continues",
    ),
    errno.EROFS: (
        "The folder is on a read-only file system",
        "Choose a folder that can be written with --out",
    ),
    errno.EACCES: (
        "The folder may not be written by this user",
        "Change its permissions, or choose another with --out",
    ),
    errno.EPERM: (
        "The folder may not be written by this user",
        "Change its permissions, or choose another with --out",
    ),
    errno.ENOTDIR: (
        "A file stands where a folder is needed",
        "Remove the file, or choose another folder with --out",
    ),
}


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write at `path` into a MachineError with a remedy.

    Some libraries (safetensors) wrap the refusal in an error of their own; its text still names it.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _wrapped_refusal(error)
        if number not in _DISK_REMEDY:
            raise
        what, remedy = _DISK_REMEDY[number]
        raise MachineError(what, where=str(path), remedy=remedy) from error


def _wrapped_refusal(error: Exception) -> int | None:
    text = str(error)
    return errno.ENOSPC if "No space left on device" in text or "StorageFull" in text else None


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, flush it to disk and rename it to `path`.

    The temporary name is fixed (one writer per file), so what a killed process left is overwritten, not collected.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def replacing_folder(folder: Path | str) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block ends well, it takes the place of `folder`."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.partial")
    with writing_to(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
        _sync_folder(folder.parent)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically, with sorted keys, so that equal values give equal bytes. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def hash_value(value: Any) -> str:
    """Hex sha256 of a JSON-able value; equal values have equal hashes whatever the order of their keys."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def hash_file(path: Path | str) -> str:
    """Hex sha256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_folder(folder: Path | str) -> str:
    """Hex sha256 over the names and bytes of all files below `folder`, hidden ones left out."""
    folder = Path(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return hash_value([(p.relative_to(folder).as_posix(), hash_file(p)) for p in files])


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
