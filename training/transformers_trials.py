"""What a model of transformers can do, found out by trying it on a dozen tokens.

Documentation and configs say little and change; a model that silently lets packed documents read each other
trains on the wrong data. Each trial compares with the plain way, and has a control that must differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curation.errors import DataError
from training.transformers_cache import CachedRows

AGREES = 0.01  # an error below this share of the control's difference is rounding
FIRST, SECOND = 5, 7


@dataclass(frozen=True)
class Head:
    """How logits come from hidden states: z = scale * (hidden @ weight.T) + bias, then cap * tanh(z / cap) if any."""

    scale: float
    softcap: float | None


@torch.no_grad()
def find_head(model: Any) -> Head:
    """The head of `model`, checked against its own logits. DataError when they are something else."""
    head = model.inner.get_output_embeddings()
    ids = _tokens(model)[None]
    with torch.autocast(ids.device.type, enabled=False):
        theirs = model.inner(input_ids=ids, use_cache=False).logits.double()
        linear = (model.base(ids).last_hidden_state @ head.weight.T).double() if head is not None else theirs
    bias = getattr(head, "bias", None)
    offset = torch.zeros(()) if bias is None else bias.double()
    described = model.config.transformers
    cap = described.get("final_logit_softcapping")
    uncapped = theirs - offset if cap is None else cap * torch.atanh((theirs / cap).clamp(-1, 1)) - offset
    scale = float((uncapped * linear).sum() / linear.square().sum().clamp(min=1e-300))
    scale = 1.0 if abs(scale - 1) < 1e-4 else scale
    made = linear * scale + offset
    made = made if cap is None else cap * torch.tanh(made / cap)
    if head is None or float((made - theirs).abs().max()) > 1e-3 * float(theirs.abs().max().clamp(min=1e-6)):
        raise DataError(
            "The model's logits are no linear map of its hidden states, which the chunked losses need",
            where=str(described.get("model_type", "model")),
            remedy="Models with a plain, scaled or softly capped output layer can be trained",
        )
    return Head(scale, cap)


@torch.no_grad()
def keeps_documents_apart(model: Any) -> bool:
    """Whether positions that restart in a packed row keep its documents from reading each other."""
    ids = _tokens(model)
    positions = torch.cat([torch.arange(FIRST), torch.arange(SECOND)]).to(ids)
    try:
        with torch.autocast(ids.device.type, enabled=False):
            packed = model.hidden(ids.repeat(2, 1), position_ids=positions.repeat(2, 1))[:, FIRST:]
            alone = model.hidden(ids[None, FIRST:])
            # The same tokens at the same positions behind the first document, which they now may read.
            mask = torch.ones(1, len(ids)).to(ids)
            seeing = model.hidden(ids[None], position_ids=positions[None], attention_mask=mask)[:, FIRST:]
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    return _agree(packed, alone, seeing)


@torch.no_grad()
def takes_cache(model: Any) -> bool:
    """Whether decoding on transformers' cache gives the hidden states of reading whole rows, for ragged prompts."""
    ids = _tokens(model)
    rows, copies = [ids[:3].tolist(), ids[3:9].tolist()], 2
    following = ids[9:12].tolist()
    try:
        with torch.autocast(ids.device.type, enabled=False):
            cache = CachedRows()
            states = [cache.begin(model, rows).repeat_interleave(copies, 0)]
            cache.expand(copies)
            for token in following:
                states.append(cache.read(model, torch.full((4, 1), token).to(ids))[:, 0])
            kept = cache.select(torch.tensor([1, 2]).to(ids))
            last = kept.read(model, torch.full((2, 1), following[0]).to(ids))[:, 0]
            for at, row in enumerate(rows):
                whole = model.hidden(torch.tensor([[*row, *following, following[0]]]).to(ids))[
                    0, len(row) - 1 :
                ]
                found = torch.stack([*(state[at * copies] for state in states), last[at]])
                if not _agree(found, whole, whole.roll(1, 0)):
                    return False
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError):
        return False
    return True


def _tokens(model: Any) -> Tensor:
    """A dozen tokens of the model's vocabulary, all different where there are so many."""
    count = model.config.vocab_size
    device = next(model.inner.parameters()).device
    return torch.tensor([(7 * at + 3) % count for at in range(FIRST + SECOND)], device=device)


def _agree(found: Tensor, expected: Tensor, control: Tensor) -> bool:
    error = float((found - expected).abs().max())
    return error < AGREES * float((control - expected).abs().max())
