"""Which step of deduplication finds pages made from a template, on real medical pages, and what it drops besides.

    python -m benchmarks.curation_templates [--embedder FOLDER-or-id --embedder-name NAME] [--write]

A page counts as made from a template by a measure that compares no two documents: the share of its different 5-word
runs that at least 50 documents of the corpus have. Without `--embedder` the rows of a trained embedder are missing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.curation_models import real_texts
from benchmarks.measure import machine, publish, table
from curation.documents import Document, document_id, write_documents
from curation.embedding import embed, train_lsa_embedder
from curation.minhash import MinhashSettings, shingles
from curation.near_duplicates import NearDuplicateSettings, find_near_duplicates
from curation.rater_tokenizer import train_rater_tokenizer
from curation.semantic_duplicates import find_duplicates

OFTEN = 50
"""Documents that must have a run of words for it to count as a template's."""
MOSTLY, HALF = 0.7, 0.5
OTHER_CORPORA = ("wiki", "math_text", "formal", "books")
COSINES = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6)


@dataclass(frozen=True)
class Step:
    """One step at one threshold; `dropped` are pairs of rows (dropped, kept instead)."""

    name: str
    dropped: Sequence[tuple[int, int]]


def template_shares(texts: Sequence[str], often: int = OFTEN) -> np.ndarray:
    """Share [n] of each text's different 5-word runs that at least `often` of the texts have."""
    runs = [shingles(text, MinhashSettings()) for text in texts]
    found, counts = np.unique(np.concatenate(runs), return_counts=True)
    common = found[counts >= often]
    return np.array([np.isin(own, common).mean() if len(own) else 0.0 for own in runs])


def shared(kept: str, dropped: str, words: int = 5) -> float:
    """Share of `dropped`'s runs of `words` words that `kept` has too, counted as often as they occur."""
    runs = [
        Counter(zip(*(text.lower().split()[k:] for k in range(words)), strict=False))
        for text in (kept, dropped)
    ]
    return (runs[0] & runs[1]).total() / max(1, runs[1].total())


