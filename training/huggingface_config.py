"""config.json of Hugging Face models, from and to a ModelConfig, refusing what the decoder cannot express."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from curation.errors import DataError
from training.model_config import Family, ModelConfig

ARCHITECTURES: dict[Family, str] = {
    "llama4_text": "Llama4ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# What transformers assumes where config.json is silent.
_DEFAULT_THETA: dict[Family, float] = {"llama4_text": 5e5, "llama": 1e4, "qwen2": 1e4, "qwen3": 1e4}
_DEFAULT_EPS: dict[Family, float] = {"llama4_text": 1e-5, "llama": 1e-6, "qwen2": 1e-6, "qwen3": 1e-6}
SUPPORTED = "Supported are dense " + ", ".join(ARCHITECTURES.values())


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
        # attention local to chunks of 8192. The released models name their layers' types, too, and llama.cpp's
        # converter takes all of this from the types alone.
        described |= {
            "intermediate_size_mlp": config.ffn_dim,
            "use_qk_norm": config.qk_norm == "l2_after_rope",
            "no_rope_layers": [1] * config.layers,
            "moe_layers": [],
            "interleave_moe_layer_step": 0,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "attention_chunk_size": config.max_positions,
            "layer_types": ["full_attention"] * config.layers,
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
    return DataError(f"{what}, which this decoder does not have", where=where, remedy=SUPPORTED)
