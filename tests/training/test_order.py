"""The data order: exact shares, every token once per epoch, and nothing that depends on how it is asked."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import DataError, RecipeError
from training.order import DataOrder, MixtureSchedule, Phase
from training.packing import SourceStream, seeded_permutation
from training.tokens import TokenSource

BOS, EOS = 0, 1
T = 8


def make_source(name: str, lengths: list[int], first_token: int = 2) -> TokenSource:
    """A source in which every token but bos and eos is different."""
    tokens, token = [], first_token
    for length in lengths:
        tokens += [BOS, *range(token, token + length - 2), EOS]
        token += length - 2
    return TokenSource(
        name=name,
        tokens=np.array(tokens, dtype=np.uint32),
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        ids=[f"{name}-{index}" for index in range(len(lengths))],
        text_bytes=np.array(lengths, dtype=np.int64),
        hash=f"hash of {name}",
        tokenizer="",
        vocab_size=1 << 20,
    )


def make_order(
    weights: list[dict[str, float]], sequences: list[int], seed: int = 0, block: int = 16
) -> DataOrder:
    phases = tuple(Phase(f"phase {i}", n, w) for i, (w, n) in enumerate(zip(weights, sequences, strict=True)))
    sources = {
        "code": make_source("code", [5, 9, 3, 30, 2], 10),
        "math": make_source("math", [12, 7, 4], 100),
        "web": make_source("web", [6] * 40, 1000),
    }
    return DataOrder(MixtureSchedule(phases, seed, block), sources, T)


weight = st.one_of(st.just(0.0), st.floats(1e-6, 1.0), st.sampled_from([1.0, 1 / 3, 0.25, 0.01]))


@st.composite
def schedules(draw: st.DrawFn) -> MixtureSchedule:
    count = draw(st.integers(2, 9))
    phases = draw(
        st.lists(
            st.tuples(st.lists(weight, min_size=count, max_size=count).filter(any), st.integers(1, 90)),
            min_size=1,
            max_size=4,
        )
    )
    named = tuple(
        Phase(str(i), n, {f"s{j}": w for j, w in enumerate(weights)}) for i, (weights, n) in enumerate(phases)
    )
    return MixtureSchedule(named, draw(st.integers(0, 9)), draw(st.integers(1, 40)))


@settings(max_examples=150, deadline=None)
@given(schedules())
def test_every_share_is_within_one_sequence_after_every_block(schedule):
    names = list(schedule.phases[0].weights)
    order = DataOrder(schedule, {name: make_source(name, [4, 5]) for name in names}, T)
    seen, index = Counter(), 0
    for phase in schedule.phases:
        total, before, asked = sum(phase.weights.values()), seen.copy(), dict.fromkeys(names, 0.0)
        for begin in range(0, phase.sequences, schedule.block):
            count = min(schedule.block, phase.sequences - begin)
            for _ in range(count):
                name, turn = order.turn(index)
                assert turn == seen[name], "each source is read in its own order, across blocks and phases"
                seen[name] += 1
                index += 1
            for name in names:
                asked[name] += phase.weights[name] / total * count
                assert abs(seen[name] - before[name] - asked[name]) < 1 + 1e-6
                assert phase.weights[name] or seen[name] == before[name]
    assert index == order.sequences


def test_a_source_of_weight_zero_is_not_read():
    order = make_order([{"code": 1.0, "math": 0.0}], [50])
    assert {order.turn(i)[0] for i in range(50)} == {"code"}


def test_every_token_of_an_epoch_is_read_and_labelled_exactly_once():
    source = make_source("code", [5, 9, 3, 30, 2, 11])  # 60 tokens
    stream = SourceStream("code", source, seed=3, sequence_tokens=T)
    rows = np.empty((4, 15, T), dtype=np.int64)  # 15 sequences of 8 = two epochs
    for k in range(15):
        stream.fill(k, *rows[:, k])
    tokens, labels = rows[0].reshape(-1), rows[1].reshape(-1)
    for epoch in (slice(0, 60), slice(60, 120)):
        assert sorted(tokens[epoch]) == sorted(source.tokens)
        # Every token is a label once, but the bos of each document, which nothing comes before.
        wanted = [t for d in range(6) for t in source.document(d)[1:]]
        assert sorted(labels[epoch][labels[epoch] != -100]) == sorted(wanted)
    assert not np.array_equal(tokens[:60], tokens[60:]), "another order in the second epoch"


def test_labels_positions_and_pieces_of_a_sequence():
    source = make_source("code", [11, 3], 10)
    stream = SourceStream("code", source, seed=0, sequence_tokens=T)
    assert seeded_permutation(2, 0, "documents", "code", 0).tolist() == [1, 0], (
        "the example below is for this order"
    )
    assert stream.pieces(0) == ((1, 0, 3), (0, 0, 5))
    assert stream.pieces(1)[0] == (0, 5, 11), "the long document goes on where it was cut"
    tokens, labels, positions, pieces = np.empty((4, T), dtype=np.int64)
    stream.fill(0, tokens, labels, positions, pieces)
    assert tokens.tolist() == [BOS, 19, EOS, BOS, 10, 11, 12, 13]
    assert labels.tolist() == [19, EOS, -100, 10, 11, 12, 13, 14], "14 lies beyond the cut"
    assert positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert pieces.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    stream.fill(1, tokens, labels, positions, pieces)
    assert tokens[:6].tolist() == [14, 15, 16, 17, 18, EOS] and positions[0] == 0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_order_does_not_depend_on_how_it_is_asked(data):
    weights = [{"code": 0.5, "math": 0.3, "web": 0.2}, {"code": 0.1, "web": 0.9}]
    whole = make_order(weights, [37, 30]).batch(0, 67)
    other = make_order(weights, [37, 30])
    first = 0
    while first < 67:  # groups of any size, with random look-ups in between
        count = data.draw(st.integers(1, 67 - first))
        other.window(data.draw(st.integers(0, 66)))
        part = other.batch(first, count)
        for name in ("input_ids", "labels", "positions", "document_ids"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[first : first + count])
        first += count


def test_two_mixtures_with_one_seed_read_a_source_in_the_same_order():
    one = make_order([{"code": 0.5, "web": 0.5}], [64])
    two = make_order([{"code": 0.1, "math": 0.6, "web": 0.3}], [64])
    read = [[o.window(i).pieces for i in range(64) if o.turn(i)[0] == "web"] for o in (one, two)]
    shared = min(map(len, read))
    assert shared > 15 and read[0][:shared] == read[1][:shared]
    assert make_order([{"web": 1.0}], [9], seed=1).window(0) != make_order([{"web": 1.0}], [9]).window(0)


def test_the_order_of_dictionaries_does_not_matter():
    weights = {"code": 0.5, "math": 0.3, "web": 0.2}
    one, two = make_order([weights], [40]), make_order([dict(reversed(weights.items()))], [40])
    assert torch.equal(one.batch(0, 40).input_ids, two.batch(0, 40).input_ids)
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != make_order([weights], [40], seed=1).fingerprint()


def test_a_block_is_mixed_and_not_in_stretches():
    order = make_order([{"code": 0.5, "web": 0.5}], [64], block=64)
    turns = [order.turn(i)[0] for i in range(64)]
    assert 16 < sum(a != b for a, b in pairwise(turns)) < 48


def test_plan_and_epochs_count_what_is_read():
    order = make_order([{"code": 0.75, "math": 0.25}, {"web": 1.0}], [40, 30])
    uses = {(use.phase, use.source): use for use in order.plan()}
    assert set(uses) == {("phase 0", "code"), ("phase 0", "math"), ("phase 1", "web")}
    assert uses["phase 0", "code"].sequences == 30 and uses["phase 0", "code"].tokens == 240
    assert order.epochs("code") == pytest.approx(240 / 49) == uses["phase 0", "code"].epochs
    assert order.epochs("web") == 1.0 == uses["phase 1", "web"].epochs_so_far
    counted = Counter(order.turn(i)[0] for i in range(70))
    assert counted == {"code": 30, "math": 10, "web": 30}


def test_the_epoch_cap_names_the_missing_tokens():
    order = make_order([{"code": 0.75, "math": 0.25}], [40])
    order.check_epochs(5)
    order.check_epochs({"math": 4})
    with pytest.raises(RecipeError, match=r"code 4.90 times.*cap is 4: 44 tokens are missing"):
        order.check_epochs(4)


def test_every_source_that_is_too_small_is_named_with_its_phase():
    order = make_order([{"code": 0.5, "web": 0.5}, {"code": 0.5, "math": 0.5}], [10, 20])
    with pytest.raises(RecipeError) as caught:
        order.check_epochs(1.5)
    assert caught.value.where == "weights.code (phase phase 1), weights.math (phase phase 1)"
    # code: 15 sequences of 8 tokens are read, 1.5 times 49 allowed; math: 10 of 8, 1.5 times 23
    assert "46.5" not in str(caught.value) and "47 tokens" in str(caught.value)
    assert "46 tokens are missing (it has 23)" in str(caught.value)


def test_describe_lists_ids_and_ranges():
    order = make_order([{"code": 1.0}, {"math": 1.0}], [16, 8])
    shown = order.describe(17)
    assert shown["phase"] == "phase 1" and shown["source"] == "math" and shown["sequence_of_source"] == 1
    assert sum(document["tokens"] for document in shown["documents"]) == T
    window = order.window(17)
    assert [d["id"] for d in shown["documents"]] == [f"math-{piece[0]}" for piece in window.pieces]


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"code": 0.0},
        {"code": -1.0, "web": 2.0},
        {"code": float("nan")},
        {"code": float("inf")},
        {"typo": 1.0},
    ],
)
def test_weights_that_cannot_be_are_recipe_errors(weights):
    with pytest.raises(RecipeError):
        make_order([weights], [10])


@pytest.mark.parametrize(("sequences", "block"), [([0], 16), ([], 16), ([5], 0), ([1 << 31], 16)])
def test_sizes_that_cannot_be_are_recipe_errors(sequences, block):
    with pytest.raises(RecipeError):
        make_order([{"code": 1.0}] * len(sequences), sequences, block=block)


def test_an_index_beyond_the_schedule_is_an_error():
    order = make_order([{"code": 1.0}], [10])
    for index in (-1, 10):
        with pytest.raises(DataError, match="has 10"):
            order.window(index)
    with pytest.raises(DataError):
        order.batch(8, 3)


def test_extreme_weights_do_not_overflow():
    order = make_order([{"code": 1e308, "math": 1e308, "web": 5e-324}], [20])
    assert order.epochs("code") * 49 == order.epochs("math") * 23 == 80 and order.epochs("web") == 0


def test_the_order_is_the_one_that_runs_were_made_with():
    """A change here is a change of every run's data: it needs a new major version, not a new expectation."""
    order = make_order([{"code": 0.5, "math": 0.3, "web": 0.2}, {"web": 1.0}], [20, 4], seed=5)
    turns = "".join(order.turn(i)[0][0] for i in range(24))
    assert turns == "mccmmcwwcccmccmwwccmwwww"
    assert [order.window(i).pieces for i in (3, 21)] == [((0, 4, 12),), ((24, 4, 6), (7, 0, 6))]


def test_sources_of_different_tokenizers_are_refused():
    sources = {"a": make_source("a", [9]), "b": replace(make_source("b", [9]), tokenizer="other")}
    with pytest.raises(DataError, match="different tokenizers"):
        DataOrder(MixtureSchedule((Phase("p", 3, {"a": 1.0}),)), sources, T)
