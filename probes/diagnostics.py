"""What goes on inside a model: norms along its depth, how attention spreads, channels that are dead or huge.

For each layer, over all tokens of a set of texts, each text alone:

    residual_rms, largest   : root mean square and largest size of the residual stream that leaves the layer
    attention_rms, mlp_rms  : of what attention and feed-forward add to it
    entropy                 : of the attention of each query, in nats over log of the keys that it sees, mean over
                              heads and queries: 1 is even attention, 0 all on one key
    sink                    : share of attention on the text's first token, over queries that see others (StreamingLLM,
                              arXiv 2309.17453)
    dead_channels           : share of feed-forward channels whose mean size is below a thousandth of the layer's
    huge_channels           : residual channels that somewhere exceed 100 times the stream's median size (massive
                              activations, arXiv 2402.17762, whose rule also asks for a size above 100)

and of the logits: root mean square, largest, and the mean of logsumexp squared, on which a z-loss acts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from curation.errors import DataError
from training.attention import causal_mask, choose_attention, rotate, rotation
from training.model import Decoder, Flow, Layer, SelfAttention, unit_rms

DEAD, HUGE = 1e-3, 100.0
LOGITS_AT_ONCE = 256


@dataclass(frozen=True)
class LayerDiagnostics:
    """One layer, from 0; see the module."""

    layer: int
    residual_rms: float
    largest: float
    attention_rms: float
    mlp_rms: float
    entropy: float
    sink: float
    dead_channels: float
    huge_channels: int
    weight_rms: float


@dataclass(frozen=True)
class Diagnostics:
    """All layers, the embeddings that enter the first, and the logits; over `tokens` of `texts`."""

    layers: tuple[LayerDiagnostics, ...]
    embedding_rms: float
    logit_rms: float
    largest_logit: float
    squared_normaliser: float
    texts: int
    tokens: int

    def described(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


class _LayerSums:
    """Running sums of one layer."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        self.squares = dict.fromkeys(("residual", "attention", "mlp"), 0.0)
        self.largest_channel = torch.zeros(dim, dtype=torch.float64)
        self.sizes: list[Tensor] = []
        self.channels = torch.zeros(ffn_dim, dtype=torch.float64)
        self.entropy = self.sink = 0.0
        self.queries = 0


@torch.no_grad()
def diagnose(
    model: Decoder, texts: Sequence[Sequence[int] | np.ndarray], *, context: int | None = None
) -> Diagnostics:
    """Norms and attention of `model` on texts of token ids, each alone and cut after `context` tokens.

    Attention weights of one layer and text are held at a time: heads x tokens x tokens numbers. DataError for no text
    and for activations that are not finite, naming the layer.
    """
    limit = min(context or model.config.max_positions, model.config.max_positions)
    device = model.output_weight.device
    rows = [torch.tensor([list(ids[:limit])], dtype=torch.int64, device=device) for ids in texts if len(ids)]
    if not rows:
        raise DataError("There is no text to look at", where="diagnostics", remedy="Give some documents")
    sums = [_LayerSums(model.config.dim, model.config.ffn_dim) for _ in model.layers]
    tokens, embedding = 0, 0.0
    logit_squares = normalisers = 0.0
    largest_logit = -math.inf
    for ids in rows:
        tokens += ids.shape[1]
        hidden, first = _through_layers(model, ids, sums)
        embedding += first
        for part in hidden.split(LOGITS_AT_ONCE):
            logits = model.logits(part).double()
            logit_squares += float(logits.square().mean(-1).sum())
            largest_logit = max(largest_logit, float(logits.abs().max()))
            normalisers += float(logits.logsumexp(-1).square().sum())
    layers = tuple(_layer(number, total, model, tokens) for number, total in enumerate(sums))
    return Diagnostics(
        layers=layers,
        embedding_rms=math.sqrt(embedding / tokens),
        logit_rms=math.sqrt(logit_squares / tokens),
        largest_logit=largest_logit,
        squared_normaliser=normalisers / tokens,
        texts=len(rows),
        tokens=tokens,
    )


