"""A sequence classifier whose encoder is frozen: its features are computed once, its head is trained on them.

The classifiers of transformers read one vector per text: the last hidden state of the first token (BERT, RoBERTa,
DistilBERT, DeBERTa, ModernBERT) or the mean over tokens (`classifier_pooling: mean` of ModernBERT). Where this is
so, the whole model run on a stand-in encoder that returns the cached vector gives the same output, whatever the
layers of the head are called; `check_head` proves it for the model at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.atomic import hash_value, replacing
from curation.batches import check_vocabulary, head_tokens, length_sorted_batches, padded, quiet_loading
from curation.errors import DataError
from curation.progress import progress

CHUNK_TEXTS = 1000
BATCH_TOKENS = 8192


def load_frozen(folder: str, seed: int, *, unsafe_weights: bool = False) -> tuple[Any, Any]:
    """Tokenizer, and a float32 classifier with one output and a fresh head; the encoder takes no gradients."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        with quiet_loading(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=1,
                problem_type="regression",
                dtype=torch.float32,
                use_safetensors=None if unsafe_weights else True,
                ignore_mismatched_sizes=True,
            )
    except (OSError, ValueError) as error:
        raise DataError(
            f"The encoder cannot be loaded: {str(error).splitlines()[0].rstrip('.')}",
            where=folder,
            remedy="Give a transformers encoder (BERT, RoBERTa, ModernBERT, …) with safetensors weights",
        ) from error
    check_vocabulary(tokenizer, folder)
    if tokenizer.pad_token_id is None:
        raise DataError("The encoder's tokenizer has no padding token", where=folder, remedy="Set one")
    for _name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    pooler = getattr(model.base_model, "pooler", None)
    model.base_model.requires_grad_(False)
    if pooler is not None:
        pooler.requires_grad_(True)
    return tokenizer, model.eval()


def features(
    tokenizer: Any, model: Any, texts: Sequence[str], max_tokens: int, cache: Path, identity: str
) -> torch.Tensor:
    """Float32 [n, hidden] of the texts, from `cache` where they are there already.

    Kept in parts of `CHUNK_TEXTS` texts under the hash of `identity` (encoder, truncation) and the texts: a
    killed embedding goes on where it was.
    """
    parts = []
    with progress("embedding", total=len(texts), unit="texts") as task:
        for start in range(0, len(texts), CHUNK_TEXTS):
            chunk = list(texts[start : start + CHUNK_TEXTS])
            file = cache / f"{hash_value([identity, max_tokens, chunk])[:24]}.npy"
            if not file.exists():
                with replacing(file) as temporary, temporary.open("wb") as handle:
                    np.save(handle, encode(tokenizer, model, chunk, max_tokens).numpy())
            parts.append(np.load(file))
            task.advance(len(chunk))
    return torch.from_numpy(np.concatenate(parts))


def encode(tokenizer: Any, model: Any, texts: list[str], max_tokens: int) -> torch.Tensor:
    """Float32 [n, hidden]: what the head reads of each text."""
    rows = head_tokens(tokenizer, texts, max_tokens, special=True)
    rows = [row or [tokenizer.pad_token_id] for row in rows]
    found = torch.empty(len(texts), model.config.hidden_size)
    with torch.inference_mode():
        for batch in length_sorted_batches([len(row) for row in rows], BATCH_TOKENS):
            ids, mask = padded([rows[i] for i in batch], tokenizer.pad_token_id, "right")
            states = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            if _takes_mean(model):
                found[batch] = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            else:
                found[batch] = states[:, 0]
    return found


class StandIn(torch.nn.Module):
    """Takes the encoder's place in its classifier: returns the vectors it was given, pooled by the real pooler."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.pooler = getattr(encoder, "pooler", None)
        self.vectors = torch.empty(0)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        states = self.vectors[:, None]
        pooled = self.pooler(states) if self.pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)


class Head:
    """The trained part of a classifier as a function of the cached vectors; leaving the block restores the model."""

    def __init__(self, model: Any) -> None:
        self.model, self.encoder = model, model.base_model
        self.stand_in = StandIn(self.encoder)

    def __enter__(self) -> Head:
        setattr(self.model, self.model.base_model_prefix, self.stand_in)
        return self

    def __exit__(self, *details: object) -> None:
        setattr(self.model, self.model.base_model_prefix, self.encoder)

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Outputs [n] of vectors [n, hidden]; differentiable in the head's parameters."""
        self.stand_in.vectors = vectors
        ones = torch.ones(len(vectors), 1, dtype=torch.long)
        return self.model(input_ids=ones, attention_mask=ones).logits.squeeze(-1)

    def begin_at(self, value: float) -> None:
        """Set the bias of the last layer, so that training starts from the mean label."""
        outputs = [m for m in self.model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1]
        if outputs and outputs[-1].bias is not None:
            outputs[-1].bias.data.fill_(value)

    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]


def check_head(tokenizer: Any, model: Any, texts: list[str], max_tokens: int, folder: str) -> None:
    """DataError unless the head on cached vectors gives what the whole model gives."""
    vectors = encode(tokenizer, model, texts, max_tokens)
    rows = head_tokens(tokenizer, texts, max_tokens, special=True)
    try:
        with torch.inference_mode():
            whole = torch.cat([model(input_ids=torch.tensor([row])).logits[0] for row in rows if row])
            with Head(model) as head:
                split = head(vectors[[bool(row) for row in rows]])
        agrees = torch.allclose(whole, split, rtol=1e-3, atol=1e-3)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        agrees = False
    if not agrees:
        raise DataError(
            f"The head of a {type(model).__name__} reads more than one vector of a text, so it cannot be trained "
            "on cached ones",
            where=folder,
            remedy="Use an encoder of the BERT, RoBERTa, DistilBERT, DeBERTa or ModernBERT family",
        )


def _takes_mean(model: Any) -> bool:
    return getattr(model.config, "classifier_pooling", "cls") == "mean"
