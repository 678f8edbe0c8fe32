"""The cascade over a generated corpus, in a process of its own; prints the peak of its memory in bytes."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from curation.cascade import Scorers, select_representative
from curation.documents import Document, write_documents
from curation.memory import peak_memory
from curation.progress import set_progress_mode
from curation.scoring.corpus import corpus_of
from tests.curation.test_cascade import JUDGES, SETTINGS, Known, embed

SOURCES = ("alpha", "beta")
DOCUMENTS = 1000


def make(folder: Path, characters: int) -> None:
    """Write both sources, in files of 100 documents."""
    for source in SOURCES:
        noise = random.Random(source)
        for first in range(0, DOCUMENTS, 100):
            texts = [
                f"{source} {n} {noise.randbytes(characters // 2).hex()}" for n in range(first, first + 100)
            ]
            found = [Document(f"{source}-{first + n:05d}", text, source) for n, text in enumerate(texts)]
            write_documents(folder / source / f"part-{first:05d}.parquet", found)


def main(folder: Path) -> int:
    set_progress_mode("quiet")
    scorers = Scorers(Known("educational", ("educational_score",), 1), JUDGES, embed)  # type: ignore[arg-type]
    capabilities = {"alpha": ("code",), "beta": ("knowledge",)}
    corpora = {source: corpus_of(source, folder / source) for source in SOURCES}
    select_representative(
        corpora, capabilities, scorers, SETTINGS, scores=folder / "scores", out=folder / "out"
    )
    return peak_memory()


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
