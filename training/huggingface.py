"""Hugging Face model folders in and out: bit-equal weights, equal logits to transformers' own classes.

Read and written without transformers (only a tokenizer needs it), so a folder with a feature that the decoder
does not have is refused with a sentence instead of being loaded wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation.atomic import replacing_folder, write_json
from curation.errors import DataError
from training.model import Decoder, Family, ModelConfig

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ARCHITECTURES: dict[Family, str] = {
    "llama4_text": "Llama4ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# What transformers assumes where config.json is silent.
_DEFAULT_THETA: dict[Family, float] = {"llama4_text": 5e5, "llama": 1e4, "qwen2": 1e4, "qwen3": 1e4}
_DEFAULT_EPS: dict[Family, float] = {"llama4_text": 1e-5, "llama": 1e-6, "qwen2": 1e-6, "qwen3": 1e-6}
_SUPPORTED = "Supported are dense " + ", ".join(ARCHITECTURES.values())


def save_huggingface(
    model: Decoder,
    folder: Path | str,
    tokenizer: Any = None,
    generation: dict[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write `model` as a folder that transformers, vLLM and llama.cpp's converter load. Atomic.

    tokenizer  : a transformers tokenizer, saved beside the weights; its special tokens go into the configs
    generation : entries of generation_config.json, for example {"temperature": 0.6, "do_sample": True}
    dtype      : precision of the file; by default that of the parameters, so that the bits are the same

    The same model gives the same bytes. Raises DataError when the tokenizer has more tokens than the model.
    """
    if tokenizer is not None and len(tokenizer) > model.config.vocab_size:
        raise DataError(
            f"The tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size}",
            where=str(folder),
            remedy="Save the model with the tokenizer it was trained with",
        )
    state = {
        _to_huggingface(name, model.config.family): parameter.detach()
        .to("cpu", dtype or parameter.dtype)
        .contiguous()
        for name, parameter in model.named_parameters()
    }
    from training.tokenizer import write_tokenizer  # here, because it imports transformers

    special = _special_tokens(tokenizer)
    described = config_to_huggingface(model.config) | special
    described["torch_dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
    with replacing_folder(folder) as temporary:
        if tokenizer is not None:
            write_tokenizer(tokenizer, temporary)
        write_json(temporary / "config.json", described)
        write_json(temporary / "generation_config.json", special | (generation or {}))
        save_file(state, temporary / WEIGHTS, metadata={"format": "pt"})


def load_huggingface(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> Decoder:
    """Read a Hugging Face folder (safetensors, one file or shards) into a Decoder of `dtype` parameters.

    Raises DataError naming the file or tensor when a part is missing or of another shape, or a feature of the
    checkpoint is not one of the decoder's.
    """
    folder = Path(folder)
    config = config_from_huggingface(read_config(folder), where=str(folder / "config.json"))
    state = {_from_huggingface(name): tensor for name, tensor in _read_weights(folder).items()}
    if config.tied:
        state.pop("lm_head.weight", None)  # some exporters write the tied copy; transformers ignores it too
    with torch.device("meta"):
        model = Decoder(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    _check_state({name: tuple(t.shape) for name, t in state.items()}, expected, folder)
    # A copy, so that the parameters are plain memory and not a view of the file.
    state = {name: tensor.to(dtype, copy=True) for name, tensor in state.items()}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(True)


def read_config(folder: Path | str) -> dict[str, Any]:
    """The config.json of a model folder."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise DataError(
            "This is not a Hugging Face model folder: there is no config.json",
            where=str(folder),
            remedy="Give the folder that holds config.json and model.safetensors",
        )
    return _read_json(path)


def config_to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """The entries of config.json for `config`, in the names that transformers 4 and 5 both read."""
    described: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "tie_word_embeddings": config.tied,
        "attention_bias": config.qkv_bias,
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    if config.family == "llama":
        described["mlp_bias"] = False
    elif config.family == "llama4_text":
        # Left to themselves, these make every fourth layer position-free, each layer a mixture of experts and
        # attention local to chunks of 8192.
        described |= {
            "intermediate_size_mlp": config.ffn_dim,
            "use_qk_norm": config.qk_norm == "l2_after_rope",
            "no_rope_layers": [1] * config.layers,
            "moe_layers": [],
            "interleave_moe_layer_step": 0,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "attention_chunk_size": config.max_positions,
            "attn_temperature_tuning": False,
        }
    else:
        described["use_sliding_window"] = False
    return described


def config_from_huggingface(described: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """The ModelConfig of a parsed config.json. Raises DataError for what the decoder cannot express."""
    family = described.get("model_type")
    if family not in ARCHITECTURES:
        raise _unsupported(f"The model is of type {family!r}", where)
    for named in described.get("architectures") or []:
        if named != ARCHITECTURES[family]:
            raise _unsupported(f"The model is a {named}", where)
    for absent in _unsupported_features(described, family):
        raise _unsupported(f"The model uses {absent}", where)
    theta, scaling = _rope(described, family, where)
    ffn_name = "intermediate_size_mlp" if family == "llama4_text" else "intermediate_size"
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", ffn_name)
    missing = [name for name in needed if not isinstance(described.get(name), int)]
    if missing:
        raise DataError(
            f"The config lacks {', '.join(missing)}", where=where, remedy="Download the model again"
        )
    vocab_size, dim, layers, heads, ffn_dim = (described[name] for name in needed)
    return ModelConfig(
        vocab_size=vocab_size,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=described.get("num_key_value_heads") or heads,
        head_dim=described.get("head_dim") or dim // heads,
        ffn_dim=ffn_dim,
        rope_theta=theta,
        rope_style="interleaved" if family == "llama4_text" else "half",
        rope_scaling=scaling,
        qk_norm=_qk_norm(described, family),
        qkv_bias=family == "qwen2",
        tied=bool(described.get("tie_word_embeddings", False)),
        norm_eps=described.get("rms_norm_eps", _DEFAULT_EPS[family]),
        max_positions=described.get("max_position_embeddings", 2048),
        initializer_range=described.get("initializer_range", 0.02),
        family=family,
    )


def _qk_norm(described: dict[str, Any], family: Family) -> Any:
    if family == "llama4_text":
        return "l2_after_rope" if described.get("use_qk_norm", True) else "none"
    return "rms_before_rope" if family == "qwen3" else "none"


def _unsupported_features(described: dict[str, Any], family: Family) -> Iterable[str]:
    layers = described.get("num_hidden_layers") or 0
    if described.get("hidden_act", "silu") != "silu":
        yield f"the activation {described['hidden_act']!r}, not SwiGLU's 'silu'"
    if described.get("quantization_config"):
        yield "quantised weights"
    if described.get("mlp_bias") or (family != "qwen2" and described.get("attention_bias")):
        yield "biases in its projections"
    if described.get("use_sliding_window") or "sliding_attention" in (described.get("layer_types") or ()):
        yield "sliding-window attention"
    if family != "llama4_text":
        return
    # transformers' own defaults are position-free layers and experts, so silence means that they are there.
    if (described.get("no_rope_layers") or [0]) != [1] * layers:
        yield "layers without rotary positions (no_rope_layers is not all 1)"
    step = described.get("interleave_moe_layer_step", 1)
    if described.get("moe_layers") if described.get("moe_layers") is not None else step:
        yield "a mixture of experts"
    if (described.get("attention_chunk_size") or 8192) < described.get("max_position_embeddings", 131072):
        yield "chunked attention (attention_chunk_size is below max_position_embeddings)"


def _rope(described: dict[str, Any], family: Family, where: str) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling, from transformers 5's rope_parameters or the older rope_theta and rope_scaling."""
    given = dict(described.get("rope_parameters") or described.get("rope_scaling") or {})
    theta = given.pop("rope_theta", None) or described.get("rope_theta") or _DEFAULT_THETA[family]
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise _unsupported(f"The model uses rotary scaling of type {kind!r} (known: linear, llama3)", where)
    if (given.get("partial_rotary_factor") or described.get("partial_rotary_factor") or 1.0) != 1.0:
        raise _unsupported("The model turns only a part of each head (partial_rotary_factor)", where)
    if kind == "default":
        return float(theta), None
    given.pop("type", None)
    return float(theta), given | {"rope_type": kind}


def _unsupported(what: str, where: str) -> DataError:
    return DataError(f"{what}, which this decoder does not have", where=where, remedy=_SUPPORTED)


def _to_huggingface(name: str, family: Family) -> str:
    if name == "lm_head.weight":
        return name
    return "model." + (name.replace(".mlp.", ".feed_forward.") if family == "llama4_text" else name)


def _from_huggingface(name: str) -> str:
    return name.removeprefix("model.").replace(".feed_forward.", ".mlp.")


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name, None) is not None}


def _read_weights(folder: Path) -> dict[str, Tensor]:
    index = folder / INDEX
    files = {WEIGHTS}
    if not (folder / WEIGHTS).is_file() and index.is_file():
        files = set(_read_json(index).get("weight_map", {}).values())
    state: dict[str, Tensor] = {}
    for name in sorted(files):
        # An index is data from elsewhere: it may not point out of its folder.
        if Path(name).name != name or not (folder / name).is_file():
            raise DataError(
                f"The weights file {name} is missing",
                where=str(folder),
                remedy="Download the model again; weights in other formats than safetensors are not read",
            )
        try:
            state |= load_file(folder / name)
        except SafetensorError as error:
            raise DataError(
                f"The weights cannot be read: {error}",
                where=str(folder / name),
                remedy="Download the file again",
            ) from error
    return {name: tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}


def _check_state(
    found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], folder: Path
) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    for names, what in ((missing, "lack"), (extra, "hold more than the decoder has:")):
        if names:
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise DataError(f"The weights {what} {listed}", where=str(folder), remedy=_SUPPORTED)
    for name, shape in expected.items():
        if found[name] != shape:
            raise DataError(
                f"The tensor {name} has the shape {list(found[name])}, but config.json implies {list(shape)}",
                where=str(folder),
                remedy="Use the config.json that belongs to these weights",
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"The file is not JSON: {error}", where=str(path), remedy="Download it again"
        ) from error
    if not isinstance(value, dict):
        raise DataError("The file does not hold a JSON object", where=str(path), remedy="Download it again")
    return value
