"""Runs a function on several gloo ranks, each a process of its own that has torch imported already."""

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from curation.errors import MixwrightError

SECONDS = 90


def on_ranks(size: int, meeting: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """function(*arguments) on `size` ranks: what it returned on each, or the error (type's name, text)."""
    meeting.mkdir(parents=True, exist_ok=True)
    processes = multiprocessing.get_context("forkserver")
    tests = ("test_loop", "test_distributed", "test_post_training_ranks")
    processes.set_forkserver_preload([f"tests.training.{test}" for test in tests])
    store = meeting / "store"
    ranks = [
        processes.Process(target=_rank, args=(rank, size, store, function, arguments)) for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(SECONDS)
    hanging = [rank for rank in ranks if rank.is_alive()]
    for rank in hanging:
        rank.kill()
    assert not hanging, "a rank waits for ever"
    store.unlink(missing_ok=True)
    # Files, because a pipe that nobody reads yet would hold up a long answer.
    files = [meeting / f"answer-{rank}" for rank in range(size)]
    answers = [pickle.loads(file.read_bytes()) for file in files]
    for file in files:
        file.unlink()
    assert all(answer[:1] != ("?",) for answer in answers if isinstance(answer, tuple)), answers
    return answers


def _rank(
    rank: int, size: int, store: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    signal.alarm(SECONDS)
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        dist.barrier()  # so that no rank ends before all have met
        answer = function(*arguments)
        dist.barrier()
    except MixwrightError as error:
        answer = (type(error).__name__, str(error))
    except BaseException:
        answer = ("?", traceback.format_exc())
    store.with_name(f"answer-{rank}").write_bytes(pickle.dumps(answer))
    dist.destroy_process_group()
