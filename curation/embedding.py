"""Embeddings for semantic deduplication: any sentence-transformers model, or one that is made from the
corpus.

`train_lsa_embedder` makes a sentence-transformers folder without a network: latent semantic analysis
(Deerwester et al. 1990) of the token-document matrix, whose token vectors go into a StaticEmbedding module.
It loads like a published embedder. It knows which words occur together, not what they mean: near copies and
texts made from one template are found, paraphrases in other words are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from curation.atomic import replacing_folder
from curation.errors import DataError, RecipeError
from curation.progress import progress
from curation.score_tables import model_fingerprint

CHUNK_TEXTS = 512


def embed(
    texts: Sequence[str], model: Path | str, *, batch_texts: int = 32, device: str = "cpu"
) -> np.ndarray:
    """Float32 [n, dim], rows of length 1 (zero for a text in which the model sees nothing).

    model : folder or hub id of a sentence-transformers model; long texts are cut as that model cuts them
    """
    from curation.batches import one_thread

    encoder = _load(str(model), device, str(model_fingerprint(str(model))))
    parts = [np.zeros((0, encoder.get_embedding_dimension()), dtype=np.float32)]
    with one_thread(), progress("embedding", total=len(texts), unit="documents") as task:
        for start in range(0, len(texts), CHUNK_TEXTS):
            chunk = list(texts[start : start + CHUNK_TEXTS])
            vectors = encoder.encode(
                chunk, batch_size=batch_texts, show_progress_bar=False, convert_to_numpy=True
            )
            parts.append(vectors.astype(np.float32))
            task.advance(len(chunk))
    vectors = np.concatenate(parts)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def train_lsa_embedder(
    texts: Sequence[str],
    tokenizer_folder: Path | str,
    out: Path | str,
    *,
    dim: int = 256,
    seed: int = 0,
    max_texts: int = 5000,
    max_characters: int = 20_000,
) -> Path:
    """Make a sentence-transformers folder at `out` from (at most `max_texts`, evenly spread) `texts`.

    The token-document matrix holds counts x idf with rows of length 1; `dim` of its singular vectors are
    kept. A
    text's embedding is the mean of its tokens' vectors, so token t has the vector idf_t V_t, and the
    embedding is
    the text's row times V, but for its length. Equal input gives equal bytes.
    """
    tokenizer = _tokenizer(tokenizer_folder)
    step = max(1, -(-len(texts) // max_texts))
    chosen = [text[:max_characters] for text in texts[::step]]
    if len(chosen) < 2:
        raise DataError("An embedder needs at least two texts", where=str(out))
    counts = _counts(tokenizer, chosen)
    present = np.asarray((counts > 0).sum(axis=0)).ravel()
    idf = np.log((1 + counts.shape[0]) / (1 + present))
    weighted = sparse.csr_matrix(counts.multiply(idf))
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1))).ravel()
    weighted = sparse.diags(1 / np.where(lengths > 0, lengths, 1.0)) @ weighted
    size = min(dim, *weighted.shape)
    with threadpool_limits(1):
        vectors = top_right_vectors(weighted, size, seed)
    table = np.zeros((counts.shape[1], dim), dtype=np.float32)
    table[:, :size] = idf[:, None] * vectors
    _save(tokenizer, table, Path(out))
    return Path(out)


def top_right_vectors(matrix: sparse.spmatrix, size: int, seed: int, *, iterations: int = 4) -> np.ndarray:
    """The first `size` right singular vectors [columns, size] of a sparse matrix, largest first.

    Randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4) with a fixed seed; the
    entry of
    largest magnitude of each vector is made positive, since a singular vector has no sign of its own.
    """
    random = np.random.default_rng(seed)
    width = min(size + 16, *matrix.shape)
    basis, _ = np.linalg.qr(matrix @ random.standard_normal((matrix.shape[1], width)))
    for _ in range(iterations):
        other, _ = np.linalg.qr(matrix.T @ basis)
        basis, _ = np.linalg.qr(matrix @ other)
    _, _, right = np.linalg.svd((matrix.T @ basis).T, full_matrices=False)
    vectors = right[:size].T
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.where(vectors[largest, np.arange(size)] < 0, -1.0, 1.0)
    return np.asarray(vectors * signs)


def _counts(tokenizer: Any, texts: Sequence[str]) -> sparse.csr_matrix:
    """Token counts, float64 [texts, vocabulary]."""
    lengths: list[int] = []
    ids: list[np.ndarray] = []
    for start in range(0, len(texts), CHUNK_TEXTS):
        for encoding in tokenizer.encode_batch(
            list(texts[start : start + CHUNK_TEXTS]), add_special_tokens=False
        ):
            ids.append(np.asarray(encoding.ids, dtype=np.int32))
            lengths.append(len(ids[-1]))
    columns = np.concatenate(ids)
    ends = np.concatenate(([0], np.cumsum(lengths)))
    shape = (len(texts), tokenizer.get_vocab_size())
    counts = sparse.csr_matrix((np.ones(len(columns)), columns, ends), shape=shape)
    counts.sum_duplicates()
    return counts


def _tokenizer(folder: Path | str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if not tokenizer.is_fast:
        raise RecipeError("The embedder needs a fast tokenizer (one with tokenizer.json)", where=str(folder))
    return tokenizer.backend_tokenizer


def _save(tokenizer: Any, table: np.ndarray, out: Path) -> None:
    from sentence_transformers import SentenceTransformer

    try:
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    except ImportError:  # before version 6
        from sentence_transformers.models import StaticEmbedding  # type: ignore[no-redef]

    tokenizer.no_truncation()
    module = StaticEmbedding(tokenizer, embedding_weights=table)
    with replacing_folder(out) as folder:
        SentenceTransformer(modules=[module], device="cpu").save(str(folder), create_model_card=False)


@lru_cache(maxsize=2)
def _load(model: str, device: str, stamp: str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(model, device=device, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"The embedder cannot be loaded: {str(error).splitlines()[0].rstrip('.')}",
            where=model,
            remedy="Give a sentence-transformers folder or hub id, or leave it out to make one from the corpus",
        ) from error
