"""RankMe against the definition by numpy's singular values, by hand, and inside a training run."""

import json
import math

import numpy as np
import pytest
import torch

from curation.documents import Document, document_id
from curation.errors import DataError
from probes.in_run import probe_evaluation
from probes.rankme import EPSILON, rankme, rankme_of_model, representation_rankme
from tests.training.test_loop import make_order
from training.loop import TrainSettings, train
from training.model import Decoder, ModelConfig
from training.tokenizer import train_tokenizer


def defined(vectors: np.ndarray, epsilon: float = EPSILON) -> float:
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    shares = singular / singular.sum() + epsilon
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (9, 9), (1, 5)])
def test_it_is_the_definition(shape):
    vectors = np.random.default_rng(0).normal(size=shape) ** 3
    assert rankme(torch.tensor(vectors)) == pytest.approx(defined(vectors), rel=1e-9)
    half = torch.tensor(vectors).to(torch.bfloat16)
    assert rankme(half) == pytest.approx(defined(half.double().numpy()), rel=1e-9)


def test_by_hand():
    # Singular values 3 and 1: shares 3/4 and 1/4, entropy 0.75 log(4/3) + 0.25 log 4 = 0.56234 nats.
    expected = math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert expected == pytest.approx(1.7548, abs=1e-4)
    assert rankme(torch.tensor([[3.0, 0.0], [0.0, 1.0]])) == pytest.approx(expected, abs=1e-5)


def test_it_does_not_change_with_rotation_and_scale():
    vectors = torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    assert rankme(vectors @ turn * 1e-5) == pytest.approx(rankme(vectors), rel=1e-9)


@pytest.mark.parametrize("vectors", [torch.zeros(3, 3), torch.full((3, 3), math.nan), torch.ones(0, 3)])
def test_what_has_no_rank_is_refused(vectors):
    with pytest.raises(DataError):
        rankme(vectors)


def test_representations_are_the_states_of_each_text_alone():
    model = Decoder(ModelConfig(67, 16, 1, heads=2, kv_heads=1, head_dim=8, ffn_dim=16)).init_weights(0)
    texts = [[1, 5, 9, 30], [1, 7], [], [1] + list(range(2, 60))]
    with torch.no_grad():
        states = torch.cat([model(torch.tensor([text[:20]]))[0] for text in texts if text])
    found = representation_rankme(model, texts, context=20)
    assert found == pytest.approx(defined(states.double().numpy()), rel=1e-6)
    both = rankme_of_model(model, {"all": texts}, context=20)
    assert both["all"] == found
    assert both["embeddings"] == pytest.approx(
        defined(model.output_weight.detach().double().numpy()), rel=1e-6
    )


def test_a_run_logs_probe_losses_and_rankme(tmp_path):
    tokenizer = train_tokenizer(["some words about numbers and code"] * 4, 300, tmp_path / "tokenizer")
    texts = {"code": ["some words about code", "numbers"], "maths": ["words about numbers"]}
    probes = {
        name: [Document(document_id(name, text), text, name) for text in found]
        for name, found in texts.items()
    }
    order = make_order()
    vocabulary = max(len(tokenizer), max(source.vocab_size for source in order.sources.values()))
    config = ModelConfig(vocabulary, 16, 1, heads=2, kv_heads=1, head_dim=8, ffn_dim=16)
    settings = TrainSettings(
        sequence_tokens=order.sequence_tokens,
        batch_sequences=2,
        steps=4,
        learning_rate=1e-2,
        evaluate_steps=(0, 4),
        device="cpu",
    )
    evaluate = probe_evaluation(probes, tokenizer, context=16, stride=8)
    result = train(config, order, settings, tmp_path / "run", evaluate=evaluate)
    rows = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 4] and result.steps == 4
    names = {"bits_per_byte/code", "bits_per_byte/maths", "rankme/code", "rankme/maths", "rankme/embeddings"}
    assert names <= rows[0].keys() and rows[0]["rankme/code"] != rows[1]["rankme/code"]
    assert all(1 <= row[name] <= 16.01 for row in rows for name in names if name.startswith("rankme"))
