"""Curation at scale: selecting from score tables, and what our blocks cost beside the model that they feed.

python -m benchmarks.curation_scale [--write] [selection | overhead]
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import machine, paired, publish, table
from curation.documents import DOCUMENT_SCHEMA, ROW_GROUP_DOCUMENTS, Document, write_documents
from curation.educational import EducationalClassifier, parse_rule, passing
from curation.progress import set_progress_mode
from curation.score_tables import top_share
from curation.scoring.blocks import ReadUnits, ScoreBlock
from curation.scoring.corpus import Corpus
from curation.scoring.parts import fingerprint_of
from curation.scoring.units import plan_units, write_units
from curation.sizes import TokenCount

SOURCES, ROWS, CHARACTERS = 4, 2_000_000, 400
CHECKED_ROWS = 200_000
THRESHOLD, SHARE = 3.0, 0.1
DATATROVE_ROWS = 100_000


def selection(*, write: bool) -> None:
    """Threshold, exact top tenth of each source and the kept texts, from score tables and document files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answers = set()
        for parts in (1, 2, 8):
            _make_rows(folder / f"{parts} files", CHECKED_ROWS, parts)
            answers.add(_digest(_select(folder / f"{parts} files")))
        assert len(answers) == 1
        _make_rows(folder, ROWS, 1)

        def ours() -> None:
            _select(folder)

        def datatrove() -> None:
            _datatrove_filter(folder)

        timings = paired({"ours": ours, "datatrove": datatrove}, rounds=2)
        kept = _select(folder).height
        shown = [
            (
                "threshold, exact top 10 % of each source, kept texts",
                f"{ROWS:,}",
                f"{kept:,}",
                f"{ROWS / timings['ours'].seconds:,.0f}",
            ),
            (
                "datatrove: threshold only (LambdaFilter on the scores beside the text)",
                f"{DATATROVE_ROWS:,}",
                "",
                f"{DATATROVE_ROWS / timings['datatrove'].seconds:,.0f}",
            ),
        ]
        text = f"""## Selection over score tables

{ROWS:,} documents of {SOURCES} sources, {CHARACTERS} characters each, parquet; a score above {THRESHOLD:g}, then the
exact top {SHARE:.0%} of each source by another score with the id as tie-break, then the texts of those read from the
document files. The same ids and texts for 1, 2 and 8 files a source ({CHECKED_ROWS:,} documents). datatrove's
pipeline cannot take a share of a whole source; it does the threshold alone, from and to parquet. One thread of ours;
documents per CPU-second.

{table(("what", "documents", "kept", "documents / CPU-s"), shown)}
{machine("polars", "pyarrow", "datatrove")}
"""
        publish("curation-selection", text, write=write)


def overhead(*, write: bool) -> None:
    """Our reader and score block around a BERT-shaped classifier, beside the classifier called on the same groups."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scorer = _Classifier(_make_classifier(folder / "model"))
        documents = _make_documents(192)
        write_documents(folder / "d.parquet", documents)
        corpus = Corpus("s", (folder / "d.parquet",))
        fingerprint = fingerprint_of(scorer, 64)
        write_units(folder / "plan", plan_units(corpus.listing(), corpus.files, "s", fingerprint, 64))
        scores: dict[str, np.ndarray] = {}

        def bare() -> None:
            groups = [scorer.score(documents[first : first + 64]) for first in range(0, len(documents), 64)]
            scores["bare"] = np.concatenate([group["educational_score"] for group in groups])

        def blocks() -> None:
            shutil.rmtree(folder / "parts", ignore_errors=True)
            block = ScoreBlock(scorer, folder / "parts", unit_documents=64, fingerprint=fingerprint)
            found = list(block(ReadUnits(folder / "plan", folder / "parts")()))
            scores["blocks"] = np.array([d.metadata["educational/educational_score"] for d in found])

        timings = paired({"bare": bare, "blocks": blocks}, rounds=5)
        assert (scores["bare"] == scores["blocks"].astype(np.float32)).all()
        ratio = timings["blocks"].ratio(timings["bare"])
        rows = [
            (name, f"{t.seconds:.2f}", f"{len(documents) / t.seconds:.1f}") for name, t in timings.items()
        ]
        tokens = _tokens(scorer.model, documents)
        text = f"""## Overhead of the scoring blocks

A BERT of 2 layers of 256 with one output, {len(documents)} documents of {tokens:.0f} tokens, float32, units of 64.
Reading the documents from parquet, making datatrove documents, scoring, writing the parts (flushed to disk), beside
calling the classifier on the same groups in memory; equal scores. CPU time, median of 5 paired rounds.

{table(("", "CPU seconds", "documents / CPU-s"), rows)}
Overhead: {100 * (1 / ratio - 1):+.1f} %.

