"""Tokenisation: `training.tokenizing` against datatrove's DocumentTokenizer, one thread, same text and tokenizer.

    python -m benchmarks.training_tokens [FILE.parquet | FILE.jsonl.gz ...] [--megabytes 8] [--write]

Without files, the text is this Python installation's own. Both write tokens and document boundaries; ours also
ids, hashes and a table, and looks for no special tokens in the text. datatrove's shuffling is off.
"""

from __future__ import annotations

import argparse
import os
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.measure import machine, paired, publish, table
from curation.readers import read_files
from training.tokenizer import train_tokenizer
from training.tokenizing import write_tokens
from training.tokens import TokenSource

VOCABULARY = 8192


def read_texts(files: list[Path], megabytes: float) -> list[tuple[str, str]]:
    """(id, text) pairs of at most so much UTF-8."""
    if files:
        texts = [document.text for document in read_files(files)[0]]
    else:
        paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    found, size = [], 0
    for index, text in enumerate(texts):
        if size >= megabytes * 1e6:
            break
        found.append((f"{index:020}", text))
        size += len(text.encode())
    return found


def contestants(
    documents: list[tuple[str, str]], folder: Path
) -> tuple[dict[str, Callable[[], object]], int]:
    """What runs, and the tokens of our result."""
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer

    tokenizer = train_tokenizer((text for _, text in documents), VOCABULARY, folder / "tokenizer")
    path = folder / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(path))
    numbers = count()

    def ours() -> TokenSource:
        return write_tokens(documents, tokenizer, folder / f"ours-{next(numbers)}", "text")

    def theirs() -> None:
        step = DocumentTokenizer(
            str(folder / f"theirs-{next(numbers)}"), str(path), eos_token="<|eos|>", shuffle_documents=False
        )
        step.run(Document(text=text, id=name) for name, text in documents)

    return {"mixwright": ours, "datatrove": theirs}, ours().total_tokens


def tokenisation(*, write: bool, files: Sequence[Path] = (), megabytes: float = 8.0, rounds: int = 5) -> None:
    """Time both, and print or publish the table."""
    documents = read_texts(list(files), megabytes)
    with tempfile.TemporaryDirectory() as folder:
        work, tokens = contestants(documents, Path(folder))
        times = paired(work, rounds=rounds)
    size = sum(len(text.encode()) for _, text in documents) / 1e6
    rows = [
        [
            name,
            f"{tokens / time.seconds:,.0f}",
            f"{size / time.seconds:.2f}",
            f"{time.ratio(times['datatrove']):.2f}",
        ]
        for name, time in times.items()
    ]
    text = (
        "## Tokenisation\n\n"
        f"{len(documents):,} documents, {size:.1f} MB, {tokens:,} tokens of a byte-level BPE of "
        f"{VOCABULARY:,}; one thread, "
        "CPU time of the process, median of paired rounds (`python -m benchmarks.training_tokens`).\n\n"
        + table(["", "tokens/s", "MB/s", "against datatrove"], rows)
        + f"\n{machine('tokenizers', 'datatrove', 'numpy')}\n"
    )
    publish("tokenisation", text, write=write)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--megabytes", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    tokenisation(**vars(arguments))
