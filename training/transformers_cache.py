"""Rows that are being decoded by a model of transformers: on its own cache, or read anew for every token.

`model` is a training.transformers_model.TransformersModel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class CachedRows:
    """Rows that are being decoded on transformers' own cache; padded on the left, so that slots follow positions."""

    def begin(self, model: Any, prompts: Sequence[Sequence[int]]) -> Tensor:
        from transformers import DynamicCache

        device = model.output_weight.device
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        self.mask = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device
        )
        self.past = DynamicCache(config=model.inner.config)
        return self._read(model, ids, (self.mask.cumsum(1) - 1).clamp(min=0))

    def read(self, model: Any, ids: Tensor) -> Tensor:
        """The hidden states [B, 1, D] of one more token in every row."""
        positions = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], 1)
        return self._read(model, ids, positions)[:, None]

    def _read(self, model: Any, ids: Tensor, positions: Tensor) -> Tensor:
        told = {"position_ids": positions} if model.takes_positions else {}
        return model.hidden(ids, attention_mask=self.mask, past_key_values=self.past, use_cache=True, **told)[
            :, -1
        ]

    def expand(self, copies: int) -> CachedRows:
        """Row r becomes the rows r * copies ...; in place."""
        self.past.batch_repeat_interleave(copies)
        self.mask = self.mask.repeat_interleave(copies, 0)
        return self

    def select(self, rows: Tensor) -> CachedRows:
        """Keep `rows` only; in place."""
        self.past.batch_select_indices(rows)
        self.mask = self.mask[rows]
        return self


class RereadRows:
    """Rows that are being decoded without a cache: the slower path, each token reads its whole row."""

    def begin(self, model: Any, prompts: Sequence[Sequence[int]]) -> Tensor:
        self.rows = [list(prompt) for prompt in prompts]
        return self._read(model)

    def read(self, model: Any, ids: Tensor) -> Tensor:
        """The hidden states [B, 1, D] of one more token in every row."""
        for row, token in zip(self.rows, ids[:, 0].tolist(), strict=True):
            row.append(token)
        return self._read(model)[:, None]

    def _read(self, model: Any) -> Tensor:
        device = model.output_weight.device
        lengths = torch.tensor([len(row) for row in self.rows], device=device)
        width = int(lengths.max())
        ids = torch.tensor([row + [0] * (width - len(row)) for row in self.rows], device=device)
        return model.read_padded(ids, lengths)[torch.arange(len(ids), device=device), lengths - 1]

    def expand(self, copies: int) -> RereadRows:
        """Row r becomes the rows r * copies ...; in place."""
        self.rows = [list(row) for row in self.rows for _ in range(copies)]
        return self

    def select(self, rows: Tensor) -> RereadRows:
        """Keep `rows` only; in place."""
        self.rows = [self.rows[row] for row in rows.tolist()]
        return self
