"""Corpus ratios, joins by id, and intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from curation.errors import DataError
from probes.intervals import bits_per_byte, bootstrap_bits_per_byte, nats_per_token, paired_difference
from probes.likelihood import LIKELIHOOD_SCHEMA


def _table(ids, size, nats) -> pa.Table:
    columns = {
        "id": list(ids),
        "source": ["s"] * len(ids),
        "tokens": [5] * len(ids),
        "bytes": size,
        "nats": nats,
    }
    return pa.Table.from_pydict(columns, schema=LIKELIHOOD_SCHEMA)


def test_bits_per_byte_is_a_ratio_over_the_corpus() -> None:
    table = _table("ab", [10, 30], [20.0, 10.0])
    assert bits_per_byte(table) == pytest.approx(30 / 40 / math.log(2))
    assert nats_per_token(table) == pytest.approx(3.0)


def test_shuffled_rows_give_the_same_answer() -> None:
    rng = np.random.default_rng(1)
    ids = [f"d{i}" for i in range(40)]
    size, a, b = rng.integers(50, 500, 40), rng.gamma(4, 50, 40), rng.gamma(4, 50, 40)
    order = rng.permutation(40)
    one = paired_difference(_table(ids, size, a), _table(ids, size, b), seed=3)
    shuffled = _table([ids[i] for i in order], size[order], b[order])
    assert paired_difference(_table(ids, size, a), shuffled, seed=3) == one
    assert one.value == pytest.approx((a - b).sum() / size.sum() / math.log(2))


def test_pairing_takes_out_the_difficulty_of_documents() -> None:
    rng = np.random.default_rng(2)
    ids, size = [f"d{i}" for i in range(200)], np.full(200, 100)
    hard = rng.gamma(2, 60, 200)
    a, b = _table(ids, size, hard + 2 + rng.normal(0, 1, 200)), _table(ids, size, hard)
    difference, alone = paired_difference(a, b), bootstrap_bits_per_byte(a)
    assert difference.excludes_zero and difference.value > 0
    assert alone.high - alone.low > 10 * (difference.high - difference.low)


def test_bootstrap_covers_at_its_level() -> None:
    rng = np.random.default_rng(4)
    inside = 0
    for trial in range(200):
        size = rng.integers(50, 400, 80)
        nats = size * rng.gamma(9, 1 / 9, 80)
        interval = bootstrap_bits_per_byte(
            _table([str(i) for i in range(80)], size, nats), seed=trial, resamples=200
        )
        inside += interval.low <= 1 / math.log(2) <= interval.high
    assert 0.82 <= inside / 200 <= 0.96


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="2 are in one only"):
        paired_difference(_table("ab", [1, 1], [1.0, 1.0]), _table("ac", [1, 1], [1.0, 1.0]))
    with pytest.raises(DataError, match="bytes in one table"):
        paired_difference(_table("ab", [1, 1], [1.0, 1.0]), _table("ab", [1, 2], [1.0, 1.0]))
    with pytest.raises(DataError, match="more than one row"):
        bits_per_byte(_table("aa", [1, 1], [1.0, 1.0]))
    with pytest.raises(DataError, match="no text"):
        bits_per_byte(_table("", [], []))
