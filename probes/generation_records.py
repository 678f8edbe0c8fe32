"""Samples of generation benchmarks as parquet files that know which run they are of."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from curation.atomic import replacing
from curation.errors import DataError
from training.model import Decoder

SAMPLES = pa.schema(
    [
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("replica", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("answer_class", pa.int32(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("prompt_cut", pa.int32(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
    ]
)
"""A row a sample.

text          : what was judged: without the end token, cut before the first stop string
tokens        : length of `token_ids`, up to and with the end token or the one that completes a stop string
answer        : as found in the text, null for none; answer_class numbers the equal ones of a prompt, -1 for none
prompt_tokens : as fed; prompt_cut more were left out because the context had no room
"""
_IDENTITY, _SETTINGS = b"mixwright.run", b"mixwright.settings"


def write_samples(path: Path, table: pa.Table, identity: str, settings: str = "") -> None:
    """Write samples, atomically, with what tells their run from others."""
    told = {_IDENTITY: identity.encode(), _SETTINGS: settings.encode()}
    with replacing(path) as temporary:
        pq.write_table(table.replace_schema_metadata(told), temporary, compression="zstd")


def read_samples(path: Path, identity: str) -> pa.Table | None:
    """The samples of a file; None when there is none or they are of another run. DataError for a broken file."""
    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
        if (table.schema.metadata or {}).get(_IDENTITY) != identity.encode():
            return None
        return table.select(SAMPLES.names).cast(SAMPLES)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"The file of samples cannot be read: {error}",
            where=str(path),
            remedy="Delete it; the evaluation makes it again",
        ) from error


def model_hash(model: Decoder) -> str:
    """Hex sha256 of a model's shape and parameters, as they are in memory."""
    found = hashlib.sha256(repr(model.config).encode())
    for name, parameter in model.named_parameters():
        found.update(name.encode() + str(parameter.dtype).encode())
        flat = parameter.detach().to("cpu").contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