{machine("torch", "transformers", "datatrove", "pyarrow")}
"""
        publish("curation-overhead", text, write=write)


@dataclass(frozen=True)
class _Classifier(EducationalClassifier):
    """The classifier with the cheap fingerprint that a benchmark needs."""

    def fingerprint(self) -> dict[str, Any]:
        return {"model": self.model}


def _make_rows(folder: Path, rows: int, parts: int) -> None:
    """Score tables `scores/<source>.parquet`, and documents in `parts` files a source."""
    noise, words = np.random.default_rng(0), random.Random(0)
    alphabet = ["".join(words.choices("abcdefghijklmnop", k=words.randint(2, 9))) for _ in range(3000)]
    pool = [" ".join(words.choices(alphabet, k=CHARACTERS // 5))[:CHARACTERS] for _ in range(4000)]
    size = rows // SOURCES
    (folder / "scores").mkdir(parents=True)
    for source in range(SOURCES):
        ids = [sha256(f"{source} {i}".encode()).hexdigest()[:20] for i in range(size)]
        scores = pl.DataFrame(
            {
                "id": ids,
                "educational_score": noise.normal(3, 1, size).astype(np.float32),
                "margin": noise.normal(0, 4, size).astype(np.float16).astype(np.float32),  # with ties
            }
        )
        scores.sort("id").write_parquet(folder / "scores" / f"{source}.parquet")
        step = size // parts
        for number in range(parts):
            chosen = ids[number * step : (number + 1) * step]
            _write_rows(folder / "documents" / f"{source}-{number}.parquet", str(source), chosen, pool)
    first = pl.read_parquet(folder / "scores" / "0.parquet")
    joined = pl.read_parquet(folder / "documents" / "0-0.parquet", n_rows=DATATROVE_ROWS).join(first, on="id")
    joined.select("id", "text", "educational_score").write_parquet(folder / "joined.parquet")


def _write_rows(file: Path, source: str, ids: Sequence[str], pool: Sequence[str]) -> None:
    file.parent.mkdir(exist_ok=True)
    # No dictionary: the texts are drawn from a pool, and a real corpus has each text once.
    with pq.ParquetWriter(file, DOCUMENT_SCHEMA, compression="zstd", use_dictionary=False) as writer:
        for first in range(0, len(ids), ROW_GROUP_DOCUMENTS):
            group = ids[first : first + ROW_GROUP_DOCUMENTS]
            texts = [pool[int(name[:8], 16) % len(pool)] for name in group]
            nothing = [None] * len(group)
            columns = {
                "id": group,
                "text": texts,
                "source": [source] * len(group),
                "url": nothing,
                "meta": nothing,
            }
            writer.write_table(pa.Table.from_pydict(columns, schema=DOCUMENT_SCHEMA))


def _select(folder: Path) -> pl.DataFrame:
    kept = []
    for source in range(SOURCES):
        files = sorted((folder / "documents").glob(f"{source}-*.parquet"), reverse=True)
        corpus = Corpus(str(source), tuple(files))
        scores = pl.read_parquet(folder / "scores" / f"{source}.parquet")
        taught = passing(scores, parse_rule(f"raw > {THRESHOLD:g}"))
        chosen = top_share(taught, "margin", SHARE)
        texts = corpus.rows(corpus.listing().join(chosen, on="id", how="semi"))
        kept.append(chosen.join(texts, on="id", how="left", maintain_order="left"))
    return pl.concat(kept)


def _digest(found: pl.DataFrame) -> str:
    assert found["text"].null_count() == 0
    return sha256("\0".join(found["id"].to_list() + found["text"].to_list()).encode()).hexdigest()


def _datatrove_filter(folder: Path) -> None:
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    with redirect_stderr(StringIO()):
        shutil.rmtree(folder / "filtered", ignore_errors=True)
        data: Iterator[Any] | None = None
        for step in (
            ParquetReader(str(folder), glob_pattern="joined.parquet"),
            LambdaFilter(lambda document: document.metadata["educational_score"] > THRESHOLD),
            ParquetWriter(str(folder / "filtered"), compression="zstd"),
        ):
            data = step(data)
        deque(data or (), maxlen=0)


def _make_documents(count: int) -> list[Document]:
    words = random.Random(1)
    alphabet = ["".join(words.choices("etaoinshrdlu", k=words.randint(2, 8))) for _ in range(2000)]
    texts = [" ".join(words.choices(alphabet, k=words.randint(40, 90))) for _ in range(count)]
    return [Document(f"{number:05d}", text, "s") for number, text in enumerate(texts)]


def _tokens(model: str, documents: Sequence[Document]) -> float:
    counts = TokenCount(model).score(documents)["tokens"]
    return float(np.minimum(counts, 512).mean())


def _make_classifier(folder: Path) -> str:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from curation.rater_tokenizer import train_rater_tokenizer

    train_rater_tokenizer([d.text for d in _make_documents(50)], folder, vocabulary=2000)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        problem_type="regression",
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Run the sections named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("sections", nargs="*", help="selection, overhead; all when none is named")
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    given = parser.parse_args()
    set_progress_mode("quiet")
    for section in (selection, overhead):
        if not given.sections or section.__name__ in given.sections:
            section(write=given.write)


if __name__ == "__main__":
    main()
