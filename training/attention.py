"""Causal attention: rotary positions, what keeps documents apart, three kernels, the decoding cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Attention = Literal["auto", "sdpa", "eager"]

# Up to this many keys, matrix products and a softmax beat torch attention on a CPU. Measured with torch 2.13
# on one thread of a Zen 5 core, forward and backward of 4 layers of width 256 in bfloat16, block mask:
# 6.1k against 5.0k tokens/s at 128 keys, 5.9k / 4.6k at 256, 3.6k / 4.4k at 512; float32 is level up to 256.
EAGER_CPU_KEYS = 256
# So they do for few queries, which is decoding: 32 rows with 1000 keys take 39 against 66 ms a token.
EAGER_CPU_QUERIES = 8


def rotary_frequencies(head_dim: int, theta: float, scaling: dict[str, Any] | None = None) -> Tensor:
    """Radians per position of each rotated pair, float32 [head_dim / 2]; RoFormer, section 3.2.2.

    `scaling` of type "llama3" stretches the long wavelengths by `factor`, keeps the short ones and blends
    between, as Llama 3.1 does; of type "linear" it divides all frequencies by `factor`.
    """
    # In float32 on purpose: published checkpoints were trained with those values.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
    frequencies = 1.0 / (theta**exponents)
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if scaling is None or kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / scaling["factor"]
    factor, trained = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / frequencies
    blend = (trained / wavelength - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    long, short = wavelength > trained / low, wavelength < trained / high
    return torch.where(long, frequencies / factor, torch.where(short, frequencies, blended))


def rotation(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, T, head_dim / 2] of `positions` [B, T], at least in float32."""
    dtype = torch.promote_types(dtype, torch.float32)
    angles = positions[:, None, :, None].to(dtype) * frequencies.to(device=positions.device, dtype=dtype)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, style: str) -> Tensor:
    """Turn the pairs of `x` [B, heads, T, head_dim] by their angles, in the precision of the angles.

    "interleaved" pairs neighbours (2i, 2i + 1), as Meta's own checkpoints do; "half" pairs i and
    i + head_dim / 2, as Hugging Face's Llama does: the same up to a permutation of the projection's rows.
    """
    x = x.to(cos.dtype)
    if style == "interleaved":
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def document_mask(document_ids: Tensor) -> Tensor:
    """Bool [B, 1, T, T], true where query t may read key s: s <= t and both lie in the same document.

    >>> document_mask(torch.tensor([[7, 7, 9]]))[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return same & causal_mask(document_ids.shape[1], document_ids.device)


def document_bounds(document_ids: Tensor) -> Tensor:
    """Where documents begin in the flattened rows, and their end: int32 [documents + 1].

    A document is a run of one id in a row. On a GPU it waits once, for their number.

    >>> document_bounds(torch.tensor([[7, 7, 9], [9, 9, 9]])).tolist()
    [0, 2, 3, 6]
    """
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    first = begins.flatten().nonzero()[:, 0]
    return F.pad(first, (0, 1), value=document_ids.numel()).to(torch.int32)


def has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's attention over documents of any length runs here: half precision, from Ampere on."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def attend_documents(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor) -> Tensor:
    """`attend` within the documents of `document_bounds`: [B, heads, T, hd] x [B, kv, T, hd].

    No [T, T] mask is made or read, and the tokens of other documents cost nothing.
    """
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, tokens, head_dim = query.shape
    q, k, v = (part.transpose(1, 2).reshape(rows * tokens, -1, head_dim) for part in (query, key, value))
    # `tokens` is a bound for the longest document that need not be asked of the device.
    out = varlen_attn(
        q, k, v, bounds, bounds, tokens, tokens, window_size=(-1, 0), enable_gqa=heads != key.shape[1]
    )
    assert isinstance(out, Tensor)
    return out.view(rows, tokens, heads, head_dim).transpose(1, 2)


def causal_mask(tokens: int, device: torch.device) -> Tensor:
    """Bool [tokens, tokens], true on and below the diagonal."""
    steps = torch.arange(tokens, device=device)
    return steps[:, None] >= steps


def choose_attention(wanted: Attention, device: torch.device, queries: int, keys: int) -> Attention:
    """Which kernel runs for `wanted`; "auto" is the eager one where a CPU runs it faster, else torch's."""
    if wanted != "auto":
        return wanted
    small = keys <= EAGER_CPU_KEYS or queries <= EAGER_CPU_QUERIES
    return "eager" if device.type == "cpu" and small else "sdpa"


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kernel: Attention) -> Tensor:
    """Softmax attention with grouped queries: [B, heads, T, hd] x [B, kv, S, hd] -> [B, heads, T, hd].

    mask   : bool, broadcastable to [B, 1, T, S], true = may read; None = causal (needs T == S)
    kernel : "sdpa" is torch's fused attention. "eager" is two batched matrix products around a float32
             softmax: plain operations, so forward-mode AD, double backward and vmap go through it.
    """
    if kernel == "sdpa":
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    batch, heads, tokens, head_dim = query.shape
    kv_heads, keys = key.shape[1:3]
    groups = heads // kv_heads
    if mask is None:
        mask = causal_mask(tokens, query.device)[None, None]
    # The queries that share a key head are rows of one product, so keys are never repeated in memory.
    query = query.reshape(batch, kv_heads, groups * tokens, head_dim) * head_dim**-0.5
    if query.dtype == torch.bfloat16 and tokens <= EAGER_CPU_QUERIES:
        # A batched bfloat16 product on a CPU first copies an operand that is transposed: here, all keys of a cache.
        scores = (key @ query.transpose(-2, -1)).transpose(-2, -1).contiguous()
    else:
        scores = query @ key.transpose(-2, -1)
    scores = scores.view(batch, kv_heads, groups, tokens, keys)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores.masked_fill(~mask.unsqueeze(2), float("-inf"))
    shares = scores.softmax(-1).to(value.dtype).view(batch, kv_heads, groups * tokens, keys)
    return (shares @ value).view(batch, heads, tokens, head_dim)


