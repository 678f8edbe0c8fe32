"""Batches made ahead are those that would have been made when asked for."""

from __future__ import annotations

import threading

import pytest
import torch

from curation.errors import DataError
from tests.training.test_loop import make_order
from training.order import Batch
from training.prefetch import BatchesAhead

ELSEWHERE = torch.device("meta")  # not a CPU, and no memory to pin for it


def test_the_same_batches_one_ahead_up_to_the_end() -> None:
    order, wanted = make_order(), make_order()
    made: list[tuple[int, bool]] = []

    def make(first: int, count: int) -> Batch:
        made.append((first, threading.current_thread() is threading.main_thread()))
        return order.batch(first, count)

    ahead = BatchesAhead(make, 4, ELSEWHERE)
    for first in range(0, 96, 4):  # the whole schedule; what lies beyond is foreseen and never asked for
        ours, theirs = ahead(first, 4), wanted.batch(first, 4)
        assert torch.equal(ours.input_ids, theirs.input_ids) and torch.equal(ours.labels, theirs.labels)
    ahead.close()
    assert made[:3] == [(0, True), (4, False), (8, False)] and len(made) in (
        24,
        25,
    )  # the last may be called off
    with pytest.raises(DataError, match="no sequence 96"):
        make(96, 4)


def test_a_jump_and_an_error_are_as_without_it() -> None:
    order = make_order()
    ahead = BatchesAhead(order.batch, 4, ELSEWHERE)
    ahead(0, 4)
    assert torch.equal(ahead(40, 2).input_ids, make_order().batch(40, 2).input_ids)
    ahead(92, 4)
    with pytest.raises(DataError, match="no sequence 96"):
        ahead(96, 4)
    ahead.close()


def test_a_cpu_makes_them_when_asked_for() -> None:
    made: list[int] = []
    order = make_order()
    ahead = BatchesAhead(lambda first, count: made.append(first) or order.batch(first, count), 4,
                         torch.device("cpu"))  # type: ignore[func-returns-value]  # fmt: skip
    ahead(0, 4)
    ahead(4, 4)
    assert made == [0, 4]
    ahead.close()
