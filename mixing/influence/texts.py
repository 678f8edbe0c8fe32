"""From texts to the token ids that are scored: what a user has is a model, its tokenizer and some texts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curation.errors import DataError, RecipeError
from mixing.influence.documents import SampleDocument, Tokenized
from training.text_encoding import text_encoder

Text = str | Mapping[str, Any]
Samples = Sequence[Tokenized] | Sequence[Text] | Sequence[Tokenized | Text]


def as_documents(
    given: Samples, tokenizer: Any, vocabulary: int, *, with_end: bool, what: str
) -> Sequence[Tokenized]:
    """Documents as they are; texts, or records `{"text", "id"?, "source"?}`, as token ids.

    A text is `[bos] + tokens`, and `[eos]` at the end of a sample (`with_end`), as the trainer stores documents;
    where the tokenizer has no bos it begins with eos. Its id is a hash of it unless the record has one. Raises
    RecipeError for texts without a tokenizer, DataError for a tokenizer with more tokens than the model, and for
    records without text, with their place.
    """
    if not any(isinstance(item, str | Mapping) for item in given):
        return given  # type: ignore[return-value]
    if tokenizer is None:
        raise RecipeError(
            f"The {what} are texts, and there is no tokenizer",
            where="influence",
            remedy="Give the model's tokenizer as `tokenizer`",
        )
    if len(tokenizer) > vocabulary:
        raise DataError(
            f"The tokenizer has {len(tokenizer)} tokens and the model {vocabulary}: they do not match",
            where=what,
            remedy="Use the tokenizer that the model was trained with",
        )
    records: list[Any] = [{"text": item} if isinstance(item, str) else item for item in given]
    for at, record in enumerate(records):
        if not isinstance(record, Mapping) or not isinstance(record.get("text"), str):
            raise DataError(
                "A record has no text", where=f"{what}, record {at}", remedy='Give texts, or {"text": "..."}'
            )
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    begin = eos if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded = text_encoder(tokenizer)([record["text"] for record in records])
    return [
        SampleDocument(
            str(record.get("id") or hashlib.sha256(record["text"].encode()).hexdigest()[:16]),
            str(record.get("source", "")),
            np.asarray([*begin, *ids, *(eos if with_end else [])], np.int64),
        )
        for record, ids in zip(records, encoded, strict=True)
    ]


def document_keys(document: Tokenized) -> tuple[str, ...]:
    """The id, and hashes of the tokens with and without the last one: equal texts share one of them."""
    ids = np.asarray(document.ids, np.int64)
    hashes = (hashlib.sha256(part.tobytes()).hexdigest() for part in (ids, ids[:-1]))
    return (f"id {document.id}", *hashes)
