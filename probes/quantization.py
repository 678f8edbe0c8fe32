"""Decoders in the precisions in which they are deployed: bfloat16, int8, and 4-bit weights, through torchao.

Names: float32, bf16, int8 (weights alone, a scale a row), 8da8w (activations, too, by their largest, at every call),
and 8da4w-32, 8da4w-128 (8-bit dynamic activations, 4-bit weights in groups; MobileLLM-R1, section 8). 8da4w takes
groups of 128 where all widths are multiples of it, of 32 elsewhere, as the paper. Embeddings are then in 8 bits a row,
in the paper's setting in 4 bits in groups of 32; a tied output weight becomes a matrix of its own in the linear
precision.

torchao chooses integers and scales. On a CPU its own products unpack every matrix, so there they go into the layouts
of torch's kernels (probes.packed_weights) and bfloat16 flows between them; 8da8w and other devices keep its products.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curation.errors import MachineError, RecipeError
from curation.quiet_libraries import quiet_import
from probes.packed_weights import pack
from training.model import Decoder
from training.start import load_start

PRECISIONS = ("float32", "bf16", "int8", "8da8w", "8da4w", "8da4w-32", "8da4w-128")
EMBEDDING_GROUP = 32


@dataclass
class DeployedModel:
    """A decoder in one precision, and the matrix that makes its logits.

    dtype        : of what flows between the layers, and of the cache
    packed_bytes : of the weights where each has just its bits and each group its scale (in 16 bits), as on a phone;
                   off a CPU torchao holds 4-bit weights as a byte each
    """

    precision: str
    decoder: Decoder
    head: nn.Module
    dtype: torch.dtype
    packed_bytes: int

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.decoder.norm.weight.device

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are in memory, each counted once."""
        modules: list[nn.Module] = [self.decoder, self.head]
        seen = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
        return sum(_held(tensor) for tensor in seen.values())


def deploy(folder: Path | str, precision: str, *, device: str | torch.device = "cpu") -> DeployedModel:
    """Load a model folder in that precision.

    Raises RecipeError for an unknown precision and for widths that its groups do not divide, MachineError where torchao
    is not installed.
    """
    if precision not in PRECISIONS:
        raise RecipeError(
            f"There is no precision {precision!r}",
            where="precision",
            remedy=f"Choose of {', '.join(PRECISIONS)}",
        )
    decoder = load_start(Path(folder)).requires_grad_(False).eval().to(device)
    head: nn.Module
    if decoder.lm_head is not None:
        head = decoder.lm_head
    else:
        rows, width = decoder.output_weight.shape
        head = nn.Linear(width, rows, bias=False, device="meta")
        head.weight = decoder.embed_tokens.weight
    if precision in ("float32", "bf16"):
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        decoder.to(dtype)
        if decoder.lm_head is None:
            head.weight = decoder.embed_tokens.weight
        size = sum(p.numel() for p in decoder.parameters()) * dtype.itemsize
        return DeployedModel(precision, decoder, head, dtype, size)
    group = _group(decoder, precision)
    packed = _packed(decoder, precision, group)
    if decoder.lm_head is None:
        head.weight = nn.Parameter(decoder.output_weight.detach().clone(), requires_grad=False)
    _quantize(decoder, head, precision, group)
    if decoder.norm.weight.device.type != "cpu" or precision == "8da8w":
        # The fused layer multiplies by plain matrices; any kernel asked for by name runs the modules instead.
        decoder.attention = "sdpa"
    if decoder.norm.weight.device.type != "cpu":
        return DeployedModel(precision, decoder, head, torch.float32, packed)
    for module in list(decoder.modules()):
        for name, child in list(module.named_children()):
            setattr(module, name, pack(child))
    for parameter in decoder.parameters():
        if not hasattr(parameter, "qdata"):  # of torchao: its products take activations of any precision
            parameter.data = parameter.to(torch.bfloat16)
    head = decoder.lm_head if decoder.lm_head is not None else pack(head)
    return DeployedModel(precision, decoder, head, torch.bfloat16, packed)


def _quantize(decoder: Decoder, head: nn.Module, precision: str, group: int) -> None:
    try:
        with quiet_import():
            from torchao.quantization import (
                Int8DynamicActivationInt8WeightConfig,
                Int8DynamicActivationIntxWeightConfig,
                Int8WeightOnlyConfig,
                IntxWeightOnlyConfig,
                PerAxis,
                PerGroup,
                quantize_,
            )

            four_bits = getattr(torch, "int4")  # noqa: B009 - torch's stubs do not know it
            config: Any
            if precision == "int8":
                config = Int8WeightOnlyConfig(set_inductor_config=False)
            elif precision == "8da8w":
                config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
            else:
                config = Int8DynamicActivationIntxWeightConfig(
                    weight_dtype=four_bits, weight_granularity=PerGroup(group)
                )
            if group:
                rows = IntxWeightOnlyConfig(weight_dtype=four_bits, granularity=PerGroup(EMBEDDING_GROUP))
            else:
                rows = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
            quantize_(decoder, rows, filter_fn=lambda module, _: isinstance(module, nn.Embedding))
            quantize_(decoder, config)
            if head is not decoder.lm_head:
                quantize_(nn.ModuleList([head]), config)
    except ImportError as error:
        raise MachineError(
            "torchao is not installed",
            where=precision,
            remedy='Install it: pip install "torchao>=0.14"',
        ) from error


def _group(decoder: Decoder, precision: str) -> int:
    """Weights that share a scale; 0 for a row."""
    if not precision.startswith("8da4w"):
        return 0
    widths = sorted(
        {m.in_features for m in decoder.modules() if isinstance(m, nn.Linear)} | {decoder.config.dim}
    )
    chosen = precision.removeprefix("8da4w").removeprefix("-")
    group = int(chosen) if chosen else 128 if all(width % 128 == 0 for width in widths) else 32
    odd = [width for width in widths if width % group or width % EMBEDDING_GROUP]
    if odd:
        raise RecipeError(
            f"Groups of {group} weights do not divide a width of {odd[0]}", where=precision,
            remedy="Choose int8" if group == EMBEDDING_GROUP else "Choose 8da4w-32, or int8",
        )  # fmt: skip
    return group


def _packed(decoder: Decoder, precision: str, group: int) -> int:
    bits, row_bits = (4, 4) if group else (8, 8)
    size = 0
    for module in decoder.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            rows, width = module.weight.shape
            linear = isinstance(module, nn.Linear)
            scales = width // (group if linear else EMBEDDING_GROUP) if group else 1
            size += rows * width * (bits if linear else row_bits) // 8 + 2 * rows * scales
            if not linear and decoder.lm_head is None:  # the tied output weight
                size += rows * width * bits // 8 + 2 * rows * (width // group if group else 1)
            if isinstance(module, nn.Linear) and module.bias is not None:
                size += 4 * module.bias.numel()
    return size + sum(4 * p.numel() for n, p in decoder.named_parameters() if "norm" in n)


def _held(tensor: Any) -> int:
    """Bytes of a tensor, or of the tensors that one of torchao's is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.numel() * tensor.element_size())
    names, _ = tensor.__tensor_flatten__()
    return sum(_held(getattr(tensor, name)) for name in names if getattr(tensor, name) is not None)
