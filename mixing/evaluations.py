"""A model's likelihood on every document of every probe, as a file beside the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.atomic import hash_file, replacing
from curation.documents import read_documents
from curation.errors import DataError
from mixing.proxy import ProxySettings
from probes.intervals import bits_per_byte, nats_per_token
from probes.likelihood import LIKELIHOOD_SCHEMA, TokenizedDocument, score_documents, tokenize_documents
from training.model import Decoder
from training.tokenizer import load_tokenizer

EVALUATION_SCHEMA = pa.schema([pa.field("probe", pa.string(), nullable=False), *LIKELIHOOD_SCHEMA])


def read_evaluation(folder: Path | str, run_id: str, step: int) -> dict[str, pa.Table]:
    """Likelihood tables of a run's probes at a step (`probes.likelihood.LIKELIHOOD_SCHEMA`)."""
    path = Path(folder) / run_id / "evaluations" / f"step-{step}.parquet"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"The evaluation cannot be read: {error}",
            where=str(path),
            remedy="Delete the run's folder and run again",
        ) from error
    probes = sorted(set(table["probe"].to_pylist()))
    return {probe: table.filter(pc.equal(table["probe"], probe)).drop_columns(["probe"]) for probe in probes}


@dataclass(frozen=True)
class ProbeSet:
    """Tokenized probes; a document in several probes is scored once."""

    documents: tuple[TokenizedDocument, ...]
    members: tuple[tuple[str, tuple[int, ...]], ...]
    context: int
    stride: int
    batch_tokens: int

    @staticmethod
    def load(settings: ProxySettings) -> ProbeSet:
        """Read and tokenize the probes of a study; kept for the next run in the same process."""
        files = tuple((name, str(path)) for name, path in sorted(settings.probes.items()))
        documents, members = _tokenized_probes(
            files, str(settings.tokenizer), tuple(hash_file(path) for _, path in files)
        )
        return ProbeSet(
            documents, members, settings.evaluation_context, settings.evaluation_stride, settings.batch_tokens
        )

    def evaluate(self, model: Decoder, path: Path) -> dict[str, float]:
        """Score all documents, write the rows of every probe, return bits per byte by probe."""
        table = score_documents(
            model, self.documents, context=self.context, stride=self.stride, batch_tokens=self.batch_tokens
        )
        parts = []
        for probe, rows in self.members:
            part = table.take(pa.array(rows))
            column = pa.array([probe] * len(rows), pa.string())
            parts.append(part.add_column(0, EVALUATION_SCHEMA.field("probe"), column))
        with replacing(path) as temporary:
            pq.write_table(pa.concat_tables(parts), temporary, compression="zstd")
        return {
            probe: bits_per_byte(part.drop_columns(["probe"]))
            for (probe, _), part in zip(self.members, parts, strict=True)
        }


@lru_cache(maxsize=2)
def _tokenized_probes(
    files: tuple[tuple[str, str], ...], tokenizer: str, hashes: tuple[str, ...]
) -> tuple[tuple[TokenizedDocument, ...], tuple[tuple[str, tuple[int, ...]], ...]]:
    """Kept between the runs of one worker; `hashes` is there so that a changed file is read again."""
    probes = {name: read_documents(path) for name, path in files}
    unique = {d.id: d for documents in probes.values() for d in documents}
    place = {name: index for index, name in enumerate(sorted(unique))}
    tokenized = tokenize_documents([unique[name] for name in sorted(unique)], load_tokenizer(tokenizer))
    members = tuple((name, tuple(place[d.id] for d in probes[name])) for name in sorted(probes))
    return tuple(tokenized), members


def metric_rows(folder: Path, run_id: str, steps: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of metrics.csv for a run's evaluations, with the number of tokens that each scored."""
    rows = []
    for step in sorted(set(steps)):
        tables = read_evaluation(folder.parent, run_id, step)
        for probe in sorted(tables):
            rows.append(
                {
                    "run_id": run_id,
                    "step": step,
                    "probe": probe,
                    "bits_per_byte": bits_per_byte(tables[probe]),
                    "nats_per_token": nats_per_token(tables[probe]),
                    "tokens": pc.sum(tables[probe]["tokens"]).as_py(),
                }
            )
    return rows