def minhash(texts: Sequence[str], settings: MinhashSettings | None) -> list[tuple[int, int]]:
    """(dropped, kept instead) of exact and MinHash deduplication together."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "in" / "part-00000.parquet"
        write_documents(file, [Document(f"{row:08d}", text, "s") for row, text in enumerate(texts)])
        found = find_near_duplicates(
            {"s": file.parent}, Path(scratch) / "out", NearDuplicateSettings(minhash=settings)
        )
    return [(int(dropped), int(kept)) for dropped, kept in found.select("dropped", "kept_instead").rows()]


def word_steps(texts: Sequence[str]) -> Iterator[Step]:
    """Exact deduplication, and MinHash by threshold."""
    default = MinhashSettings()
    for name, settings in (
        ("exact", None),
        *((f"MinHash, Jaccard {s}", MinhashSettings(s, buckets=20, hashes=6)) for s in (0.8, 0.7)),
        ("MinHash, Jaccard 0.6", MinhashSettings(0.6)),
        (f"MinHash, Jaccard {default.similarity} (default)", default),
        ("MinHash, Jaccard 0.5", MinhashSettings(0.5)),
    ):
        yield Step(name, minhash(texts, settings))


def meaning_steps(name: str, vectors: np.ndarray, thresholds: Sequence[float]) -> Iterator[Step]:
    """Semantic deduplication, greedy, at each threshold."""
    for threshold in thresholds:
        found = find_duplicates(vectors, threshold)
        yield Step(f"{name}, cosine {threshold}", [(row, kept) for row, kept, _ in found])


def together(texts: Sequence[str], name: str, vectors: np.ndarray) -> Step:
    """What the defaults drop one after the other: MinHash, then .9 of cosine among what it left."""
    dropped = minhash(texts, MinhashSettings())
    gone = {row for row, _ in dropped}
    left = np.array([row for row in range(len(texts)) if row not in gone])
    later = [(int(left[row]), int(left[kept])) for row, kept, _ in find_duplicates(vectors[left], 0.9)]
    return Step(f"both defaults: MinHash, then {name} at 0.9", [*dropped, *later])


def line(step: Step, texts: Sequence[str], shares: np.ndarray) -> list[object]:
    """A row of the table: what a step dropped, how many pages of the template are among it, and the overlaps."""
    rows = np.array([row for row, _ in step.dropped], dtype=np.int64)
    overlap = np.array([shared(texts[kept], texts[row]) for row, kept in step.dropped])
    found = [
        f"{int((shares[rows] >= least).sum())} of {int((shares >= least).sum())}" for least in (MOSTLY, HALF)
    ]
    return [
        step.name,
        f"{len(rows):,}",
        *found,
        int((overlap >= 0.5).sum()),
        int((overlap < 0.2).sum()),
        "–" if not len(rows) else f"{np.median(overlap):.2f}",
    ]


def elsewhere() -> str:
    """What the thresholds of words drop in the four corpora that hold no such template."""
    counts = {}
    for corpus in OTHER_CORPORA:
        texts = real_texts(corpus, 10**9)
        counts[corpus] = [
            len(minhash(texts, settings)) for settings in (MinhashSettings(0.7), MinhashSettings())
        ]
    found = ", ".join(f"{name} {a} and {b}" for name, (a, b) in counts.items())
    return f"Dropped in the other four corpora at Jaccard .7 and at the default: {found}."


def other_orders(texts: Sequence[str], orders: int = 4) -> str:
    """What the default drops when other documents come first: of pages about as near to each other, which are dropped
    depends on which is kept."""
    counts = []
    for seed in range(orders):
        order = np.random.default_rng(seed).permutation(len(texts))
        counts.append(len(minhash([texts[row] for row in order], MinhashSettings())))
    return (
        f"In {orders} random orders of the documents the default drops {', '.join(map(str, sorted(counts)))}."
    )


def templated(*, write: bool, embedder: str | None = None, embedder_name: str | None = None) -> None:
    """The medical pages made from one template among questions and answers."""
    torch.set_num_threads(1)
    texts = sorted(real_texts("stackexchange", 10**9), key=lambda text: document_id("stackexchange", text))
    shares = template_shares(texts)
    steps = list(word_steps(texts))
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = train_rater_tokenizer(texts[::3], Path(scratch) / "tokenizer", vocabulary=8000)
        own = str(train_lsa_embedder(texts, tokenizer, Path(scratch) / "lsa", dim=256))
        vectors = embed(texts, own)
    steps += meaning_steps("latent semantic analysis", vectors, COSINES[:4])
    if embedder is not None:
        name = embedder_name or "trained embedder"
        vectors = embed(texts, embedder, precision="bfloat16")
        steps += meaning_steps(name, vectors, COSINES)
        steps.append(together(texts, name, vectors))
    header = [
        "step, over the whole source",
        "dropped",
        "pages mostly template",
        "pages half template",
        "overlap of half or more",
        "overlap below .2",
        "median overlap",
    ]
    text = (
        f"## Natural near-duplicates among {len(texts):,} questions and medical pages\n\n"
        f"A page is mostly (half) template when {MOSTLY} ({HALF}) of its different 5-word runs are in {OFTEN} "
        "documents or more, which compares no two documents. The overlap of a dropped document with the one kept "
        "instead is the share of its 5-word runs that the other has too. Latent semantic analysis is of the corpus "
        f"itself (256 dimensions); the trained embedder is {embedder_name or 'missing'}, in bfloat16. Documents are in "
        "the order of their ids, as in a run; greedy rule.\n\n"
        + table(header, [line(step, texts, shares) for step in steps])
        + f"\n{other_orders(texts)} {elsewhere()}\n\n{machine('datatrove', 'sentence-transformers')}\n"
    )
    publish("curation: templated pages", text, write=write)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--embedder")
    parser.add_argument("--embedder-name", help="what the table calls it")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    templated(write=arguments.write, embedder=arguments.embedder, embedder_name=arguments.embedder_name)
