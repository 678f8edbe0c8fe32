"""One Llama-family decoder whose few switches cover MobileLLM-R1, Llama 3, SmolLM2, Qwen2.5 and Qwen3.

The module names are those of Hugging Face checkpoints, so that training.huggingface only renames prefixes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation.errors import DataError, RecipeError
from training.attention import (
    Attention,
    KVCache,
    attend,
    choose_attention,
    document_mask,
    rotary_frequencies,
    rotate,
    rotation,
)

RopeStyle = Literal["interleaved", "half"]
QKNorm = Literal["none", "l2_after_rope", "rms_before_rope"]
Family = Literal["llama4_text", "llama", "qwen2", "qwen3"]

# What the Hugging Face class of a family can express; refused when a model is made, not when it is exported.
FAMILY_SWITCHES: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama4_text": {
        "rope_style": ("interleaved",),
        "qk_norm": ("l2_after_rope", "none"),
        "qkv_bias": (False,),
    },
    "llama": {"rope_style": ("half",), "qk_norm": ("none",), "qkv_bias": (False,)},
    "qwen2": {"rope_style": ("half",), "qk_norm": ("none",), "qkv_bias": (True,)},
    "qwen3": {"rope_style": ("half",), "qk_norm": ("rms_before_rope",), "qkv_bias": (False,)},
}


@dataclass(frozen=True)
class ModelConfig:
    """Shape and switches of a decoder; the defaults are MobileLLM-R1's (arXiv 2509.24945, released weights).

    vocab_size, dim, layers, heads, kv_heads, head_dim, ffn_dim : sizes; `heads` is a multiple of `kv_heads`
    rope_theta, rope_style, rope_scaling : rotary positions, see training.attention
    qk_norm  : "l2_after_rope" divides queries and keys by their root mean square after the rotation, without
               a weight (MobileLLM-R1); "rms_before_rope" is Qwen3's learned RMS norm before it
    qkv_bias : Qwen2.5's biases on the three input projections
    tied     : the output weight is the embedding
    family   : the Hugging Face model type under which it is exported
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    rope_theta: float = 1_000_000.0
    rope_style: RopeStyle = "interleaved"
    rope_scaling: dict[str, Any] | None = None
    qk_norm: QKNorm = "l2_after_rope"
    qkv_bias: bool = False
    tied: bool = True
    norm_eps: float = 1e-5
    max_positions: int = 4096
    initializer_range: float = 0.02
    family: Family = "llama4_text"

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "dim",
            "layers",
            "heads",
            "kv_heads",
            "head_dim",
            "ffn_dim",
            "max_positions",
        ):
            if getattr(self, name) < 1:
                raise RecipeError(
                    f"{name} is {getattr(self, name)}", where="model", remedy="Give a positive number"
                )
        if self.heads % self.kv_heads:
            raise RecipeError(
                f"{self.heads} attention heads cannot share {self.kv_heads} key heads evenly",
                where="model.kv_heads",
                remedy="Make heads a multiple of kv_heads",
            )
        if self.head_dim % 2:
            raise RecipeError(
                f"head_dim is {self.head_dim}, but rotary positions turn pairs",
                where="model.head_dim",
                remedy="Make it even",
            )

        wanted = FAMILY_SWITCHES.get(self.family)
        if wanted is None:
            raise RecipeError(
                f"There is no model family {self.family!r}",
                where="model.family",
                remedy=f"Choose one of {', '.join(FAMILY_SWITCHES)}",
            )
        for name, allowed in wanted.items():
            if getattr(self, name) not in allowed:
                raise RecipeError(
                    f"A {self.family} model cannot have {name} = {getattr(self, name)!r}",
                    where=f"model.{name}",
                    remedy=f"Set it to {' or '.join(map(repr, allowed))}, or change the family",
                )

    def parameters(self) -> int:
        """Number of trainable numbers; a tied output weight counts once.

        >>> MOBILELLM_R1_140M.parameters()
        140248512
        """
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.dim * (2 * queries + 2 * keys) + (queries + 2 * keys if self.qkv_bias else 0)
        norms = 2 * self.dim + (2 * self.head_dim if self.qk_norm == "rms_before_rope" else 0)
        embeddings = self.vocab_size * self.dim * (1 if self.tied else 2)
        return embeddings + self.layers * (attention + 3 * self.dim * self.ffn_dim + norms) + self.dim

    def flops_per_token(self, context: int) -> float:
        """Floating-point operations to train on one token of rows of `context` tokens, output head included.

        Six per parameter that is multiplied (a look-up in an untied embedding is not), and 6 L H d `context`
        for causal attention, in which a token reads half of the row on average. A forward pass is a third.
        """
        multiplied = self.parameters() - (0 if self.tied else self.vocab_size * self.dim)
        return 6.0 * multiplied + 6.0 * self.layers * self.heads * self.head_dim * context


