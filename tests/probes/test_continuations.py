"""Continuations are scored as lm-evaluation-harness and a bare forward pass of transformers score them."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import probes.continuations
from curation.errors import DataError
from probes.choice_scores import score_choice, summarize_choices, wilson_interval
from probes.continuations import Continuation, encode_pairs, score_continuations
from probes.task_scoring import Loaded
from tests.probes.tiny_evaluation import model_folder
from training.huggingface import load_huggingface
from training.model import Decoder, ModelConfig

CONFIG = ModelConfig(
    50, 32, 2, heads=2, kv_heads=1, head_dim=16, ffn_dim=48, max_positions=24, initializer_range=0.3
)
MODEL = Decoder(CONFIG).init_weights(0)
PAIRS = [
    ("Question: Which of these is a metal?\nAnswer:", " iron"),
    ("Question: Which of these is a metal?\nAnswer:", " iron and tin"),
    ("Question: Which of these is a metal?\nAnswer:", " a"),
    ("A space at the end ", "iron"),
    ("def f():\n", "    return 1\n"),
    ("iro", "n"),  # a tokenizer may merge across the boundary
    ("", " iron"),
    ("horse " * 200, " legs"),  # beyond the context
]


def bare(model: Decoder, pair: Continuation, context: int) -> float:
    """Token by token, each with as much before it as fits: for continuations that fit into one window."""
    begin = max(0, len(pair.ids) - 1 - context)
    ids = torch.from_numpy(pair.ids[begin:])[None]
    with torch.no_grad():
        logp = model.logits(model(ids[:, :-1])).double().log_softmax(-1)[0]
    scored = range(pair.first - begin, ids.shape[1])
    return -sum(float(logp[t - 1, ids[0, t]]) for t in scored)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_equals_one_at_a_time_whatever_the_batch_and_shared_beginnings(data: st.DataObject) -> None:
    alphabet = st.integers(0, 2)  # few tokens: many sequences begin others
    pairs = []
    for _ in range(data.draw(st.integers(1, 12))):
        ids = np.array(data.draw(st.lists(alphabet, min_size=2, max_size=40)), dtype=np.int64)
        first = data.draw(st.integers(max(1, len(ids) - 24), len(ids) - 1))
        pairs.append(Continuation(ids, first))
    nats = score_continuations(MODEL, pairs, context=24, batch_tokens=data.draw(st.integers(1, 200)))
    assert nats == pytest.approx([bare(MODEL, pair, 24) for pair in pairs], rel=1e-5, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_shared_contexts_change_nothing(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    pairs = []
    for _ in range(data.draw(st.integers(1, 4))):
        before = rng.integers(0, 50, data.draw(st.integers(2, 15)))
        for _ in range(data.draw(st.integers(1, 4))):
            tail = rng.integers(0, 50, data.draw(st.integers(1, 8)))
            pairs.append(Continuation(np.concatenate([before, tail]), len(before)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes.continuations, "SHARED_TOKENS", 2)
        nats = score_continuations(MODEL, pairs, context=24, batch_tokens=data.draw(st.integers(1, 300)))
    assert nats == pytest.approx([bare(MODEL, pair, 24) for pair in pairs], rel=1e-5, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_shared_beginnings_change_nothing(data: st.DataObject) -> None:
    """Few-shot examples of several subjects: contexts that begin alike, with several continuations each."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    pairs = []
    for _ in range(data.draw(st.integers(1, 3))):
        shots = rng.integers(0, 50, data.draw(st.integers(3, 12)))
        for _ in range(data.draw(st.integers(1, 4))):
            before = np.concatenate([shots, rng.integers(0, 50, data.draw(st.integers(0, 6)))])
            for _ in range(data.draw(st.integers(1, 3))):
                tail = rng.integers(0, 50, data.draw(st.integers(1, 8)))
                pairs.append(Continuation(np.concatenate([before, tail]), len(before)))
    order = rng.permutation(len(pairs))
    pairs = [pairs[i] for i in order]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes.continuations, "BEGINNING_TOKENS", 2)
        nats = score_continuations(MODEL, pairs, context=24, batch_tokens=data.draw(st.integers(1, 300)))
        many = [pair for pair in pairs if pair.first > 2]
        event = "shared" if many and probes.continuations._beginnings(many, 24)[0] else "alone"
    hypothesis.event(event)
    assert nats == pytest.approx([bare(MODEL, pair, 24) for pair in pairs], rel=1e-5, abs=1e-5)


