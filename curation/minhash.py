"""MinHash with datatrove's own blocks: signatures, buckets and clusters; we choose what is kept.

`MinhashDedupSignature`, `MinhashDedupBuckets` and `MinhashDedupCluster` (datatrove 0.10) do the work, driven by our
own runner. Two things are ours. The words: datatrove's tokenizers for most languages need spaCy and its models, so
words are runs of letters and digits, and single characters in scripts that put no space between words. The choice:
datatrove keeps the member of a cluster that its union-find happens to have as root, and a cluster is a chain, whose
ends may have little in common. Here the members of a cluster are taken in keep-order, and one is dropped when its
Jaccard similarity with an earlier *kept* one, computed exactly from the same shingles, reaches the threshold.
"""

from __future__ import annotations

import contextlib
import io
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import regex

# Letters of scripts that are written without spaces count as words of their own.
_DENSE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = regex.compile(rf"[{_DENSE}]|[\w--[{_DENSE}]]+", regex.V1)
BUFFER_LINES = 512
"""Signatures that datatrove reads at once from each file; its default of 5 spends its time in calls."""
PRODUCT_ENTRIES = 20_000_000
"""Pairs whose common shingles are counted at once, which bounds the memory of one large cluster."""


@dataclass(frozen=True)
class MinhashSettings:
    """What two documents must share.

    similarity : least Jaccard similarity, of sets of runs of `words` words, at which the later one is dropped
    words      : of a shingle; documents with fewer words are never near-duplicates, only exact ones
    buckets, hashes : of the signature. A pair of similarity s is a candidate with the chance
                 1 - (1 - s^hashes)^buckets: .98 at .55 and .996 at .6 for 40 x 4. datatrove proposes 14 x 8,
                 .11 at .55; since we compare candidates exactly, more of them cost time but no precision
    """

    similarity: float = 0.55
    words: int = 5
    buckets: int = 40
    hashes: int = 4

    def chance(self, similarity: float) -> float:
        """The chance that a pair of this similarity is compared at all.

        >>> round(MinhashSettings().chance(0.6), 3)
        0.996
        """
        return float(1 - (1 - similarity**self.hashes) ** self.buckets)


def write_signatures(texts: Iterable[str], folder: Path, number: int, settings: MinhashSettings) -> None:
    """Write `folder/bucket_<b>/<number>.minhash.sig`; the place of a text among `texts` is its number there."""
    from datatrove.data import Document

    with _quiet():
        step = _signature_step(settings, str(folder))
        step.run((Document(text=text, id="") for text in texts), rank=number, world_size=number + 1)


def match_bucket(signatures: Path, out: Path, bucket: int, settings: MinhashSettings) -> None:
    """Write the pairs of documents with equal hashes in one bucket."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets

    with _quiet():
        step = MinhashDedupBuckets(
            str(signatures), str(out), config=_config(settings), lines_to_buffer=BUFFER_LINES
        )
        step.run(rank=bucket, world_size=settings.buckets)


def clusters(matches: Path, out: Path, settings: MinhashSettings) -> pl.DataFrame:
    """`shard, row, cluster` of every document that shares a bucket with another."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupCluster

    with _quiet():
        step = MinhashDedupCluster(
            str(matches),
            str(out),
            config=_config(settings),
            save_cluster_id=True,
            lines_to_buffer=BUFFER_LINES,
        )
        step.run(None, 0, 1)
    parts = []
    for file in sorted(out.glob("*.clusters")):
        pairs = np.fromfile(file, dtype="<u4").reshape(-1, 2)
        parts.append(
            pl.DataFrame(
                {
                    "shard": np.full(len(pairs), int(file.name.removesuffix(".clusters")), np.uint32),
                    "row": pairs[:, 0],
                    "cluster": pairs[:, 1],
                }
            )
        )
    schema = {"shard": pl.UInt32, "row": pl.UInt32, "cluster": pl.UInt32}
    return pl.concat([pl.DataFrame(schema=schema), *parts])


def shingles(text: str, settings: MinhashSettings) -> np.ndarray:
    """The sorted 64-bit hashes of a text's different runs of words, uint64 [n]: those behind its signature."""
    return np.unique(_signature_step(settings, None).get_shingles(text))


def greedy(sets: list[np.ndarray], similarity: float) -> list[tuple[int, int, float]]:
    """(dropped, kept instead, Jaccard) for sets of shingles in keep-order; each is compared with the kept ones.

    >>> import numpy as np
    >>> greedy([np.array([1, 2, 3]), np.array([7, 8]), np.array([1, 2, 3, 4])], 0.7)
    [(2, 0, 0.75)]
    """
    from scipy.sparse import csr_array

    lengths = np.array([len(found) for found in sets], dtype=np.int64)
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    ends = np.concatenate(([0], np.cumsum(lengths)))
    shape = (len(sets), int(columns.max()) + 1 if len(columns) else 1)
    matrix = csr_array((np.ones(len(columns), dtype=np.int64), columns, ends), shape=shape)
    kept = np.ones(len(sets), dtype=bool)
    dropped = []
    block = max(16, min(512, PRODUCT_ENTRIES // max(len(sets), 1)))
    for start in range(0, len(sets), block):
        stop = min(start + block, len(sets))
        earlier = np.flatnonzero(kept[:stop])
        common = (matrix[start:stop] @ matrix[earlier].T).tocsr()
        for row in range(start, stop):
            places = slice(common.indptr[row - start], common.indptr[row - start + 1])
            others = earlier[common.indices[places]]
            before = (others < row) & kept[others]
            others, shared = others[before], common.data[places][before]
            if not len(others):
                continue
            jaccard = shared / (lengths[row] + lengths[others] - shared)
            # The nearest; of equals, the first in keep-order.
            best = int(np.lexsort((others, -jaccard))[0])
            if jaccard[best] >= similarity:
                kept[row] = False
                dropped.append((row, int(others[best]), float(jaccard[best])))
    return dropped


@lru_cache(maxsize=2)
def _signature_step(settings: MinhashSettings, folder: str | None) -> Any:
    import tempfile

    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

    # A folder is asked for, but only `run` writes into it.
    place = folder or tempfile.gettempdir()
    return MinhashDedupSignature(place, config=_config(settings), language=_words())


def _config(settings: MinhashSettings) -> Any:
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.text import TextNormConfig

    # Numbers are kept: datatrove would write every number as 0, and sums that differ only in theirs would be one.
    return MinhashConfig(
        n_grams=settings.words,
        num_buckets=settings.buckets,
        hashes_per_bucket=settings.hashes,
        norm_config=TextNormConfig(norm_numbers=False),
    )


@lru_cache(maxsize=1)
def _words() -> Any:
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):
        """Words as the module's text says; nothing is downloaded."""

        def word_tokenize(self, text: str) -> list[str]:
            return words(text)

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    return Words()


def words(text: str) -> list[str]:
    """The words of a text that datatrove has simplified: lower case, without punctuation.

    >>> words("a1 two 日本 x")
    ['a1', 'two', '日', '本', 'x']
    """
    return list(_WORD.findall(unicodedata.normalize("NFC", text)))


@contextlib.contextmanager
def _quiet() -> Any:
    """datatrove's log and progress bar go nowhere: ours say what happens."""
    from loguru import logger

    logger.disable("datatrove")
    with contextlib.redirect_stderr(io.StringIO()):
        yield