MOBILELLM_R1_140M = ModelConfig(128_256, 576, 15, heads=9, kv_heads=3, head_dim=64, ffn_dim=2048)
MOBILELLM_R1_360M = ModelConfig(128_256, 1024, 15, heads=16, kv_heads=4, head_dim=64, ffn_dim=4096)
MOBILELLM_R1_950M = ModelConfig(128_256, 1536, 22, heads=24, kv_heads=6, head_dim=64, ffn_dim=6144)
PRESETS: dict[str, ModelConfig] = {
    "mobilellm-r1-140m": MOBILELLM_R1_140M,
    "mobilellm-r1-360m": MOBILELLM_R1_360M,
    "mobilellm-r1-950m": MOBILELLM_R1_950M,
    # One minute on a CPU: the proxy models of the quickstart.
    "tiny": ModelConfig(8192, 128, 4, heads=4, kv_heads=2, head_dim=32, ffn_dim=384, max_positions=2048),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """A named shape, with `changes` (for example `vocab_size`) applied."""
    if name not in PRESETS:
        raise RecipeError(
            f"There is no model preset {name!r}", remedy=f"Choose one of {', '.join(sorted(PRESETS))}"
        )
    return replace(PRESETS[name], **changes)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned gain, computed in float32 or more."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * unit_rms(x, self.eps)


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """`x` over the root mean square of its last axis, computed in float32 or more."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class SelfAttention(nn.Module):
    """Grouped-query causal attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.config = config
        self.q_proj = nn.Linear(config.dim, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.dim, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.dim, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.dim, bias=False)
        if config.qk_norm == "rms_before_rope":
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, flow: Flow, layer: int) -> Tensor:
        config, split = self.config, (-1, self.config.head_dim)
        query, key, value = (
            p(x).unflatten(-1, split).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        if config.qk_norm == "rms_before_rope":
            query, key = self.q_norm(query), self.k_norm(key)
        query = rotate(query, flow.cos, flow.sin, config.rope_style)
        key = rotate(key, flow.cos, flow.sin, config.rope_style)
        if config.qk_norm == "l2_after_rope":
            query, key = unit_rms(query, config.norm_eps), unit_rms(key, config.norm_eps)
        query, key = query.to(value.dtype), key.to(value.dtype)  # autocast: the products in bfloat16
        if flow.cache is not None:
            key, value = flow.cache.write(layer, key, value)
        return self.o_proj(attend(query, key, value, flow.mask, flow.kernel).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@dataclass(frozen=True)
class Flow:
    """What the layers of one forward pass share: rotation, mask (None = causal), kernel and cache."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    kernel: Attention
    cache: KVCache | None


class Layer(nn.Module):
    """Attention and feed-forward, each after a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, flow: Flow, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), flow, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The model: tokens in, hidden states out; logits are made by the losses, in chunks, or by `logits`.

    Parameters stay in the precision they have (float32). Under `torch.autocast(device, torch.bfloat16)` the
    matrix products run in bfloat16; residual stream, norms, rotations and softmax stay in float32.
    `attention` may be set to "sdpa", "eager" (for forward-mode AD and vmap) or "auto" at any time.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention: Attention = "auto"
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = None if config.tied else nn.Linear(config.dim, config.vocab_size, bias=False)
        self.frequencies = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)

    @property
    def output_weight_name(self) -> str:
        """Name of the output weight among `named_parameters`."""
        return "embed_tokens.weight" if self.lm_head is None else "lm_head.weight"

    @property
    def output_weight(self) -> Tensor:
        """The output weight [vocab_size, dim]; the embedding itself when tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab_size] of hidden states [..., dim]. Large: to train, use training.losses."""
        return F.linear(hidden, self.output_weight)

    def init_weights(self, seed: int) -> Decoder:
        """Draw every matrix from N(0, initializer_range^2) by `seed` alone; gains 1, biases 0. Returns self.

        The draw is made on the CPU in float32, so that every machine starts from the same numbers.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 1:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                    continue
                drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
                parameter.copy_(drawn.normal_(0.0, self.config.initializer_range, generator=generator))
        return self

    def new_cache(self, rows: int, max_tokens: int, dtype: torch.dtype | None = None) -> KVCache:
        """An empty decoding cache: `rows` rows of at most `max_tokens` tokens, prompt and answer together."""
        weight = self.embed_tokens.weight
        shape = (self.config.layers, rows, self.config.kv_heads, max_tokens, self.config.head_dim)
        keys, values = (
            torch.zeros(shape, dtype=dtype or weight.dtype, device=weight.device) for _ in range(2)
        )
        return KVCache(keys, values, torch.zeros(rows, dtype=torch.int64, device=weight.device))

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states [B, T, dim] after the final norm.

        input_ids    : int64 [B, T]
        positions    : int64 [B, T] for the rotation; counted from the row's start (or its cache) if not given
        document_ids : int64 [B, T]; a token reads only earlier-or-equal tokens of the same id in its row
        cache        : the tokens continue each row of it, and are added to it; not together with document_ids
        """
        rows, tokens = input_ids.shape
        mask = None if document_ids is None else document_mask(document_ids)
        if cache is not None:
            mask, positions = self._continue(cache, rows, tokens, document_ids, positions)
        if positions is None:
            positions = torch.arange(tokens, device=input_ids.device)[None]
        x = self.embed_tokens(input_ids)
        keys = tokens if cache is None else cache.used + tokens
        cos, sin = rotation(positions, self.frequencies, x.dtype)
        flow = Flow(cos, sin, mask, choose_attention(self.attention, x.device, tokens, keys), cache)
        for index, layer in enumerate(self.layers):
            x = layer(x, flow, index)
        if cache is not None:
            cache.advance(tokens)
        return self.norm(x)

    @staticmethod
    def _continue(
        cache: KVCache, rows: int, tokens: int, document_ids: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if document_ids is not None or positions is not None:
            raise DataError(
                "Decoding with a cache knows its own positions and one document per row",
                where="Decoder.forward",
                remedy="Leave out document_ids and positions, or the cache",
            )
        if rows != len(cache.lengths) or cache.used + tokens > cache.max_tokens:
            raise DataError(
                f"{rows} rows of {tokens} more tokens do not fit a cache of {len(cache.lengths)} rows with "
                f"{cache.used} of {cache.max_tokens} slots used",
                where="Decoder.forward",
                remedy="Make the cache with new_cache(rows, prompt + answer tokens)",
            )
        return cache.mask(tokens), cache.positions(tokens)
