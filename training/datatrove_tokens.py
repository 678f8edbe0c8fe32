"""datatrove's token files as a source: X.ds, X.ds.index and X.ds.metadata, read where they lie.

X.ds holds tokens of 2 or 4 bytes, X.ds.index the end of every document in tokens (uint64), and X.ds.metadata the
tokenizer's name, the size of a token and the number of tokens. datatrove is not needed to read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from tokenizers import Tokenizer

from curation.atomic import hash_file, hash_value
from curation.errors import DataError
from training.text_encoding import hash_tokenizer, tokenizer_json
from training.tokens import ShardedTokens, TokenSource, sampled_hash

SCANNED_TOKENS = 1 << 16


class PlaceIds(Sequence[str]):
    """Ids for documents that have none: the file and the number of the document in it, "00000.ds:17"."""

    def __init__(self, files: Sequence[str], numbers: Sequence[np.ndarray]) -> None:
        self._files, self._numbers = tuple(files), tuple(numbers)
        self._starts = np.concatenate(([0], np.cumsum([len(n) for n in numbers])))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return [self[at] for at in range(*key.indices(len(self)))]
        if not 0 <= key < len(self):
            raise IndexError(f"document {key} of {len(self)}")
        file = int(np.searchsorted(self._starts, key, side="right")) - 1
        return f"{self._files[file]}:{self._numbers[file][key - self._starts[file]]}"


def open_datatrove(
    path: Path | str,
    tokenizer: Any,
    source: str,
    *,
    tokenizer_name: str | None = None,
    verify: bool = False,
) -> TokenSource:
    """Open a .ds file, or all of a folder in the order of their names, as one source.

    tokenizer      : the fast Hugging Face tokenizer that the model will have
    tokenizer_name : the name under which datatrove knew it, where that is neither its `name_or_path` nor a
                     tokenizer.json that is still there to be compared
    verify         : also read every token and compare it with the vocabulary; else only the ends of each file

    datatrove records no hash of the content, so the source's is of the indices and of sampled blocks of the
    tokens (all of a file below 1 MiB). Documents have no ids; they are named "<file>:<number>". Empty ones are
    left out. Raises DataError for missing or truncated files, and for another tokenizer or vocabulary.
    """
    path = Path(path)
    files = sorted(path.glob("*.ds")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(
            "There are no .ds files here",
            where=str(path),
            remedy="Name the output folder of datatrove's DocumentTokenizer, or one of its files",
        )
    arrays, lengths, numbers = [], [], []
    for file in files:
        size = _check_metadata(file, tokenizer, tokenizer_name)
        tokens, ends = _read_file(file, size)
        _check_vocabulary(file, tokens, len(tokenizer), verify=verify)
        found = np.diff(ends, prepend=0)
        arrays.append(tokens)
        lengths.append(found[found > 0])
        numbers.append(np.flatnonzero(found))
    if len({array.dtype for array in arrays}) > 1:
        raise DataError(
            "The files have tokens of different sizes", where=str(path), remedy="Name one of them"
        )
    content = [[f.name, sampled_hash(f), hash_file(_index_file(f))] for f in files]
    documents = sum(map(len, lengths))
    return TokenSource(
        name=source,
        tokens=arrays[0] if len(arrays) == 1 else ShardedTokens(arrays),
        offsets=np.concatenate(([0], np.cumsum(np.concatenate(lengths)))).astype(np.int64),
        ids=PlaceIds([file.name for file in files], numbers),
        text_bytes=np.zeros(documents, dtype=np.int64),
        hash=hash_value(["datatrove", content]),
        tokenizer=hash_tokenizer(tokenizer),
        vocab_size=len(tokenizer),
    )


def _read_file(file: Path, token_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """The memory-mapped tokens of one file, and the ends of its documents, int64."""
    try:
        ends = np.fromfile(_index_file(file), dtype="<u8").astype(np.int64)
    except OSError as error:
        raise DataError(
            "The index of a token file cannot be read, so its documents cannot be told apart",
            where=str(_index_file(file)),
            remedy="Write it with save_index=True, or copy it beside the .ds file",
        ) from error
    size = file.stat().st_size
    rising = len(ends) > 0 and ends[0] >= 0 and bool(np.all(np.diff(ends) >= 0))
    if not rising or ends[-1] == 0 or int(ends[-1]) * token_bytes != size:
        wanted = int(ends[-1]) * token_bytes if len(ends) else 0
        raise DataError(
            f"The token file has {size} bytes, and its index is for {wanted}",
            where=str(file),
            remedy="Copy the file and its .index again; one of them is cut off or of another run",
        )
    return np.memmap(file, dtype=f"<u{token_bytes}", mode="r"), ends


def _check_metadata(file: Path, tokenizer: Any, tokenizer_name: str | None) -> int:
    """Bytes of a token; DataError where the metadata names another tokenizer."""
    path = file.with_name(f"{file.name}.metadata")
    try:
        name, size = path.read_text(encoding="utf-8").splitlines()[0].rsplit("|", 1)
        token_bytes = int(size)
    except (OSError, ValueError, IndexError) as error:
        raise DataError(
            "The metadata of a token file, which names its tokenizer, cannot be read",
            where=str(path),
            remedy='Write it with save_final_metadata=True; its first line is "name|bytes of a token"',
        ) from error
    fits = 4 if len(tokenizer) > 1 << 16 else 2
    if token_bytes not in (2, 4) or token_bytes < fits:
        raise DataError(
            f"The tokens have {token_bytes} bytes, and a vocabulary of {len(tokenizer):,} needs {fits}",
            where=str(file),
            remedy="Use the tokenizer that the documents were tokenized with",
        )
    if not _same_tokenizer(name, tokenizer, tokenizer_name):
        ours = tokenizer_name or getattr(tokenizer, "name_or_path", "") or "without a name"
        raise DataError(
            f"The tokens are of the tokenizer {name!r}, not of the one given, {ours!r}",
            where=str(path),
            remedy="Give that tokenizer; if it is this one under another name, give tokenizer_name",
        )
    return token_bytes


def _same_tokenizer(name: str, tokenizer: Any, tokenizer_name: str | None) -> bool:
    """Whether datatrove's `name`, of the hub or of a tokenizer.json, is the given tokenizer."""
    if tokenizer_name is not None:
        return name == tokenizer_name
    if Path(name).is_file():
        theirs, ours = Tokenizer.from_file(name), Tokenizer.from_str(tokenizer_json(tokenizer))
        return theirs.get_vocab() == ours.get_vocab()
    return name == getattr(tokenizer, "name_or_path", None)


def _check_vocabulary(file: Path, tokens: np.ndarray, vocab_size: int, *, verify: bool) -> None:
    step = SCANNED_TOKENS
    spans = range(0, len(tokens), step) if verify else sorted({0, max(0, len(tokens) - step)})
    largest = max(int(tokens[first : first + step].max()) for first in spans)
    if largest >= vocab_size:
        raise DataError(
            f"The token file has the token {largest:,}, and the tokenizer only {vocab_size:,} tokens",
            where=str(file),
            remedy="Use the tokenizer that the documents were tokenized with",
        )


def _index_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.index")
