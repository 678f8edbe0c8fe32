"""Documents into token folders: streamed, part by part, in worker processes, and resumable after a kill.

The stream of documents is cut into parts of about `part_bytes` of text. The cut depends on the documents alone,
so the bytes are the same for any number of workers. A finished part is kept with a hash of the text it was made
from: a run that was killed reads the documents again, which is quick, and tokenizes only what is missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import hash_file, read_json, replacing, write_json, writing_to
from curation.errors import DataError, MachineError
from curation.workers import Advance, Job, run_jobs
from training.text_encoding import Encode, document_ends, hash_tokenizer, text_encoder, tokenizer_json
from training.tokens import (
    COLUMNS,
    SCHEMA,
    TokenSource,
    content_hash,
    part_files,
    sampled_hash,
    table_content,
)

PART_BYTES = 64 << 20
BATCH_DOCUMENTS = 512
# Parts that wait on the disk for each worker, so that none is idle while the documents are read on.
PARTS_PER_WORKER = 4
TEXTS = pa.schema([("id", pa.string()), ("text", pa.string())])


@dataclass(frozen=True)
class _Plan:
    """How every part of a source is tokenized."""

    folder: Path
    source: str
    dtype: str
    bos: int
    eos: int


@dataclass
class _Part:
    """Consecutive documents: ids, texts, and the hash of both."""

    ids: list[str]
    texts: list[str]
    digest: str


def write_tokens(
    documents: Iterable[tuple[str, str]],
    tokenizer: Any,
    folder: Path | str,
    source: str,
    *,
    workers: int = 0,
    part_bytes: int = PART_BYTES,
) -> TokenSource:
    """Tokenize (id, text) pairs into `folder`, which appears when it is complete, and open it.

    documents  : read once, in order; one part of them is in memory at a time, whatever their number
    tokenizer  : a fast Hugging Face tokenizer with an eos token. Where it has no bos token (Qwen2.5),
                 documents begin with its eos token, as such models are trained.
    source     : the name under which mixtures know these documents
    workers    : processes that tokenize; 0 does it here. The bytes are the same.
    part_bytes : UTF-8 bytes of text after which a part, and so a token file, ends

    Killed and called again with the same documents, it goes on where it was, in `.<folder>.partial`.

    Special tokens that are written out in a text ("<|eos|>") are tokenized as the text they are: a corpus is
    not trusted to end its own documents. DataError when there is no document, or a text is not Unicode.
    """
    folder = Path(folder)
    bos, eos = document_ends(tokenizer)
    dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4").str
    pending = folder.with_name(f".{folder.name}.partial")
    tokenizer_text = tokenizer_json(tokenizer)
    described = {
        "schema": SCHEMA,
        "source": source,
        "dtype": dtype,
        "tokenizer": hash_tokenizer(tokenizer, tokenizer_text),
        "vocab_size": len(tokenizer),
        "bos": bos,
        "eos": eos,
    }
    with writing_to(folder), _only_writer(pending, described | {"part_bytes": part_bytes}):
        plan = _Plan(pending, source, dtype, bos, eos)
        parts = _write_parts(documents, tokenizer_text, plan, workers, part_bytes)
        if not parts:
            shutil.rmtree(pending)
            raise DataError(
                f"The source {source} has no documents to tokenize",
                where=str(folder),
                remedy="Leave it out of the recipe, or look in its funnel for the stage that dropped all",
            )
        totals = {name: sum(part[name] for part in parts) for name in ("documents", "tokens", "text_bytes")}
        write_json(pending / "shard.json", described | totals | {"parts": parts, "hash": content_hash(parts)})
        _publish(pending, folder, len(parts))
    return TokenSource.open(folder)


def _write_parts(
    documents: Iterable[tuple[str, str]], tokenizer: str, plan: _Plan, workers: int, part_bytes: int
) -> list[dict[str, Any]]:
    """The records of all parts, made now or found from an earlier attempt."""
    encode = text_encoder(tokenizer) if workers == 0 else None
    waiting: list[Job] = []
    count = 0
    for number, part in enumerate(_cut(documents, part_bytes, plan.source)):
        count = number + 1
        record = _read_part(plan.folder, number)
        if record is not None and record["text"] == part.digest:
            continue
        if encode is not None:
            _tokenize(part, number, plan, encode)
            continue
        table = pa.table([part.ids, part.texts], schema=TEXTS)
        with replacing(_texts_file(plan.folder, number)) as temporary:
            pq.write_table(table, temporary, compression="lz4")
        name = f"{plan.source}, part {number}"
        waiting.append(Job(name, _tokenize_job, (plan, tokenizer, number, part.digest)))
        if len(waiting) == workers * PARTS_PER_WORKER:
            run_jobs(waiting, workers=workers, description=f"tokenizing {plan.source}", unit="parts")
            waiting.clear()
    run_jobs(waiting, workers=workers, description=f"tokenizing {plan.source}", unit="parts")
    records = [_read_part(plan.folder, number) for number in range(count)]
    return [{k: v for k, v in record.items() if k != "text"} for record in records if record is not None]


def _cut(documents: Iterable[tuple[str, str]], part_bytes: int, source: str) -> Iterator[_Part]:
    """Parts of at least `part_bytes` of text, but the last."""
    ids: list[str] = []
    texts: list[str] = []
    digest, size = hashlib.sha256(), 0
    for name, text in documents:
        data = _utf8(name, text, source)
        head = name.encode(errors="surrogatepass")
        # With their lengths, so that no other split of the same characters has the same hash.
        digest.update(f"{len(head)} {len(data)}\n".encode() + head)
        digest.update(data)
        ids.append(name)
        texts.append(text)
        size += len(data)
        if size >= part_bytes:
            yield _Part(ids, texts, digest.hexdigest())
            ids, texts, digest, size = [], [], hashlib.sha256(), 0
    if ids:
        yield _Part(ids, texts, digest.hexdigest())


def _tokenize_job(argument: tuple[_Plan, str, int, str], advance: Advance) -> None:
    plan, tokenizer, number, digest = argument
    spooled = _texts_file(plan.folder, number)
    table = pq.read_table(spooled)
    part = _Part(table["id"].to_pylist(), table["text"].to_pylist(), digest)
    _tokenize(part, number, plan, text_encoder(tokenizer))
    spooled.unlink()


def _tokenize(part: _Part, number: int, plan: _Plan, encode: Encode) -> None:
    """Write the files of a part and, last, its record."""
    tokens_file, table_file = part_files(plan.folder, number)
    lengths: list[int] = []
    with replacing(tokens_file) as temporary, temporary.open("wb") as handle:
        for first in range(0, len(part.texts), BATCH_DOCUMENTS):
            flat: list[int] = []
            for ids in encode(part.texts[first : first + BATCH_DOCUMENTS]):
                flat.append(plan.bos)
                flat.extend(ids)
                flat.append(plan.eos)
                lengths.append(len(ids) + 2)
            handle.write(np.asarray(flat, plan.dtype).tobytes())
    text_bytes = [len(text.encode()) for text in part.texts]
    table = pa.table([part.ids, lengths, text_bytes], schema=COLUMNS)
    with replacing(table_file) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    record = {
        "documents": len(lengths),
        "tokens": sum(lengths),
        "text_bytes": sum(text_bytes),
        "sha256": hash_file(tokens_file),
        "sampled": sampled_hash(tokens_file),
        "table": hash_file(table_file),
        "content": table_content(table),
        "text": part.digest,
    }
    write_json(_record_file(plan.folder, number), record)


def _read_part(folder: Path, number: int) -> dict[str, Any] | None:
    path = _record_file(folder, number)
    return read_json(path) if path.exists() else None


def _record_file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.json"


def _texts_file(folder: Path, number: int) -> Path:
    return folder / f"texts-{number:05}.parquet"


@contextmanager
def _only_writer(pending: Path, described: dict[str, Any]) -> Iterator[None]:
    """Hold the unfinished folder for this process; what another tokenizer or cut has left in it is dropped."""
    pending.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(pending, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MachineError(
                "Another process is tokenizing into this folder",
                where=str(pending),
                remedy="Wait for it, stop it, or choose another folder",
            ) from error
        begun = pending / "begun.json"
        if not begun.exists() or read_json(begun) != described:
            for file in pending.iterdir():
                file.unlink()
            write_json(begun, described)
        yield
    finally:
        os.close(descriptor)


def _publish(pending: Path, folder: Path, parts: int) -> None:
    """Give the finished folder its name; only then drop what served to continue."""
    if folder.exists():
        shutil.rmtree(folder)
    pending.replace(folder)
    wanted = {"shard.json"} | {file.name for n in range(parts) for file in part_files(folder, n)}
    for file in folder.iterdir():
        if file.name not in wanted:
            file.unlink()
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _utf8(name: str, text: str, source: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The text of document {name!r} is not valid Unicode: {error.reason}",
            where=source,
            remedy="Repair it, for example with text.encode(errors='replace').decode()",
        ) from error
