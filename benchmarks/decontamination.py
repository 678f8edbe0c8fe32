"""Decontamination against a plain Python set and datatrove's filter, on real text.

    python -m benchmarks.decontamination --corpora FOLDER [--write]

Benchmark side: the prompts of gsm8k_train. Corpus side: the first documents of stackexchange and math_text. All three
contestants look for the same runs of 13 words, made by the same function, on one thread.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from itertools import islice
from pathlib import Path

from benchmarks.measure import CORPORA, machine, paired, publish, table
from curation.documents import Document
from curation.overlap_index import WORDS, ReferenceIndex, words_of

DOCUMENTS = 400
"""Of each corpus and round."""


def read(file: Path, field: str, most: int | None = None) -> list[Document]:
    """Documents of a file of JSON lines."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = islice((json.loads(line) for line in lines), most)
        return [Document(f"{file.name} {n}", row[field], file.name) for n, row in enumerate(rows)]


def runs_of(text: str) -> set[str]:
    """The runs of 13 words of a text, as strings."""
    found = words_of(text)
    return {" ".join(found[at : at + WORDS]) for at in range(len(found) - WORDS + 1)}


def datatrove_filter(items: list[Document], folder: Path):
    """datatrove's filter with an index of the items, and our words, since its own need spaCy."""
    import numpy as np
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.utils.hashing import create_hash_func
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return words_of(text)

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    as_it_is = TextNormConfig(False, False, False, False, False)
    config = NGramsDecontConfig(n_grams=WORDS, norm_config=as_it_is)
    make_hash = create_hash_func(config.hash_config)
    hashes = {make_hash(run) for item in items for run in runs_of(item.text)}
    np.array(sorted(hashes), dtype=np.uint64).tofile(folder / "gsm8k.index.hashes")
    return NGramsDecontFilter(str(folder), config=config, language=Words())


def decontamination(*, write: bool, corpora: Path = CORPORA) -> None:
    """Compare, check that all find the same documents, and print or publish the table."""
    items = [d for d in read(corpora / "gsm8k_train.jsonl.gz", "prompt") if len(words_of(d.text)) >= WORDS]
    corpus = [
        document
        for name in ("stackexchange", "math_text")
        for document in read(corpora / f"{name}.jsonl.gz", "text", DOCUMENTS)
    ]
    corpus += [Document(f"copy {n}", f"Exercise. {items[n].text} Answer: 7", "copies") for n in range(20)]
    index = ReferenceIndex(items)
    known = {run for item in items for run in runs_of(item.text)}

    def ours() -> list[str]:
        return [d.id for d in corpus if index.overlaps(d)]

    def plain_set() -> list[str]:
        return [d.id for d in corpus if not known.isdisjoint(runs_of(d.text))]

    with tempfile.TemporaryDirectory() as folder:
        step = datatrove_filter(items, Path(folder))

        def datatrove() -> list[str]:
            return [d.id for d in corpus if step.filter(_theirs(d)) is not True]

        assert ours() == plain_set() == datatrove(), "all three must find the same documents"
        timings = paired({"mixwright": ours, "Python set": plain_set, "datatrove": datatrove}, rounds=5)
    megabytes = sum(len(d.text.encode()) for d in corpus) / 1e6
    mine = timings["mixwright"]
    rows = [
        [name, f"{megabytes / timing.seconds:.1f}", f"{mine.ratio(timing):.2f}", gives]
        for (name, timing), gives in zip(
            timings.items(), ("items, shares, runs", "document or not", "document or not"), strict=True
        )
    ]
    text = (
        f"## Decontamination\n\n{machine('datatrove', 'numpy')}; {len(items):,} items, "
        f"{len(corpus)} documents, {megabytes:.1f} MB, {len(ours())} of them contaminated.\n\n"
        + table(["decontamination", "MB per CPU-second", "time, ours = 1", "tells"], rows)
    )
    publish("decontamination", text, write=write)


def _theirs(document: Document):
    from datatrove.data import Document as Theirs

    return Theirs(text=document.text, id=document.id)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpora", type=Path, default=CORPORA)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    decontamination(write=arguments.write, corpora=arguments.corpora)
