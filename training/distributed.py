"""The ranks of a run: processes that train one model together, and how they agree.

`torchrun` starts them and says in the environment who each is; a process that nobody told so is alone.
Numbers on the CPU travel over gloo, tensors on a GPU over NCCL, so that agreeing never waits for a GPU.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from curation.errors import DataError, MachineError, MixwrightError, RecipeError
from curation.progress import set_progress_mode

T = TypeVar("T")
TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Rank 0 evaluates and writes while the others wait for it. A rank that dies is noticed by torchrun and by
# gloo's closed connection, not by this.
TIMEOUT = timedelta(hours=4)
_ERRORS: dict[str, type[MixwrightError]] = {
    kind.__name__: kind for kind in (RecipeError, DataError, MachineError)
}


@dataclass(frozen=True)
class Ranks:
    """This process among the `size` that train together; `local` is its number on its own machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes files and evaluates."""
        return self.rank == 0

    def share(self, first: int, count: int) -> tuple[int, int]:
        """This rank's part (first, count) of the sequences first ... first + count - 1 of an update.

        >>> Ranks(rank=1, size=2).share(80, 8)
        (84, 4)
        """
        mine = count // self.size
        return first + self.rank * mine, mine

    def total(self, number: int) -> int:
        """The sum of all ranks' numbers, on all ranks."""
        if self.size == 1:
            return number
        summed = torch.tensor(number, dtype=torch.int64)
        with other_ranks():
            dist.all_reduce(summed)
        return int(summed)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.total(int(flag)) > 0

    def sum_(self, value: Tensor) -> Tensor:
        """Replace `value` by its sum over all ranks."""
        if self.size > 1:
            with other_ranks():
                dist.all_reduce(value)
        return value

    def from_main(self, work: Callable[[], T]) -> T:
        """Do `work` on the main rank alone, while the others wait; its (small) result, or its error, on all.

        So a full disk of rank 0 is a sentence and the end of every rank, not a wait without end of the rest.
        """
        if self.size == 1:
            return work()
        told: list[object] = [None, None]
        failure: BaseException | None = None
        if self.main:
            told[0], told[1], failure = self._attempt(work)
        try:
            with other_ranks():
                dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        except MachineError:
            if failure is None:
                raise
        if failure is not None:
            raise failure
        if told[1] is not None:
            raise _raised(told[1])
        return told[0]  # type: ignore[return-value]

    def gather(self, work: Callable[[], T]) -> list[T]:
        """Do `work` on every rank at the same time; all (small) results in the order of the ranks, on all of them.

        Where it fails on some rank, every rank raises: its own error, or that of the first that has failed.
        """
        if self.size == 1:
            return [work()]
        result, told, failure = self._attempt(work)
        found: list[tuple[object, object]] = [(None, None)] * self.size
        try:
            with other_ranks():
                dist.all_gather_object(found, (result, told))
        except MachineError:
            if failure is None:
                raise
        if failure is not None:
            raise failure
        for _, error in found:
            if error is not None:
                raise _raised(error)
        return [value for value, _ in found]  # type: ignore[misc]

    def _attempt(self, work: Callable[[], T]) -> tuple[T | None, object, BaseException | None]:
        """What `work` returns; its error as other ranks are told it; the error itself."""
        try:
            return work(), None, None
        except MixwrightError as error:
            return None, (type(error).__name__, error.what, error.where, error.remedy), error
        except BaseException as error:
            told = ("", f"Rank {self.rank} has failed: {error!r}", "", "Look at its own message")
            return None, told, error


def _raised(told: object) -> MixwrightError:
    name, what, where, remedy = cast("tuple[str, str, str, str]", told)
    return _ERRORS.get(name, MixwrightError)(what, where=where, remedy=remedy)


ALONE = Ranks()


@contextmanager
def other_ranks() -> Iterator[None]:
    """Turn the failure of a rank that this one talks to into a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise MachineError(
            f"Another rank of this run has ended: {str(error).splitlines()[0]}",
            where="ranks",
            remedy="Its own message says why; start the run again to continue from the last checkpoint",
        ) from error


def join_ranks(device: str) -> Ranks:
    """The ranks that torchrun started this process in, joined at the first call; ALONE if it did not.

    A process group that the caller has made is used as it is. MachineError when the ranks cannot meet.
    """
    told = all(name in os.environ for name in TOLD) and int(os.environ["WORLD_SIZE"]) > 1
    if not dist.is_initialized():
        if not told:
            return ALONE
        gpu = device != "cpu" and torch.cuda.is_available()
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=TIMEOUT)
            dist.broadcast_object_list([None], src=0, device=torch.device("cpu"))  # all have met
        except (RuntimeError, ValueError) as error:
            raise MachineError(
                f"The ranks cannot meet: {error}",
                where=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
                remedy="Start all of them with one torchrun command, with a free port",
            ) from error
        atexit.register(leave_ranks)
    rank, size = dist.get_rank(), dist.get_world_size()
    if size == 1:
        return ALONE
    if rank > 0:
        set_progress_mode("quiet")
    return Ranks(rank, size, int(os.environ.get("LOCAL_RANK", rank)))


def leave_ranks() -> None:
    """End this process's part in the group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def check_ranks(ranks: Ranks, count: int, what: str = "sequences", where: str = "batch_sequences") -> None:
    """Raise RecipeError where the ranks cannot share an update of `count` sequences (or `what`) evenly."""
    if count % ranks.size:
        fits = [n for n in range(1, count + 1) if count % n == 0]
        raise RecipeError(
            f"{ranks.size} ranks cannot share an update of {count} {what} evenly",
            where=where,
            remedy=f"Start {max(n for n in fits if n < ranks.size)} ranks, or make {where} a multiple of "
            f"{ranks.size}",
        )


def choose_device(wanted: str, ranks: Ranks = ALONE) -> torch.device:
    """The device that a setting names; of several ranks on one machine each has a GPU of its own."""
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise MachineError("There is no GPU that torch can use", where="device", remedy="Set device to cpu")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted != "cuda" or ranks.size == 1:
        return torch.device(wanted)
    if ranks.local >= torch.cuda.device_count():
        raise MachineError(
            f"Rank {ranks.local} of this machine has no GPU: there are {torch.cuda.device_count()}",
            where="device",
            remedy="Start at most as many ranks on a machine as it has GPUs",
        )
    torch.cuda.set_device(ranks.local)
    return torch.device("cuda", ranks.local)


def end_rank(code: int) -> NoReturn:
    """End a rank's process at once, all being on the disk.

    The threads of the process group may be alive, and a normal end then aborts now and then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
