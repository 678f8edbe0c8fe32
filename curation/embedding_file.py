"""Embeddings of more documents than memory holds: a memory-mapped file that a killed pass continues."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

import numpy as np

from curation.atomic import hash_value, read_json, write_json, writing_to
from curation.embedding import CHUNK_TEXTS, embedded_chunks, embedding_size, resolve_embedding
from curation.errors import DataError
from curation.packed_encoder import ROUNDING
from curation.precision import Precision
from curation.progress import progress
from curation.score_tables import model_fingerprint


def embed_to_file(
    texts: Sequence[str],
    model: Path | str,
    folder: Path | str,
    *,
    batch_texts: int = 32,
    device: str = "cpu",
    precision: Precision | Literal["int8"] = "float32",
) -> np.ndarray:
    """`embed` into `<folder>/vectors.npy`; returns it memory-mapped and read-only, float32 [n, dim].

    While it works the file is `.vectors.npy.partial`, and `.vectors.json` says how many of its rows are on the disk:
    a killed pass goes on from there and ends with equal bytes. `vectors.json` names the model, the precision and a
    hash of the texts; a finished file of the same is returned as it is, one of others is made anew.
    """
    folder = Path(folder)
    final, partial = folder / "vectors.npy", folder / ".vectors.npy.partial"
    done, state = folder / "vectors.json", folder / ".vectors.json"
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    facts: dict[str, object] = {
        "model": model_fingerprint(str(model)),
        "precision": resolve_embedding(precision, device),
        "batch_texts": batch_texts,
        "device": device,
        "texts": len(texts),
        "texts_sha256": digest.hexdigest(),
    }
    if facts["precision"] != "float32":
        facts["rounding"] = ROUNDING
    if final.exists() and _read(done) == facts:
        return _open(final)
    shape = (len(texts), embedding_size(model, device=device))
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        rows = _resume(partial, state, hash_value(facts), shape)
        with progress("embedding", total=len(texts), unit="documents") as task:
            task.advance(rows)
            chunks = embedded_chunks(
                texts, model, batch_texts=batch_texts, device=device, precision=precision, start=rows
            )
            for vectors in chunks:
                _append(partial, shape, rows, vectors)
                rows += len(vectors)
                write_json(state, {"key": hash_value(facts), "rows": rows})
                task.advance(len(vectors))
        done.unlink(missing_ok=True)
        partial.replace(final)
    write_json(done, facts)
    state.unlink(missing_ok=True)
    return _open(final)


def _resume(partial: Path, state: Path, key: str, shape: tuple[int, int]) -> int:
    """Rows that an earlier pass over the same texts left, a multiple of the chunk; 0 starts a new file."""
    before = _read(state)
    if isinstance(before, dict) and before.get("key") == key and partial.exists():
        rows = before.get("rows")
        if isinstance(rows, int):
            whole = rows % CHUNK_TEXTS == 0 or rows == shape[0]
            if whole and partial.stat().st_size >= _header_bytes(shape) + rows * shape[1] * 4:
                return rows
    state.unlink(missing_ok=True)
    # Written as a file and not through the map: a full disk must be an error here, not a signal later.
    with partial.open("wb") as handle:
        _write_header(handle, shape)
    return 0


def _append(partial: Path, shape: tuple[int, int], row: int, vectors: np.ndarray) -> None:
    with partial.open("r+b") as handle:
        handle.seek(_header_bytes(shape) + row * shape[1] * 4)
        handle.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        handle.truncate()  # what a killed pass wrote beyond its last record
        handle.flush()
        os.fsync(handle.fileno())


def _header_bytes(shape: tuple[int, int]) -> int:
    buffer = io.BytesIO()
    _write_header(buffer, shape)
    return buffer.tell()


def _write_header(handle: IO[bytes], shape: tuple[int, int]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(handle, header)


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, OSError) as error:
        raise DataError(
            "The file of embeddings cannot be read", where=str(path), remedy="Remove it and run again"
        ) from error


def _read(path: Path) -> object:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
