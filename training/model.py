"""One Llama-family decoder whose few switches cover MobileLLM-R1, Llama 3, SmolLM2, Qwen2.5 and Qwen3.

The module names are those of Hugging Face checkpoints, so that training.huggingface only renames prefixes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation.errors import DataError
from training.attention import (
    Attention,
    KVCache,
    attend,
    attend_documents,
    choose_attention,
    document_bounds,
    document_mask,
    has_varlen,
    rotary_frequencies,
    rotate,
    rotation,
)
from training.fused_layer import FUSED_TOKENS, FusedLayer, LayerShape, shared_by_layers
from training.model_config import (
    MOBILELLM_R1_140M,
    MOBILELLM_R1_360M,
    MOBILELLM_R1_950M,
    PRESETS,
    Family,
    ModelConfig,
    preset,
)

__all__ = [
    "MOBILELLM_R1_140M",
    "MOBILELLM_R1_360M",
    "MOBILELLM_R1_950M",
    "PRESETS",
    "Decoder",
    "Family",
    "KVCache",
    "ModelConfig",
    "preset",
]


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
        if flow.bounds is not None:
            mixed = attend_documents(query, key, value, flow.bounds)
        else:
            mixed = attend(query, key, value, flow.mask, flow.kernel)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


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
    """What the layers of one forward pass share: rotation, mask (None = causal), kernel and cache.

    bounds : where documents begin, see training.attention.document_bounds; instead of mask and kernel
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    kernel: Attention
    cache: KVCache | None
    bounds: Tensor | None = None


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


# Runs layer `index`, call(*given), in some other way: see training.recomputation.
AroundLayer = Callable[[int, Callable[..., Tensor], tuple[Any, ...]], Tensor]
FUSED_MODULES = (nn.ModuleList, Layer, RMSNorm, SelfAttention, FeedForward, nn.Linear)


class Decoder(nn.Module):
    """The model: tokens in, hidden states out; logits are made by the losses, in chunks, or by `logits`.

    Parameters stay in the precision they have (float32). Under `torch.autocast(device, torch.bfloat16)` the
    matrix products run in bfloat16; residual stream, norms, rotations and softmax stay in float32.
    `attention` may be set to "sdpa", "eager" (for forward-mode AD and vmap) or "auto" at any time; with
    "auto" a CPU runs each layer as one function with a backward of its own, see training.fused_layer.
    """

    softcap: float | None = None  # of the logits; none of our families has one

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention: Attention = "auto"
        self.around_layer: AroundLayer | None = None
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
        weight = self.norm.weight  # an embedding may be quantised
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
        document_ids : int64 [B, T]; a token reads only earlier-or-equal tokens of the same id in its row,
                       where the tokens of a document stand together
        cache        : the tokens continue each row of it, and are added to it; not together with document_ids
        """
        rows, tokens = input_ids.shape
        mask, bounds = self._apart(document_ids)
        if cache is not None:
            mask, positions = self._continue(cache, rows, tokens, document_ids, positions)
        if positions is None:
            positions = torch.arange(tokens, device=input_ids.device)[None]
        x = self.embed_tokens(input_ids)
        keys = tokens if cache is None else cache.used + tokens
        if x.device not in (self.frequencies.device, torch.device("meta")):
            self.frequencies = self.frequencies.to(x.device)  # once, not a copy to the device in every step
        cos, sin = rotation(positions, self.frequencies, x.dtype)
        flow = Flow(cos, sin, mask, choose_attention(self.attention, x.device, tokens, keys), cache, bounds)
        shape = self._fused_shape(x, cache) if bounds is None else None
        shared = shared_by_layers(cos, sin, mask, tokens, shape) if shape else None
        for index, layer in enumerate(self.layers):
            call: Callable[..., Tensor] = layer if shared is None else FusedLayer.apply
            given = (x, flow, index) if shared is None else (x, *shared, *layer.parameters())
            x = call(*given) if self.around_layer is None else self.around_layer(index, call, given)
        if cache is not None:
            cache.advance(tokens)
        return self.norm(x)

    def _apart(self, document_ids: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What keeps documents apart: a mask for all layers, or bounds where a kernel works within them."""
        if document_ids is None:
            return None, None
        kind = document_ids.device.type
        dtype = (
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.output_weight.dtype
        )
        if self.attention == "auto" and has_varlen(document_ids.device, dtype):
            return None, document_bounds(document_ids)
        return document_mask(document_ids), None

    def _fused_shape(self, x: Tensor, cache: KVCache | None) -> LayerShape | None:
        """How training.fused_layer is to run the layers; None where it cannot, or something wants their inside.

        That is another kernel asked for by name, a transform of `torch.func`, a hook on one of their modules, or
        a module or a forward that somebody has put in the place of ours (FSDP and torch.compile do).
        """
        config = self.config
        plain = config.qk_norm != "rms_before_rope" and not config.qkv_bias
        if not plain or cache is not None or x.device.type != "cpu" or self.attention != "auto":
            return None
        if x.shape[1] > FUSED_TOKENS or torch._C._are_functorch_transforms_active():
            return None
        for module in self.layers.modules():
            hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
            if hooked or type(module) not in FUSED_MODULES or "forward" in vars(module):
                return None
        return LayerShape(
            kv_heads=config.kv_heads,
            groups=config.heads // config.kv_heads,
            head_dim=config.head_dim,
            interleaved=config.rope_style == "interleaved",
            normed=config.qk_norm == "l2_after_rope",
            eps=config.norm_eps,
            dtype=torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype,
        )

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
