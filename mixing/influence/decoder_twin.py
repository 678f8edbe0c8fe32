"""A model of transformers run through our decoder: the same weights, not copied, under the decoder's names.

Llama, Llama 4 (text), Qwen2 and Qwen3 and what is stored as one of them are models that our decoder runs, too,
and it has the fastest pass for scores. The exact reference of the pilot stays the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from curation.errors import DataError
from mixing.influence.adapters import DecoderAdapter, LossAdapter, TransformersAdapter
from mixing.influence.documents import RowBatch
from mixing.influence.scorers import Vectors
from training.huggingface_config import config_from_huggingface
from training.model import Decoder

CHECKED_TOKENS = 8
LOSS_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}  # relative; transformers keeps float32 inside


@dataclass(frozen=True)
class Twin:
    """Our decoder with the model's weights, and the decoder's name of each of the model's parameters."""

    adapter: DecoderAdapter
    names: dict[str, str]

    def vectors(self, vectors: Vectors) -> Vectors:
        """A direction under the decoder's names."""
        return {self.names[name]: v for name, v in vectors.items()}


def decoder_twin(adapter: LossAdapter) -> Twin | None:
    """The decoder that computes what `adapter`'s model computes, or None: then nothing is lost but speed.

    The configuration must be one that the decoder expresses, every parameter must have its counterpart, and the
    losses of a few tokens must agree.
    """
    if not isinstance(adapter, TransformersAdapter) or getattr(adapter.model, "quantization_method", None):
        return None
    model: Any = adapter.model
    try:
        config = config_from_huggingface(model.config.to_dict())
    except (DataError, AttributeError, KeyError, TypeError, ValueError):
        return None
    own = dict(model.named_parameters())
    names = {name: name.removeprefix("model.").replace(".feed_forward.", ".mlp.") for name in own}
    with torch.device("meta"):
        decoder = Decoder(config)
    expected = {name: tuple(p.shape) for name, p in decoder.named_parameters()}
    if {names[n]: tuple(p.shape) for n, p in own.items()} != expected:
        return None
    decoder.load_state_dict({names[n]: p.detach() for n, p in own.items()}, assign=True)
    twin = DecoderAdapter(decoder.requires_grad_(False).eval())
    return Twin(twin, names) if _agree(adapter, twin) else None


@torch.no_grad()
def _agree(adapter: LossAdapter, twin: DecoderAdapter) -> bool:
    device, vocabulary = adapter.device, adapter.vocabulary
    ids = (torch.arange(CHECKED_TOKENS + 1, device=device) * 7919 % vocabulary)[None]
    batch = RowBatch(
        ids[:, :-1],
        ids[:, 1:],
        torch.arange(CHECKED_TOKENS, device=device)[None],
        torch.ones(1, dtype=torch.float64, device=device),
        (0,),
    )
    theirs, ours = adapter(batch).double(), twin(batch).double()
    tolerance = LOSS_TOLERANCE.get(adapter.dtype, 0.05)
    return bool(((theirs - ours).abs() <= tolerance * theirs.abs().clamp(min=1.0)).all())
