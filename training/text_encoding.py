"""From texts to token ids, with the Rust tokenizer alone: the one way in which training and probes encode text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer

from curation.atomic import hash_value
from curation.errors import DataError

Encode = Callable[[Sequence[str]], list[list[int]]]


def text_encoder(tokenizer: Any) -> Encode:
    """A function from texts to token ids: no bos or eos added, and no special token read out of a text.

    tokenizer : a fast Hugging Face tokenizer, or the text of its tokenizer.json

    A corpus that contains the characters "<|eos|>" must not end a document, nor open an assistant's turn. It
    works on a copy of the Rust tokenizer without truncation and padding, many texts per call.
    """
    backend = Tokenizer.from_str(tokenizer if isinstance(tokenizer, str) else tokenizer_json(tokenizer))
    backend.encode_special_tokens = True
    return lambda texts: [e.ids for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def document_ends(tokenizer: Any) -> tuple[int, int]:
    """Ids of the tokens with which a document begins and ends; the eos token twice where there is no bos."""
    if tokenizer.eos_token_id is None:
        raise DataError(
            "The tokenizer has no end-of-sequence token, so documents cannot be told apart",
            where=str(getattr(tokenizer, "name_or_path", "")),
            remedy="Set eos_token in its tokenizer_config.json",
        )
    bos = tokenizer.bos_token_id
    return (tokenizer.eos_token_id if bos is None else bos), tokenizer.eos_token_id


def hash_tokenizer(tokenizer: Any, text: str | None = None) -> str:
    """Hex sha256 of a tokenizer: vocabulary, merges, rules, and the tokens that begin and end a document.

    text : its `tokenizer_json`, where that is there already; a large one takes a second to make
    """
    return hash_value([text or tokenizer_json(tokenizer), *document_ends(tokenizer)])


def tokenizer_json(tokenizer: Any) -> str:
    """The text of a fast tokenizer's tokenizer.json, without padding and truncation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(
            f"{type(tokenizer).__name__} is not a fast tokenizer",
            remedy="Use one with a tokenizer.json, or convert it with transformers' convert_slow_tokenizer",
        )
    # Padding and truncation are habits of the last caller, not properties of the tokenizer.
    backend = Tokenizer.from_str(backend.to_str())
    backend.no_padding()
    backend.no_truncation()
    return backend.to_str()
