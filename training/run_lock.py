"""One process for each folder of a run."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curation.atomic import writing_to
from curation.errors import MachineError


@contextmanager
def only_process_in(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process, however it ends."""
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / ".lock").open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MachineError(
                "Another process is working in this folder",
                where=str(out),
                remedy="Wait for it, stop it, or choose another folder",
            ) from error
        yield