def test_few_shot_examples_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens that go through the layers are those of the beginning, once, and of what follows it."""
    rng = np.random.default_rng(1)
    monkeypatch.setattr(probes.continuations, "BEGINNING_TOKENS", 8)
    shots = rng.integers(0, 50, 12)
    pairs = [Continuation(np.concatenate([shots, rng.integers(0, 50, 6)]), 15) for _ in range(10)]
    fed: list[int] = []
    hook = MODEL.layers[0].register_forward_pre_hook(lambda _, given: fed.append(given[0].numel() // 32))
    try:
        nats = score_continuations(MODEL, pairs, context=24, batch_tokens=1000)
    finally:
        hook.remove()
    assert sum(fed) <= 12 + 10 * 6 < sum(len(pair.ids) - 1 for pair in pairs)
    assert nats == pytest.approx([bare(MODEL, pair, 24) for pair in pairs], rel=1e-5)


def test_a_continuation_longer_than_the_context_scores_each_token_once() -> None:
    pair = Continuation(np.random.default_rng(0).integers(0, 50, 100), 10)
    whole = score_continuations(MODEL, [pair], context=24)[0]
    parts = [
        Continuation(pair.ids[:end], first)
        for first, end in zip(range(10, 100, 12), [*range(22, 100, 12), 100], strict=True)
    ]
    assert whole == pytest.approx(score_continuations(MODEL, parts, context=24).sum(), rel=1e-6)
    assert pair.dropped(24) == 0 and Continuation(pair.ids, 60).dropped(24) > 0


def test_values_that_are_not_numbers_are_refused() -> None:
    model = Decoder(CONFIG).init_weights(0)
    with torch.no_grad():
        model.embed_tokens.weight[7] = float("nan")
    with pytest.raises(DataError, match="no finite log-probability"):
        score_continuations(model, [Continuation(np.array([1, 7, 3]), 2)], context=24)
    with pytest.raises(DataError, match="token 50"):
        score_continuations(MODEL, [Continuation(np.array([1, 50]), 1)], context=24)


@pytest.mark.parametrize("bos", [True, False])
def test_equals_the_harness_on_the_exported_folder(bos: bool, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    folder = model_folder(tmp_path)
    loaded = Loaded.of(folder, context=None, bos=bos, batch_tokens=512)
    harness = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(folder), tokenizer=loaded.tokenizer, batch_size=1,
        max_length=loaded.context, add_bos_token=bos, device="cpu",
    )  # fmt: skip
    # The harness gives a continuation that was merged away no token at all.
    pairs = [p for p in PAIRS if len(loaded.encode(["".join(p)])[0]) > len(loaded.encode([p[0]])[0])]
    assert len(pairs) >= 6
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    theirs = [-value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)]
    encoded = loaded.pairs(pairs)
    assert loaded.nats(encoded) == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert encoded[-1].dropped(loaded.context) > 0 == encoded[0].dropped(loaded.context)


def test_tokens_are_split_at_the_context(tmp_path: Path) -> None:
    loaded = Loaded.of(model_folder(tmp_path), context=None, bos=True, batch_tokens=512)
    for pair, encoded in zip(PAIRS, loaded.pairs(PAIRS), strict=True):
        assert loaded.tokenizer.decode(encoded.ids[1:]) == "".join(pair)
        assert encoded.ids[0] == loaded.tokenizer.bos_token_id and encoded.tokens >= 1
    with pytest.raises(DataError, match="continuation is empty"):
        encode_pairs(loaded.encode, [("a", "")], 0, True)
    assert load_huggingface(tmp_path / "model").config.max_positions == loaded.context


def test_choice_scores_by_hand() -> None:
    score = score_choice([2.0, 3.0, 2.0], [1, 3, 2], ["é", "abcdef", "ab"], [1.0, 2.5, 4.0], gold=2)
    assert score.picked == {"none": 0, "per_token": 1, "per_char": 1, "per_byte": 1, "pmi": 2}
    assert score.tied == {"none": True, "per_token": True, "per_char": False, "per_byte": False, "pmi": False}
    e2, e3 = np.exp(-2), np.exp(-3)
    assert score.correct_prob == pytest.approx(e2)
    assert score.total_prob == pytest.approx(2 * e2 + e3)
    assert score.norm_correct_prob == pytest.approx(e2 / (2 * e2 + e3))
    assert score.margin == 0
    other = score_choice([5.0, 1.0], [1, 1], ["a", "b"], [1.0, 1.0], gold=1)
    metrics = summarize_choices([score, other])
    assert metrics["accuracy_none"]["value"] == 0.5 and metrics["accuracy_none"]["ties"] == 1
    assert metrics["accuracy_none"]["stderr"] == pytest.approx(0.5)  # sqrt(0.5) / sqrt(2)
    assert metrics["chance"]["value"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    shares = e2 / (2 * e2 + e3), 1 / (1 + np.exp(-4))
    low = sum(shares) / 2 - 1.96 * (shares[1] - shares[0]) / 2
    assert metrics["norm_correct_prob"]["low"] == pytest.approx(low, abs=1e-4)
    assert metrics["norm_correct_prob"]["high"] == 1.0  # and not 1.25: it is a probability
    with pytest.raises(DataError, match="not a finite"):
        score_choice([float("nan"), 1.0], [1, 1], ["a", "b"], [1.0, 1.0], gold=0)


@pytest.mark.parametrize(("right", "n"), [(0, 7), (3, 10), (10, 10), (512, 1172)])
def test_wilson_equals_scipy(right: int, n: int) -> None:
    from scipy.stats import binomtest

    theirs = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
