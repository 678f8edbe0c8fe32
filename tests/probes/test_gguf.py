"""llama.cpp's own converter on exported folders, where it is installed; how it is called, everywhere."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curation.errors import DataError, MachineError, RecipeError
from tests.probes.tiny_evaluation import TEXTS
from training.gguf_conversion import CONVERTER, CONVERTER_VARIABLE, convert_to_gguf, has_our_rule
from training.huggingface import save_huggingface
from training.model import Decoder
from training.model_config import ModelConfig
from training.tokenizer import train_tokenizer

INSTALLED = os.environ.get(CONVERTER_VARIABLE) or shutil.which(CONVERTER)
SMALL = ModelConfig(320, 32, 2, heads=4, kv_heads=2, head_dim=8, ffn_dim=64, max_positions=128)
SHAPES = {
    "llama4_text": SMALL,
    "llama": replace(SMALL, family="llama", rope_style="half", qk_norm="none", tied=False),
    "qwen2": replace(SMALL, family="qwen2", rope_style="half", qk_norm="none", qkv_bias=True),
    "qwen3": replace(SMALL, family="qwen3", rope_style="half", qk_norm="rms_before_rope", tied=False),
}
# A converter of as few lines: as one file, and as a file beside a package of modules.
FAKE = """
import sys
class TextModel:
    def get_vocab_base_pre(self, tokenizer):
        raise NotImplementedError("BPE pre-tokenizer was not recognized")
"""
MAIN = """
def main():
    open(sys.argv[sys.argv.index("--outfile") + 1], "w").write(TextModel().get_vocab_base_pre(None))
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _exported(tmp_path_factory.mktemp("gguf"), SMALL)


def _exported(folder: Path, config: ModelConfig) -> Path:
    tokenizer = train_tokenizer(TEXTS, 320, folder / "tokenizer")
    model = Decoder(replace(config, vocab_size=len(tokenizer) + 3)).init_weights(0)
    for parameter in model.parameters():  # gains and biases, too, so that none can be lost
        parameter.data += 0.2 * torch.rand_like(parameter)
    save_huggingface(model, folder / "model", tokenizer)
    return folder / "model"


@pytest.mark.parametrize("layout", ["file", "package"])
def test_the_converter_is_told_the_rule_of_our_tokenizers_alone(
    folder: Path, tmp_path: Path, layout: str
) -> None:
    program = tmp_path / CONVERTER
    if layout == "file":
        program.write_text(FAKE + MAIN)
    else:
        (tmp_path / "conversion").mkdir()
        (tmp_path / "conversion" / "__init__.py").touch()
        (tmp_path / "conversion" / "base.py").write_text(FAKE)
        program.write_text("import sys\nfrom conversion.base import TextModel\n" + MAIN)
    assert convert_to_gguf(folder, tmp_path / "a" / "m.gguf", converter=program).read_text() == "qwen2"
    other = shutil.copytree(folder, tmp_path / "other")
    described = json.loads((other / "tokenizer.json").read_text())
    described["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|x"
    (other / "tokenizer.json").write_text(json.dumps(described))
    assert has_our_rule(folder) and not has_our_rule(other) and not has_our_rule(tmp_path)
    with pytest.raises(DataError, match="was not recognized"):
        convert_to_gguf(other, tmp_path / "o.gguf", converter=program)
    assert not [path for path in tmp_path.iterdir() if "gguf" in path.suffix or path.name.startswith(".")]


def test_what_cannot_be_converted_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="no output type 'q2'"):
        convert_to_gguf(folder, tmp_path / "m.gguf", output_type="q2")
    with pytest.raises(MachineError, match="is not there"):
        convert_to_gguf(folder, tmp_path / "m.gguf", converter=tmp_path / CONVERTER)
    monkeypatch.delenv(CONVERTER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"not on the path.*--converter"):
        convert_to_gguf(folder, tmp_path / "m.gguf")
    program = tmp_path / CONVERTER
    program.write_text(FAKE + MAIN)
    with pytest.raises(DataError, match=r"no config\.json"):
        convert_to_gguf(tmp_path, tmp_path / "m.gguf", converter=program)


@pytest.mark.skipif(
    INSTALLED is None, reason=f"llama.cpp's {CONVERTER} is not on the path, nor named in {CONVERTER_VARIABLE}"
)
@pytest.mark.parametrize("family", SHAPES)
def test_every_family_converts_and_its_tensors_are_ours(family: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = _exported(tmp_path, SHAPES[family])
    out = convert_to_gguf(folder, tmp_path / "model.gguf", output_type="f32")
    assert out.read_bytes()[:4] == b"GGUF"
    gguf = pytest.importorskip("gguf", reason="the gguf package, to read what was written, is not installed")
    reader = gguf.GGUFReader(out)
    described = {name: field.contents() for name, field in reader.fields.items()}
    architecture = described["general.architecture"]
    assert architecture == {"llama4_text": "llama4"}.get(family, family)
    assert described["tokenizer.ggml.pre"] == "qwen2" and described["tokenizer.ggml.add_bos_token"]
    if (
        family == "llama4_text"
    ):  # else llama.cpp takes the fourth layers as position-free, and attention as local
        assert described["llama4.attention.sliding_window"] == 0
        assert described["llama4.interleave_moe_layer_step"] == 0
    found = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    expected = {_gguf_name(name): array for name, array in load_file(folder / "model.safetensors").items()}
    assert set(found) == set(expected)
    for name, array in expected.items():
        wanted = _pairs_interleaved(array, name) if family == "llama" else array
        np.testing.assert_array_equal(found[name].reshape(wanted.shape), wanted, err_msg=name)


def _gguf_name(name: str) -> str:
    """GGUF's name of one of transformers'."""
    parts = name.removeprefix("model.").removeprefix("language_model.").split(".")
    if parts[0] != "layers":
        return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[
            parts[0]
        ] + ".weight"
    kind = {
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "q_norm": "attn_q_norm",
        "k_norm": "attn_k_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }[parts[-2]]  # fmt: skip
    return f"blk.{parts[1]}.{kind}.{parts[-1]}"


def _pairs_interleaved(array: np.ndarray, name: str) -> Any:
    """Llama's queries and keys in llama.cpp's order: each pair that rotates together stands together."""
    heads = {"attn_q": SMALL.heads, "attn_k": SMALL.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return array
    half = SMALL.head_dim // 2
    return array.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(array.shape)
