"""Embeddings for semantic deduplication: any sentence-transformers model, or one that is made from the
corpus.

`train_lsa_embedder` makes a sentence-transformers folder without a network: latent semantic analysis
(Deerwester et al. 1990) of the token-document matrix, whose token vectors go into a StaticEmbedding module.
It loads like a published embedder. It knows which words occur together, not what they mean: near copies and
texts made from one template are found, paraphrases in other words are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse
from threadpoolctl import threadpool_limits

from curation.atomic import replacing_folder
from curation.batches import HEAD_CHARACTERS_PER_TOKEN, length_sorted_batches, one_thread, padded
from curation.errors import DataError, RecipeError
from curation.int8 import fast_int8, to_int8
from curation.memory import keep_freed_memory
from curation.packed_encoder import PackedEncoder, Site, can_pack
from curation.precision import Precision, resolve_precision, to_bfloat16
from curation.progress import progress
from curation.score_tables import model_fingerprint

CHUNK_TEXTS = 512
BATCH_TOKENS = 2048
"""Of a forward pass of a packed encoder: what lies between its products fits a CPU's cache."""
SHORT_HEAD_CHARACTERS_PER_TOKEN = 6
"""Enough of nearly every text; where it falls short, `HEAD_CHARACTERS_PER_TOKEN` is tried, and then all of it."""
_CLEARLY_MORE = 12
"""Tokens, with the tokenizer's own, that a head must have beyond what the encoder reads to stand for its text."""


def embed(
    texts: Sequence[str],
    model: Path | str,
    *,
    batch_texts: int = 32,
    device: str = "cpu",
    precision: Precision | Literal["int8"] = "float32",
) -> np.ndarray:
    """Float32 [n, dim], rows of length 1 (zero for a text in which the model sees nothing).

    model     : folder or hub id of a sentence-transformers model; long texts are cut as that model cuts them
    batch_texts : of a float32 pass; other passes of a packed encoder (see `packed_encoder`) fill `BATCH_TOKENS`
    precision : of a transformer inside; pooling and all that follows is float32. In bfloat16, cosines are off by
                some thousandths: `embedding_recheck.embed_near` embeds again what a threshold depends on. `int8` is
                bfloat16 but for `in_eight_bits`, where the processor has instructions for that, else as `auto`
    """
    width = embedding_size(model, device=device)
    parts = [np.zeros((0, width), dtype=np.float32)]
    with progress("embedding", total=len(texts), unit="documents") as task:
        for vectors in embedded_chunks(
            texts, model, batch_texts=batch_texts, device=device, precision=precision
        ):
            parts.append(vectors)
            task.advance(len(vectors))
    return np.concatenate(parts)


