"""How a model gives the loss of every token: our own decoder, and any causal model of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from curation.errors import RecipeError
from mixing.influence.documents import IGNORED, RowBatch
from training.losses import linear_cross_entropy, plain_cross_entropy
from training.model import Decoder

CHUNK_LOGITS = 1 << 24  # logits held at a time by the forward-mode loss of our decoder


class LossAdapter(nn.Module):
    """A causal language model and the way to its token losses. Subclass it for a model of another kind.

    forward(batch, plain) gives nats per target [B, T], 0 on padding. `plain` asks for ordinary operations
    that forward-mode differentiation understands.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: RowBatch, plain: bool = False) -> Tensor:
        raise NotImplementedError

    def logits(self, batch: RowBatch) -> Tensor:
        """Logits [B, T, vocabulary]; used on one row at a time."""
        raise NotImplementedError

    def matrix_names(self) -> tuple[str, ...]:
        """Names of the input embedding and the output weight; one name when they are tied."""
        raise NotImplementedError

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model has."""
        raise NotImplementedError

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        """Within it, attention is made of plain operations: fused kernels have no forward derivative."""
        yield

    def context(self, wanted: int) -> int:
        """`wanted` tokens in a row, or as many as the model has positions for."""
        return wanted

    @property
    def packs(self) -> bool:
        """Whether the model keeps several documents of one row apart (RowBatch.segments)."""
        return False

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def named(self) -> dict[str, nn.Parameter]:
        """Parameters by name, a shared one once."""
        return dict(self.model.named_parameters())


class DecoderAdapter(LossAdapter):
    """Our decoder; the loss over the vocabulary is made in chunks of tokens."""

    model: Decoder

    def hidden(self, batch: RowBatch) -> Tensor:
        """Final hidden states [B, T, dim]. Rows are padded on the right, so the causal mask is enough for them."""
        if batch.segments is None:
            return self.model(batch.input_ids)
        return self.model(batch.input_ids, batch.positions, batch.segments)

    def logits(self, batch: RowBatch) -> Tensor:
        return self.model.logits(self.hidden(batch))

    def forward(self, batch: RowBatch, plain: bool = False) -> Tensor:
        hidden = self.hidden(batch).flatten(0, 1)
        labels, weight = batch.labels.flatten(), self.model.output_weight
        if not plain:
            losses = linear_cross_entropy(hidden, weight, labels, reduction="none")
            return losses.view(batch.labels.shape)
        step = max(1, CHUNK_LOGITS // weight.shape[0])
        parts = [
            plain_cross_entropy(hidden[at : at + step], weight, labels[at : at + step], reduction="none")
            for at in range(0, len(labels), step)
        ]
        return torch.cat(parts).view(batch.labels.shape)

    def matrix_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("embed_tokens.weight", self.model.output_weight_name)))

    @property
    def packs(self) -> bool:
        return True

    @property
    def vocabulary(self) -> int:
        return self.model.config.vocab_size

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        before = self.model.attention
        self.model.attention = "eager"
        try:
            yield
        finally:
            self.model.attention = before


class TransformersAdapter(LossAdapter):
    """A causal model of transformers; the losses come from its own logits, whatever it does to them."""

    def logits(self, batch: RowBatch) -> Tensor:
        # Positions are given for every row: a learned position embedding then has one output per row and
        # token.
        return self.model(
            input_ids=batch.input_ids, position_ids=batch.positions, use_cache=False, return_dict=True
        ).logits

    def forward(self, batch: RowBatch, plain: bool = False) -> Tensor:
        logits = self.logits(batch)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        valid = batch.labels != IGNORED
        chosen = logits.gather(-1, batch.labels.clamp(min=0)[..., None])[..., 0]
        return torch.where(valid, logits.logsumexp(-1) - chosen, 0.0)

    def context(self, wanted: int) -> int:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return min(wanted, limit) if isinstance(limit, int) and limit > 0 else wanted

    def matrix_names(self) -> tuple[str, ...]:
        model: Any = self.model
        wanted = [
            m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None
        ]
        return tuple(n for n, p in self.model.named_parameters() if any(p is w for w in wanted))

    @property
    def vocabulary(self) -> int:
        model: Any = self.model
        return model.get_input_embeddings().weight.shape[0]

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        config: Any = self.model.config
        before = getattr(config, "_attn_implementation", None)
        switch = getattr(self.model, "set_attn_implementation", None)
        if before in (None, "eager") or switch is None:
            yield
            return
        switch("eager")
        try:
            yield
        finally:
            switch(before)


def adapt(model: nn.Module) -> LossAdapter:
    """The adapter of `model`: an adapter is returned as it is."""
    if isinstance(model, LossAdapter):
        return model
    if isinstance(model, Decoder):
        return DecoderAdapter(model)
    if hasattr(model, "get_output_embeddings") and hasattr(model, "config"):
        return TransformersAdapter(model)
    raise RecipeError(
        f"Influence does not know how to get losses from a {type(model).__name__}",
        remedy="Wrap it in a subclass of mixing.influence.LossAdapter",
    )


@contextmanager
def scoring(adapter: LossAdapter) -> Iterator[None]:
    """Within it the model is in evaluation mode and no parameter asks for a gradient; both come back."""
    training = {module: module.training for module in adapter.modules()}
    wanted = [(p, p.requires_grad) for p in adapter.parameters()]
    adapter.eval()
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, before in wanted:
            parameter.requires_grad_(before)
        for module, mode in training.items():
            module.training = mode