@dataclass
class KVCache:
    """Keys and values of rows that are being decoded; a token's slot is its position.

    keys, values : [layers, B, kv_heads, max_tokens, head_dim]
    lengths      : int64 [B], tokens kept in each row
    used         : the largest length, known without asking the device

    Prompts of different lengths are padded **on the right** and given in one call; afterwards `truncate`
    tells the true lengths. Padding then lies beyond its row's length: no query sees it, and the next token
    overwrites it.

        cache = model.new_cache(rows, max_tokens)
        hidden = model(prompts, cache=cache)                  # [B, T], padded on the right with any token
        cache.truncate(prompt_lengths)
        last = hidden[torch.arange(rows), prompt_lengths - 1]
        cache, last = cache.expand(8), last.repeat_interleave(8, 0)   # eight samples of each prompt
        hidden = model(next_token[:, None], cache=cache)      # one more token in every row
        cache = cache.select(unfinished)                      # finished rows cost nothing more

    Use it under `torch.no_grad` or `torch.inference_mode`: writes are in place and carry no gradient.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    used: int = 0

    @property
    def max_tokens(self) -> int:
        """Slots of a row."""
        return self.keys.shape[3]

    def positions(self, tokens: int) -> Tensor:
        """Positions [B, tokens] of the next `tokens` tokens of each row."""
        return self.lengths[:, None] + torch.arange(tokens, device=self.lengths.device)

    def mask(self, tokens: int) -> Tensor:
        """Bool [B, 1, tokens, used + tokens]: the next tokens read every slot up to their own."""
        slots = torch.arange(self.used + tokens, device=self.lengths.device)
        return slots <= self.positions(tokens)[:, None, :, None]

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, kv, T, hd] behind each row's tokens; returns all slots in use, [B, kv, used + T, hd]."""
        tokens = key.shape[2]
        end = self.used + tokens
        if self.used == 0:
            self.keys[layer, :, :, :tokens] = key
            self.values[layer, :, :, :tokens] = value
        else:
            rows = torch.arange(len(self.lengths), device=self.lengths.device)[:, None]
            slots = self.positions(tokens)
            self.keys[layer][rows, :, slots] = key.transpose(1, 2).to(self.keys.dtype)
            self.values[layer][rows, :, slots] = value.transpose(1, 2).to(self.values.dtype)
        return self.keys[layer, :, :, :end].to(key.dtype), self.values[layer, :, :, :end].to(value.dtype)

    def advance(self, tokens: int) -> None:
        """Count `tokens` more tokens in every row; the decoder calls it after its last layer."""
        self.lengths = self.lengths + tokens
        self.used += tokens

    def truncate(self, lengths: Tensor) -> None:
        """Forget what lies beyond `lengths` [B]: the padding of a prefill, or tokens to be decoded anew."""
        self.lengths = torch.minimum(self.lengths, lengths.to(self.lengths))
        self.used = int(self.lengths.max()) if len(self.lengths) else 0

    def expand(self, copies: int) -> KVCache:
        """A cache in which row r has become the rows r * copies ... (r + 1) * copies - 1."""
        return self.select(torch.arange(len(self.lengths)).repeat_interleave(copies))

    def select(self, rows: Tensor) -> KVCache:
        """A cache of `rows` only, int64 indices or bool [B]; rows may repeat."""
        rows = rows.to(self.lengths.device)
        lengths = self.lengths[rows]
        used = int(lengths.max()) if len(lengths) else 0
        return KVCache(self.keys[:, rows], self.values[:, rows], lengths, used)
