"""How many bytes a training run needs, computed from its shapes before it starts.

The formula walks through one update and takes the largest moment: the loss, its backward, the backward of the
layers, or that of the embedding. It counts tensors, so it also holds on a GPU, to whose figure the context of the
driver and the allocator's slack are to be added; on a CPU the interpreter and its libraries are.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.chunked_logits import (
    BLOCK_LOGITS_CPU,
    CHUNK_BYTES_CPU,
    CHUNK_LOGITS,
    FEWEST_TOKENS,
    MOST_TOKENS_CPU,
)
from training.fused_layer import BLOCK, FUSED_TOKENS
from training.model_config import ModelConfig
from training.settings import TrainSettings

# What a process on a CPU holds beyond its tensors: libraries that load at the first step (torch's optimizers import
# its compiler, 70 MiB by themselves; then the kernels), and what the allocator keeps between tensors of other sizes.
# Fitted to the shapes in docs/training.md. A processor without bfloat16 products needs up to 80 MiB more: its library
# keeps float32 copies of the large matrices.
LIBRARY_BYTES, ALLOCATOR_SLACK = 110 << 20, 0.12


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one rank.

    weights, gradients, moments, mean : of all parameters, float32; the mean only with `average_from`
    activations : what the forward pass of one micro-batch keeps for the backward pass
    working     : what comes and goes: the loss's chunks and gradients, or those of a layer
    peak        : the largest sum at any moment, not the sum of all; `moment` says which
    process     : what the system will show beyond an idle process that has imported torch: the peak, and on a CPU
                  an allowance for libraries and the allocator
    """

    weights: int
    gradients: int
    moments: int
    mean: int
    activations: int
    working: int
    peak: int
    process: int
    moment: str


