"""Scores of a task split into items that the training text holds and items that it does not.

The rule is that of `curation.decontaminate`: an item is *dirty* when the corpus, in whatever documents, holds at least
half of its runs of 13 words. Items of fewer than 8 words cannot be told from common phrases; they are counted and
scored apart, on neither side. A dirty score above the clean one is a hint, not proof: dirty items may be easier ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curation.documents import Document
from curation.errors import DataError, RecipeError
from curation.overlap_index import SHORTEST_REFERENCE, WORDS, ReferenceIndex
from probes.pass_at_k import Estimate, over_problems
from training.text_encoding import hash_tokenizer
from training.tokens import TokenSource

HALF = 0.5


@dataclass(frozen=True)
class Split:
    """Scores by what the training text holds of an item; None where a side has no item.

    clean_ids, dirty_ids, too_short_ids : the items of each side, in their order
    touched   : items of which any run occurs, the dirty ones included
    documents : searched
    shares    : of each item that was searched for, the share of its runs that the corpus holds
    """

    all: Estimate
    clean: Estimate | None
    dirty: Estimate | None
    too_short: Estimate | None
    clean_ids: tuple[str, ...]
    dirty_ids: tuple[str, ...]
    too_short_ids: tuple[str, ...]
    touched: int
    documents: int
    shares: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """Counts and means, JSON-able."""
        sides = {"all": self.all, "clean": self.clean, "dirty": self.dirty, "too_short": self.too_short}
        scores = {name: side.value if side else None for name, side in sides.items()}
        counts = {"clean": len(self.clean_ids), "dirty": len(self.dirty_ids)}
        counts |= {"too_short": len(self.too_short_ids), "touched": self.touched}
        return {"scores": scores, "items": counts, "documents": self.documents}


def split_by_overlap(
    items: Mapping[str, str],
    scores: Mapping[str, float],
    training: Iterable[Document],
    *,
    least_share: float = HALF,
    words: int = WORDS,
    shortest: int = SHORTEST_REFERENCE,
) -> Split:
    """Split the scores of a task's items by what `training`, a stream of documents, holds of their texts.

    items       : text of each item by id: its question, and its choices or solution where these give it away
    scores      : of each item by id: right or wrong, the mean of its samples, its nats
    least_share : of an item's runs, above 0

    Memory is that of the items. DataError when items and scores are not of the same ids or there are none.
    """
    if not 0 < least_share <= 1:
        raise RecipeError(
            f"The least share is {least_share}", where="least_share", remedy="Give a share above 0, to 1"
        )
    if not items or set(items) != set(scores):
        odd = sorted(set(items) ^ set(scores))
        raise DataError(
            f"{len(items)} items and {len(scores)} scores are not of the same ids"
            if odd
            else "There are no items",
            where=", ".join(odd[:3]),
            remedy="Give the text and the score of every item",
        )
    references = [Document(name, text, "task") for name, text in items.items()]
    index = ReferenceIndex(references, words=words, shortest=shortest)
    documents = 0
    for document in training:
        documents += 1
        index.overlaps(document)  # the index remembers which runs it has seen
    shares = {name: share for _, name, share in index.item_shares()}
    dirty = [name for name in items if shares.get(name, 0.0) >= least_share]
    short = [name for name in items if name not in shares]
    clean = [name for name in items if name in shares and shares[name] < least_share]
    return Split(
        all=_mean(scores, list(items)) or over_problems(np.array([])),
        clean=_mean(scores, clean),
        dirty=_mean(scores, dirty),
        too_short=_mean(scores, short),
        clean_ids=tuple(clean),
        dirty_ids=tuple(dirty),
        too_short_ids=tuple(short),
        touched=sum(share > 0 for share in shares.values()),
        documents=documents,
        shares=shares,
    )


def shard_documents(source: TokenSource, tokenizer: Any) -> Iterator[Document]:
    """The documents of a training shard as text again, one at a time, with the ids that they have there.

    Byte-level tokenizers give the text back as it was. DataError when the shard is of another tokenizer.
    """
    if source.tokenizer != hash_tokenizer(tokenizer):
        raise DataError(
            "The shard was written with another tokenizer",
            where=source.name,
            remedy="Give the tokenizer of the run",
        )
    double = Counter(source.ids)
    for at in range(len(source.offsets) - 1):
        ids = source.document(at).tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        name = source.ids[at]
        yield Document(name if double[name] == 1 else f"{name}#{at}", text, source.name)


def _mean(scores: Mapping[str, float], names: Sequence[str]) -> Estimate | None:
    return over_problems(np.array([float(scores[name]) for name in names])) if names else None