def attention_weights(attention: SelfAttention, x: Tensor, flow: Flow) -> Tensor:
    """Weights float32 [B, heads, T, T] of a layer's attention for its normed input x [B, T, dim]."""
    config, split = attention.config, (-1, attention.config.head_dim)
    query, key = (p(x).unflatten(-1, split).transpose(1, 2) for p in (attention.q_proj, attention.k_proj))
    if config.qk_norm == "rms_before_rope":
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = (rotate(part, flow.cos, flow.sin, config.rope_style) for part in (query, key))
    if config.qk_norm == "l2_after_rope":
        query, key = unit_rms(query, config.norm_eps), unit_rms(key, config.norm_eps)
    key = key.repeat_interleave(config.heads // config.kv_heads, dim=1)
    scores = (query.float() @ key.float().transpose(-2, -1)) * config.head_dim**-0.5
    return scores.masked_fill(~causal_mask(x.shape[1], x.device), -math.inf).softmax(-1)


def _through_layers(model: Decoder, ids: Tensor, sums: Sequence[_LayerSums]) -> tuple[Tensor, float]:
    """Final hidden states [T, dim] and the summed mean squares of the embeddings; adds to the layers' sums."""
    tokens = ids.shape[1]
    x = model.embed_tokens(ids)
    first = float(x.double().square().mean(-1).sum())
    positions = torch.arange(tokens, device=x.device)[None]
    cos, sin = rotation(positions, model.frequencies.to(x.device), x.dtype)
    flow = Flow(cos, sin, None, choose_attention("auto", x.device, tokens, tokens), None)
    layers = cast(Iterable[Layer], model.layers)
    for number, (layer, total) in enumerate(zip(layers, sums, strict=True)):
        normed = layer.input_layernorm(x)
        _add_attention(total, attention_weights(layer.self_attn, normed, flow)[0])
        mixed = layer.self_attn(normed, flow, number)
        after = x + mixed
        inner = layer.post_attention_layernorm(after)
        gated = torch.nn.functional.silu(layer.mlp.gate_proj(inner)) * layer.mlp.up_proj(inner)
        added = layer.mlp.down_proj(gated)
        x = after + added
        if not bool(torch.isfinite(x).all()):
            raise DataError(
                f"What leaves layer {number} is not finite",
                where="diagnostics",
                remedy="The model has diverged: take an earlier checkpoint",
            )
        for name, states in (("residual", x), ("attention", mixed), ("mlp", added)):
            total.squares[name] += float(states.double().square().mean(-1).sum())
        size = x[0].double().abs().cpu()
        total.largest_channel = torch.maximum(total.largest_channel, size.amax(0))
        total.sizes.append(size.median(dim=-1).values)
        total.channels += gated[0].double().abs().sum(0).cpu()
    return model.norm(x)[0], first


def _add_attention(total: _LayerSums, weights: Tensor) -> None:
    """Of queries that see more than one key; weights [heads, T, T]."""
    wide = weights[:, 1:].double()
    if wide.shape[1] == 0:
        return
    entropy = -(wide * wide.clamp(min=1e-300).log()).sum(-1)
    most = torch.arange(2, weights.shape[1] + 1, device=weights.device, dtype=torch.float64).log()
    total.entropy += float((entropy / most).mean(0).sum())
    total.sink += float(wide[:, :, 0].mean(0).sum())
    total.queries += wide.shape[1]


def _layer(number: int, total: _LayerSums, model: Decoder, tokens: int) -> LayerDiagnostics:
    matrices = [p.detach().double() for p in model.layers[number].parameters() if p.dim() == 2]
    size = sum(matrix.numel() for matrix in matrices)
    channels = total.channels / tokens
    median = float(torch.cat(total.sizes).median())
    return LayerDiagnostics(
        layer=number,
        residual_rms=math.sqrt(total.squares["residual"] / tokens),
        largest=float(total.largest_channel.max()),
        attention_rms=math.sqrt(total.squares["attention"] / tokens),
        mlp_rms=math.sqrt(total.squares["mlp"] / tokens),
        entropy=total.entropy / total.queries if total.queries else 0.0,
        sink=total.sink / total.queries if total.queries else 1.0,
        dead_channels=float((channels <= DEAD * channels.mean()).double().mean()),
        huge_channels=int((total.largest_channel > HUGE * median).sum()),
        weight_rms=math.sqrt(sum(float(matrix.square().sum()) for matrix in matrices) / size),
    )
