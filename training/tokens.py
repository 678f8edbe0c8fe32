"""Tokenized documents of one source in a folder: a memory-mapped token file and a table of its documents.

tokens.bin          every document as [bos] tokens [eos], one after the other, uint16 or uint32
documents.parquet   one row per document, in that order: id, tokens, text_bytes
shard.json          counts, the hashes of the content and of the tokenizer; written last
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from curation.atomic import hash_file, hash_value, read_json, replacing_folder, write_json
from curation.errors import DataError

SCHEMA = 1
BATCH_DOCUMENTS = 512
COLUMNS = pa.schema([("id", pa.string()), ("tokens", pa.int64()), ("text_bytes", pa.int64())])


@dataclass(frozen=True)
class TokenSource:
    """The tokenized documents of one source, opened with `TokenSource.open`; the tokens stay on the disk.

    name        : the source
    tokens      : memory-mapped uint16 or uint32 [total_tokens]
    offsets     : int64 [documents + 1]; document d is tokens[offsets[d]:offsets[d + 1]], bos and eos included
    ids         : the documents' ids
    text_bytes  : int64 [documents], UTF-8 bytes of each text
    hash        : hex sha256 of tokens and documents; what the data order depends on
    tokenizer   : hex sha256 of the tokenizer, see `hash_tokenizer`
    vocab_size  : tokens in that tokenizer
    """

    name: str
    tokens: np.ndarray
    offsets: np.ndarray
    ids: list[str]
    text_bytes: np.ndarray
    hash: str
    tokenizer: str
    vocab_size: int

    @property
    def total_tokens(self) -> int:
        """Tokens of all documents, bos and eos included."""
        return len(self.tokens)

    def document(self, index: int) -> np.ndarray:
        """Token ids of one document."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @staticmethod
    def open(folder: Path | str, *, verify: bool = False) -> TokenSource:
        """Open a folder that `write_tokens` made.

        Sizes are always checked; `verify` also reads every byte and compares the content hash. Raises
        DataError when the folder is missing, incomplete, truncated or altered.
        """
        folder = Path(folder)
        record = _read_record(folder)
        try:
            table = pq.read_table(folder / "documents.parquet").cast(COLUMNS)
            size = (folder / "tokens.bin").stat().st_size
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise _damaged(folder, f"cannot be read: {error}") from error
        lengths = table["tokens"].to_numpy().astype(np.int64)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        dtype = np.dtype(record["dtype"])
        if size != record["tokens"] * dtype.itemsize:
            raise _damaged(
                folder, f"has {size} bytes of tokens instead of {record['tokens'] * dtype.itemsize}"
            )
        if len(lengths) != record["documents"] or offsets[-1] != record["tokens"] or lengths.min() < 2:
            raise _damaged(folder, "has a table of documents that does not fit its tokens")
        if verify and record["hash"] != _content_hash(folder / "tokens.bin", table):
            raise _damaged(folder, "does not have the content that its shard.json was written for")
        return TokenSource(
            name=record["source"],
            tokens=np.memmap(folder / "tokens.bin", dtype=dtype, mode="r"),
            offsets=offsets,
            ids=table["id"].to_pylist(),
            text_bytes=table["text_bytes"].to_numpy().astype(np.int64),
            hash=record["hash"],
            tokenizer=record["tokenizer"],
            vocab_size=record["vocab_size"],
        )


def write_tokens(
    documents: Iterable[tuple[str, str]], tokenizer: Any, folder: Path | str, source: str
) -> TokenSource:
    """Tokenize (id, text) pairs into `folder`, which appears when it is complete, and open it.

    tokenizer : a fast Hugging Face tokenizer with an eos token. Where it has no bos token (Qwen2.5),
                documents begin with its eos token, as such models are trained.
    source    : the name under which mixtures know these documents

    Special tokens that are written out in a text ("<|eos|>") are tokenized as the text they are: a corpus is
    not trusted to end its own documents. DataError when there is no document, or a text is not Unicode.
    """
    encode = text_encoder(tokenizer)
    bos, eos = document_ends(tokenizer)
    dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
    ids: list[str] = []
    lengths: list[int] = []
    text_bytes: list[int] = []
    with replacing_folder(folder) as temporary:
        with (temporary / "tokens.bin").open("wb") as handle:
            for group in _groups(documents, BATCH_DOCUMENTS):
                sizes = [_utf8_bytes(name, text, source) for name, text in group]
                encoded = [[bos, *tokens, eos] for tokens in encode([text for _, text in group])]
                handle.write(np.concatenate([np.asarray(tokens, dtype) for tokens in encoded]).tobytes())
                ids += [name for name, _ in group]
                lengths += [len(tokens) for tokens in encoded]
                text_bytes += sizes
        if not ids:
            raise DataError(
                f"The source {source} has no documents to tokenize",
                where=str(folder),
                remedy="Leave it out of the recipe, or look in its funnel for the stage that dropped all",
            )
        table = pa.table([ids, lengths, text_bytes], schema=COLUMNS)
        pq.write_table(table, temporary / "documents.parquet", compression="zstd")
        record = {
            "schema": SCHEMA,
            "source": source,
            "dtype": dtype.str,
            "documents": len(ids),
            "tokens": sum(lengths),
            "text_bytes": sum(text_bytes),
            "hash": _content_hash(temporary / "tokens.bin", table),
            "tokenizer": hash_tokenizer(tokenizer),
            "vocab_size": len(tokenizer),
            "bos": bos,
            "eos": eos,
        }
        write_json(temporary / "shard.json", record)
    return TokenSource.open(folder)


def text_encoder(tokenizer: Any) -> Callable[[Sequence[str]], list[list[int]]]:
    """A function from texts to token ids: no bos or eos added, and no special token read out of a text.

    It works on a copy of the Rust tokenizer without truncation and padding, many texts per call.
    """
    backend = Tokenizer.from_str(_tokenizer_json(tokenizer))
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


def hash_tokenizer(tokenizer: Any) -> str:
    """Hex sha256 of a tokenizer: vocabulary, merges, rules, and the tokens that begin and end a document."""
    return hash_value([_tokenizer_json(tokenizer), *document_ends(tokenizer)])


def _tokenizer_json(tokenizer: Any) -> str:
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


def _groups(documents: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    iterator = iter(documents)
    while group := list(islice(iterator, size)):
        yield group


def _utf8_bytes(name: str, text: str, source: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise DataError(
            f"The text of document {name!r} is not valid Unicode: {error.reason}",
            where=source,
            remedy="Repair it, for example with text.encode(errors='replace').decode()",
        ) from error


def _content_hash(tokens: Path, table: pa.Table) -> str:
    return hash_value([hash_file(tokens), *(table[name].to_pylist() for name in COLUMNS.names)])


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / "shard.json")
    except FileNotFoundError as error:
        raise DataError(
            "There are no tokens here", where=str(folder), remedy="Tokenize the source first (write_tokens)"
        ) from error
    except ValueError as error:
        raise _damaged(folder, f"has a broken shard.json: {error}") from error
    needed = {"schema", "source", "dtype", "documents", "tokens", "hash", "tokenizer", "vocab_size"}
    if not isinstance(record, dict) or not needed <= record.keys() or record["dtype"] not in ("<u2", "<u4"):
        raise _damaged(folder, "has a shard.json without the fields that describe its tokens")
    if record["schema"] != SCHEMA:
        raise _damaged(folder, f"is of schema {record['schema']}, and this version reads {SCHEMA}")
    return record


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(f"The token folder {why}", where=str(folder), remedy="Delete it and tokenize again")