def plan_memory(
    config: ModelConfig,
    settings: TrainSettings,
    *,
    device: str = "cpu",
    activation_checkpointing: bool = False,
    ranks: int = 1,
    sharded: bool = False,
) -> MemoryPlan:
    """The memory of a run of training.loop on one of its ranks.

    device  : "cpu" or "cuda"; they run different layers and keep different tensors
    activation_checkpointing : keep only the input of each layer, and compute the layer again in the backward pass
    ranks   : processes that share a batch; sharded : they also share weights, gradients and moments (FSDP2)
    """
    own = settings.batch_sequences // ranks
    rows = min(settings.micro_batch_sequences or own, own)
    micro_batches = -(-own // rows)
    tokens = rows * settings.sequence_tokens
    size = 2 if settings.precision == "bfloat16" else 4
    share = ranks if sharded else 1
    weights = 4 * config.parameters() // share
    mean = weights if settings.average_from is not None else 0
    standing = weights + 2 * weights + mean

    layer = layer_activations(config, rows, settings.sequence_tokens, size, device=device)
    stream = 4 * tokens * config.dim
    kept = config.layers * layer
    if activation_checkpointing:
        kept = config.layers * stream + layer
    # The embedded input, the last norm (its input, its unit vectors, its output), and the rotation and mask.
    mask = settings.sequence_tokens**2 * rows
    kept += 4 * stream + mask * (1 + size) + tokens * config.head_dim * 4

    head = 4 * config.vocab_size * config.dim
    chunk = _chunk_bytes(config, tokens, size, device)
    narrow = head // 2 if size == 2 else 0
    product = narrow  # a chunk's part of the weight's gradient, before it is added in float32
    one_layer = _layer_weights(config)
    earlier = weights if micro_batches > 1 else 0
    moments_of_an_update = {
        "loss": earlier + kept + head + stream + narrow + product + chunk,
        "backward of the loss": earlier + kept + 2 * head + 2 * stream,
        "backward of the layers": max(earlier, head)
        + kept
        + 3 * one_layer
        + _layer_working(config, tokens, size)
        + (one_layer if micro_batches > 1 else 0),
        "backward of the embedding": weights + head + stream + 2 * stream,
        "optimizer": weights,
    }
    moment = max(moments_of_an_update, key=lambda name: moments_of_an_update[name])
    peak = moments_of_an_update[moment]
    return MemoryPlan(
        weights=weights,
        gradients=weights,
        moments=2 * weights,
        mean=mean,
        activations=kept,
        working=max(0, peak - kept - earlier) if "embedding" not in moment else head,
        peak=standing + peak,
        process=standing + peak + (LIBRARY_BYTES + int(ALLOCATOR_SLACK * peak) if device == "cpu" else 0),
        moment=moment,
    )


def layer_activations(config: ModelConfig, rows: int, tokens: int, size: int, *, device: str) -> int:
    """Bytes that the forward pass of one layer keeps for `rows` rows of `tokens` tokens.

    size : bytes of a number in matrix products, 2 for bfloat16 (under autocast) or 4
    """
    if device == "cpu" and fused(config, tokens):
        return _fused_layer(config, rows, tokens, size)
    return _plain_layer(config, rows, tokens, size, eager=device == "cpu" and tokens <= 256)


def fused(config: ModelConfig, tokens: int) -> bool:
    """Whether a CPU runs the layers as training.fused_layer; the rule is `Decoder._fused_shape`'s."""
    return config.qk_norm != "rms_before_rope" and not config.qkv_bias and tokens <= FUSED_TOKENS


def _fused_layer(config: ModelConfig, rows: int, tokens: int, size: int) -> int:
    """The tensors that `FusedLayer.forward` saves: activations, copies of weights, shares of attention."""
    count = rows * tokens
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    saved = (
        2 * config.dim + 2 * queries + 2 * keys + 4 * config.ffn_dim
    )  # units, qk, mixed, value, feed-forward
    scales = 4 * (2 + config.heads + config.kv_heads)
    weights = _layer_weights(config) // 4
    joined = config.dim * (queries + 2 * keys + 2 * config.ffn_dim)  # float32 copies, stacked
    read = sum(
        (min(first + BLOCK, tokens) - first) * min(first + BLOCK, tokens) for first in range(0, tokens, BLOCK)
    )
    return count * (saved * size + scales) + weights * size + joined * 4 + rows * config.heads * read * size


def _plain_layer(config: ModelConfig, rows: int, tokens: int, size: int, *, eager: bool) -> int:
    """What autograd saves of `Layer`: both norms and residuals in float32, the products' inputs in `size`."""
    count = rows * tokens
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    # Under autocast every projection has a copy of its input of its own: three and two of them.
    norms = config.dim * (16 + (5 * size if size == 2 else 2 * size))
    normed = 4 if config.qk_norm != "none" else 0
    attention = queries * (normed + 3 * size) + keys * (normed + 2 * size)
    feed_forward = 4 * config.ffn_dim * size
    # Autocast's softmax is float32, and its shares are cast for the product with the values.
    shares = rows * config.heads * tokens**2 * (6 if size == 2 else 4) if eager else 0
    weights = _layer_weights(config) // 4 * size if size == 2 else 0  # autocast's copies
    return count * (norms + attention + feed_forward) + shares + weights


def _layer_weights(config: ModelConfig) -> int:
    """Bytes of a layer's parameters in float32."""
    embeddings = config.vocab_size * config.dim * (1 if config.tied else 2)
    return 4 * ((config.parameters() - embeddings - config.dim) // config.layers)


def _layer_working(config: ModelConfig, tokens: int, size: int) -> int:
    """What comes and goes in a layer's backward: gradients of the stream and of the feed-forward's middle."""
    return tokens * (4 * 4 * config.dim + 4 * size * config.ffn_dim)


def _chunk_bytes(config: ModelConfig, tokens: int, size: int, device: str) -> int:
    """The logits of a chunk in the precision of the products, and of a block in float32 with their softmax."""
    vocabulary = config.vocab_size
    if device != "cpu":
        rows = min(tokens, max(CHUNK_LOGITS // vocabulary, FEWEST_TOKENS))  # as chunked_logits.chunk_tokens
        return rows * vocabulary * (size + 8)
    fitting = max(CHUNK_BYTES_CPU // (size * vocabulary), FEWEST_TOKENS)
    rows = min(tokens, fitting, MOST_TOKENS_CPU)
    return rows * vocabulary * size + 8 * max(BLOCK_LOGITS_CPU, vocabulary)