def embedded_chunks(
    texts: Sequence[str],
    model: Path | str,
    *,
    batch_texts: int = 32,
    device: str = "cpu",
    precision: Precision | Literal["int8"] = "float32",
    start: int = 0,
) -> Iterator[np.ndarray]:
    """`embed` in pieces of `CHUNK_TEXTS` from text number `start`, a multiple of that. DataError on NaN."""
    bits = {"int8": 8, "bfloat16": 16, "float32": 32}[resolve_embedding(precision, device)]
    encoder = _load(str(model), device, bits, str(model_fingerprint(str(model))))
    for first in range(start, len(texts), CHUNK_TEXTS):
        chunk = texts[first : first + CHUNK_TEXTS]
        with one_thread():
            if packs(encoder):
                vectors = _packed_vectors(encoder, chunk)
            else:
                options = {"show_progress_bar": False, "convert_to_numpy": True}
                vectors = np.asarray(encoder.encode(heads(encoder, chunk), batch_size=batch_texts, **options))
        exact = vectors.astype(np.float64)
        if not np.isfinite(exact).all():
            place = first + int(np.flatnonzero(~np.isfinite(exact).all(axis=1))[0])
            raise DataError(
                f"The embedder gave no finite vector for text number {place + 1}",
                where=str(model),
                remedy="Check the model: its weights may be damaged, or its number format may overflow",
            )
        lengths = np.linalg.norm(exact, axis=1, keepdims=True)
        yield (exact / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def resolve_embedding(
    precision: Precision | Literal["int8"], device: str = "cpu"
) -> Literal["float32", "bfloat16", "int8"]:
    """The format that `precision` means for an embedder on this machine."""
    if precision != "int8":
        return resolve_precision(precision, device)
    return "int8" if fast_int8(device) else resolve_precision("auto", device)


def in_eight_bits(site: Site, layers: int) -> bool:
    """Which products an int8 pass of an embedder of `layers` layers rounds to int8.

    The way up of the feed-forward block in the later two thirds of the layers, two ninths of all products: more would
    be faster, with cosines off by about .01 or more (docs/decisions.md has the errors of each kind).
    """
    return site.name == "up" and site.layer >= layers // 3


def packs(encoder: Any) -> bool:
    """Whether texts can be given to a packed encoder as tokens: nothing but its tokenizer happens before."""
    body = getattr(encoder[0], "auto_model", None)
    return (
        isinstance(getattr(body, "encoder", None), PackedEncoder)
        and bool(encoder.max_seq_length)
        and not getattr(encoder, "default_prompt_name", None)
        and getattr(encoder, "truncate_dim", None) is None
        and getattr(encoder.tokenizer, "is_fast", False)
        and encoder.tokenizer.truncation_side == "right"
    )


def _packed_vectors(encoder: Any, texts: Sequence[str]) -> np.ndarray:
    """Vectors of a chunk, as the encoder gives them, in batches of like lengths that fit the cache."""
    rows = token_rows(encoder, texts)
    vectors = np.empty((len(texts), encoder.get_embedding_dimension()), dtype=np.float32)
    with torch.inference_mode():
        for batch in length_sorted_batches([len(row) for row in rows], BATCH_TOKENS):
            ids, mask = padded([rows[i] for i in batch], encoder.tokenizer.pad_token_id, "right")
            found = encoder({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
            vectors[batch] = found.float().numpy()
    return vectors


def token_rows(encoder: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text with the tokenizer's own, cut to what the encoder reads.

    Only a head of a long text is tokenised; should it have no more than the encoder reads, a longer one is.
    """
    tokenizer: Any = encoder.tokenizer
    rows: list[list[int]] = [[] for _ in texts]
    todo = list(range(len(texts)))
    for per_token in (SHORT_HEAD_CHARACTERS_PER_TOKEN, HEAD_CHARACTERS_PER_TOKEN, None):
        if not todo:
            break
        characters = None if per_token is None else encoder.max_seq_length * per_token
        starts = [_start(texts[i], characters) for i in todo]
        found = tokenizer(starts, truncation=True, max_length=encoder.max_seq_length, verbose=False)
        short = []
        for i, start, encoding in zip(todo, starts, found.encodings, strict=True):
            beyond = sum(len(more.ids) for more in encoding.overflowing[:2])
            rows[i] = encoding.ids
            if len(start) < len(texts[i]) and beyond <= _CLEARLY_MORE:
                short.append(i)
        todo = short
    return rows


def _start(text: str, characters: int | None) -> str:
    """The first `characters`, cut between words, so that the tokens of the head are those that it has in the text."""
    if characters is None or len(text) <= characters or not text[:characters].strip():
        return text
    return text[:characters].rsplit(None, 1)[0]


def embedding_size(model: Path | str, *, device: str = "cpu") -> int:
    """Numbers in an embedding of this model."""
    encoder = _load(str(model), device, 32, str(model_fingerprint(str(model))))
    return int(encoder.get_embedding_dimension())


def heads(encoder: Any, texts: Sequence[str]) -> list[str]:
    """The texts without what lies far beyond the encoder's truncation, which would only be tokenised.

    A text is shortened only when its head alone has clearly more tokens than the encoder reads.
    """
    most = getattr(encoder, "max_seq_length", None)
    tokenizer: Any = getattr(encoder, "tokenizer", None)
    if not most or getattr(tokenizer, "truncation_side", None) != "right":
        return list(texts)
    shortened, todo = list(texts), list(range(len(texts)))
    for per_token in (SHORT_HEAD_CHARACTERS_PER_TOKEN, HEAD_CHARACTERS_PER_TOKEN):
        characters = most * per_token
        long = [i for i in todo if len(texts[i]) > characters and texts[i][:characters].strip()]
        starts = [_start(texts[i], characters) for i in long]
        found = tokenizer(starts, add_special_tokens=False, verbose=False)["input_ids"] if starts else []
        enough = {i: start for i, start, ids in zip(long, starts, found, strict=True) if len(ids) > most + 8}
        for i, start in enough.items():
            shortened[i] = start
        todo = [i for i in long if i not in enough]
    return shortened


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


@lru_cache(maxsize=3)
def _load(model: str, device: str, bits: int, stamp: str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        encoder = SentenceTransformer(
            model, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"The embedder cannot be loaded: {str(error).splitlines()[0].rstrip('.')}",
            where=model,
            remedy="Give a sentence-transformers folder or hub id with safetensors weights, or leave it out to make "
            "one from the corpus",
        ) from error
    first = encoder[0]
    if bits < 32 and hasattr(first, "auto_model"):
        body: Any = first.auto_model
        if bits == 8 and can_pack(body):
            layers = len(body.encoder.layer)
            to_int8(body, lambda site: in_eight_bits(site, layers))
        else:
            to_bfloat16(body)
        first.register_forward_hook(_states_to_float32)
    if device == "cpu":
        keep_freed_memory()
    return encoder


def _states_to_float32(module: Any, inputs: Any, features: dict[str, Any]) -> dict[str, Any]:
    """So that pooling adds in float32: a mean of 256 states loses digits in bfloat16."""
    return {
        name: value.float() if hasattr(value, "is_floating_point") and value.is_floating_point() else value
        for name, value in features.items()
    }
