"""Worker processes that score parts of a corpus side by side, each with its own copy of the model.

Processes rather than threads inside one: scores must not depend on how many workers there are, and a sum
split over another number of threads has other last bits.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from types import TracebackType

import numpy as np

from curation.documents import Document
from curation.errors import MachineError
from curation.scorer import Scorer


class ScoringPool:
    """`workers` spawned processes, started at the first use and kept until the `with` block ends.

    Workers die with their parent, also when it is killed, and a worker that dies is a MachineError at once.
    Spawned processes import the main module: scripts need `if __name__ == "__main__":`.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> ScoringPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=kind is None, cancel_futures=True)

    def score(
        self, scorer: Scorer, chunks: Sequence[list[Document]]
    ) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
        """Yield (index of the chunk, its scores) as they are ready; little more than one chunk per worker is
        queued.
        """
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), initializer=_begin_worker
            )
        waiting = list(enumerate(chunks))[::-1]
        running: dict[Future[dict[str, np.ndarray]], int] = {}
        try:
            while waiting or running:
                while waiting and len(running) <= self.workers:
                    index, chunk = waiting.pop()
                    running[self._executor.submit(_score, scorer, chunk)] = index
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=running.__getitem__):
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise MachineError(
                "A scoring worker died",
                where=scorer.name,
                remedy="The memory may be too small for so many workers; lower their number and run again: "
                "what was scored is kept",
            ) from error


def _score(scorer: Scorer, documents: list[Document]) -> dict[str, np.ndarray]:
    return scorer.score(documents)


def _begin_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["OMP_NUM_THREADS"] = "1"
    parent = multiprocessing.parent_process()
    if parent is not None:
        # An orphan waits for work for ever: every worker holds both ends of the queue.
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)
