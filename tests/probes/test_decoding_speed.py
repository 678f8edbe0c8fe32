"""Decoding speed: what is measured is what decoding does, memory is counted right, what does not fit is skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from curation.documents import Document
from curation.errors import RecipeError
from probes.decoding_speed import SpeedSettings, cache_bytes, measure_speed, score_deployed
from probes.intervals import bits_per_byte
from probes.likelihood import score_documents, tokenize_documents
from probes.memory import available_bytes, peak_bytes, reset_peak
from probes.quantization import deploy
from tests.probes.tiny_evaluation import TEXTS, model_folder
from training.huggingface import load_huggingface, save_huggingface
from training.model import MOBILELLM_R1_140M, Decoder, ModelConfig
from training.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("speed")
    tokenizer = load_tokenizer(model_folder(place))
    config = ModelConfig(
        len(tokenizer), 128, 2, heads=4, kv_heads=2, head_dim=32, ffn_dim=256, max_positions=96,
        initializer_range=0.05, tied=True,
    )  # fmt: skip
    save_huggingface(Decoder(config).init_weights(1), place / "wide", tokenizer)
    return place / "wide"


def test_the_cache_of_the_paper_s_models_is_counted_right() -> None:
    # 15 layers, 3 heads of 64 for keys and for values, 2 bytes
    assert cache_bytes(MOBILELLM_R1_140M, 1024, torch.bfloat16) == 2 * 15 * 3 * 64 * 1024 * 2


def test_every_precision_is_measured_or_says_why_not(folder: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    told: list[dict[str, Any]] = []
    settings = SpeedSettings(
        contexts=(32, 64, 256), precisions=("float32", "bf16", "int8", "8da8w", "8da4w"),
        decode_tokens=4, repeats=2,
    )  # fmt: skip
    texts = [Document(str(n), text + str(n), "s") for n, text in enumerate(TEXTS)]
    tokenizer = load_tokenizer(folder)
    found = measure_speed(
        folder, settings, texts=texts, tokenizer=tokenizer,
        report=lambda now: told.append(json.loads(json.dumps(now))),
    )  # fmt: skip
    assert [len(now["precisions"]) for now in told] == [1, 2, 3, 4, 5]
    rows = {row["name"]: row for row in found["precisions"]}
    config = load_huggingface(folder).config
    for name, row in rows.items():
        small, large, beyond = row["cells"]
        assert "reads 96 positions" in beyond["skipped"]
        for cell in (small, large):
            assert 0 < cell["decode"]["low"] <= cell["decode"]["median"] <= cell["decode"]["high"]
            dtype = torch.float32 if name == "float32" else torch.bfloat16
            assert (
                cell["kv_cache_bytes"]
                == cell["kv_cache_measured"]
                == cache_bytes(config, cell["context"], dtype)
            )
            assert cell["prefill"]["tokens"] == cell["context"] - 4
    plain = sum(p.numel() for p in load_huggingface(folder).parameters())
    assert rows["float32"]["weight_bytes"] == rows["float32"]["packed_bytes"] == 4 * plain
    assert rows["bf16"]["weight_bytes"] == 2 * plain
    assert rows["8da4w"]["packed_bytes"] < rows["int8"]["packed_bytes"] < rows["bf16"]["weight_bytes"]
    moved = {name: abs(row["bits_per_byte"]["difference"]) for name, row in rows.items()}
    assert moved["float32"] == 0 < moved["int8"] < moved["8da4w"] and moved["bf16"] < moved["8da4w"]


def test_the_deployed_float32_model_scores_as_probes_do(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    texts = [Document(str(n), text * 3, "s") for n, text in enumerate(TEXTS[:2])]
    ours = score_deployed(deploy(folder, "float32"), texts, tokenizer)
    model = load_huggingface(folder)
    theirs = score_documents(model, tokenize_documents(texts, tokenizer), context=96, stride=48)
    assert ours["nats"].to_pylist() == pytest.approx(theirs["nats"].to_pylist(), rel=1e-5)
    assert bits_per_byte(ours) == pytest.approx(bits_per_byte(theirs), rel=1e-5)


def test_int8_weights_are_those_rounded_by_hand(folder: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    weight = load_huggingface(folder).layers[0].mlp.gate_proj.weight.detach()
    deployed = deploy(folder, "int8").decoder.layers[0].mlp.gate_proj
    scale = weight.abs().amax(1, keepdim=True) / 127.5
    by_hand = (weight / scale).round().clamp(-128, 127) * scale
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.allclose(deployed(x).float(), x @ by_hand.T, atol=2e-2 * float((x @ weight.T).abs().max()))


def test_what_does_not_fit_is_skipped_and_bad_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    small = SpeedSettings(contexts=(32, 90), precisions=("float32",), decode_tokens=2, repeats=1)
    weights = measure_speed(folder, small)["precisions"][0]["packed_bytes"]
    tight = SpeedSettings(
        contexts=(32, 90), precisions=("float32",), decode_tokens=2, repeats=1, memory_bytes=weights + 600_000
    )
    first, second = measure_speed(folder, tight)["precisions"][0]["cells"]
    assert "decode" in first and "out of memory" in second["skipped"]
    narrow = model_folder(tmp_path)  # a feed-forward of 48
    one = SpeedSettings(contexts=(16,), precisions=("8da4w",), decode_tokens=2, repeats=1)
    (row,) = measure_speed(narrow, one)["precisions"]
    assert "do not divide a width of 48" in row["skipped"]
    with pytest.raises(RecipeError, match="no precision 'int3'"):
        deploy(folder, "int3")
    with pytest.raises(RecipeError, match="must hold"):
        SpeedSettings(contexts=(16,), decode_tokens=16)
    with pytest.raises(RecipeError, match="a precision"):
        SpeedSettings(precisions=())


def test_the_peak_is_that_of_what_was_held() -> None:
    cpu = torch.device("cpu")
    if not reset_peak(cpu):
        pytest.skip("this machine does not let a process reset its peak")
    before = peak_bytes(cpu)
    held = torch.ones(16, 1 << 20)
    assert peak_bytes(cpu) - before >= held.nbytes * 0.9
    del held
    assert reset_peak(cpu) and peak_bytes(cpu) < before + (48 << 20)
    assert (available_bytes(cpu) or 1) > 0
