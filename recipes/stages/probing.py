"""The stages that hold text out of training, and tokenize the rest."""

from __future__ import annotations

import copy
import hashlib
import heapq
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from curation.atomic import write_json
from curation.documents import Document, read_documents
from curation.errors import DataError
from curation.overlap_index import ReferenceIndex
from curation.workers import Advance, Job, run_jobs
from probes.capability import build_probes, read_probes, without_held_out, write_probes
from recipes.pipeline import Run, Spent, Stage
from recipes.stages.text import test_documents, training_documents
from training.tokenizer import load_tokenizer
from training.tokenizing import write_tokens
from training.tokens import TokenSource

OVERLAP_SHARE = 0.5
"""A training document of which a held-out text shares at least this part of its 13-word runs is left out. Any single
run would drop most of a templated corpus, whose documents share their wording by design."""


def _by_capability(run: Run, documents: dict[str, list[Document]]) -> dict[str, list[Document]]:
    sets: dict[str, list[Document]] = {}
    for source in run.recipe.sources:
        for capability in source.capabilities:
            sets.setdefault(capability, []).extend(documents[source.name])
    return {name: sorted(found, key=lambda d: (d.source, d.id)) for name, found in sorted(sets.items())}


def _first(documents: Iterable[Document], count: int, seed: int) -> list[Document]:
    """`count` documents in the order of a seeded hash; no more are in memory."""
    return heapq.nsmallest(
        count, documents, key=lambda d: hashlib.sha256(f"held out\0{seed}\0{d.id}".encode()).digest()
    )


def _probes(run: Run) -> Spent:
    recipe = run.recipe
    representative = {
        source.name: _first(
            read_documents(run.path("representative", f"{source.name}.parquet")),
            round(recipe.probes.maximum_documents / recipe.probes.share),
            recipe.seed,
        )
        for source in recipe.sources
        if source.capabilities
    }
    capabilities = {name: recipe.capabilities_of[name] for name in representative}
    chosen = build_probes(representative, capabilities, share=recipe.probes.share, seed=recipe.seed)
    write_probes(run.path("probes"), chosen)
    return Spent()


def _test(run: Run) -> Spent:
    recipe = run.recipe
    documents = {}
    for source in recipe.sources:
        if not source.capabilities:
            continue
        documents[source.name] = _first(
            test_documents(run, source.name), recipe.probes.maximum_test_documents, recipe.seed
        )
        if not documents[source.name]:
            raise DataError(
                "No document was set aside for the test",
                where=f"source {source.name}",
                remedy="Raise `probes.test_share`, or give the source more files",
            )
    write_probes(run.path("test"), _by_capability(run, documents))
    return Spent()


def _tokenize_one(argument: tuple[Run, str], advance: Advance) -> dict[str, Any]:
    """Tokens of the documents of a source that may be trained on, and what was left out.

    The documents pass through once: what is in memory does not grow with the source, but for its table of ids.
    """
    run, source = argument
    held_out = {f"probe {name}": documents for name, documents in read_probes(run.path("probes")).items()}
    held_out |= {f"test {name}": documents for name, documents in read_probes(run.path("test")).items()}
    passing = _Passing(held_out)
    kept = passing.trainable(training_documents(run, source))
    first = next(kept, None)
    if first is None:
        raise DataError(
            "Nothing is left to train on",
            where=f"source {source}",
            remedy="Give the source more text, or lower `probes.share`",
        )
    tokenizer = load_tokenizer(run.path("tokenizer", "model"))
    write_tokens(itertools.chain([first], kept), tokenizer, run.path("tokens", source), source)
    return {
        "source": source,
        "documents": passing.kept,
        "held_out": passing.read - passing.free,
        "overlapping_held_out_text": passing.free - passing.kept,
        "left": passing.left(),
    }


class _Passing:
    """Leaves held-out documents, and those that share too much with one, out of a stream, and counts.

    read : documents so far; free : those that are not held out; kept : those that share too little to be left out
    """

    def __init__(self, held_out: dict[str, list[Document]]) -> None:
        self.read = self.free = self.kept = 0
        self._held_out = held_out
        self._index = ReferenceIndex({d.id: d for found in held_out.values() for d in found}.values())
        self._left = copy.copy(self._index)  # the same tables, and runs of its own that it has seen
        self._left.forget()

    def trainable(self, documents: Iterable[Document]) -> Iterator[tuple[str, str]]:
        """Id and text of the documents that may be trained on."""
        for document in without_held_out(self._counted(documents), self._held_out):
            self.free += 1
            touching = self._index.overlaps(document)
            if any(found.share >= OVERLAP_SHARE for found in touching):
                continue
            if touching:
                self._left.overlaps(document)
            self.kept += 1
            yield document.id, document.text

    def left(self) -> dict[str, float]:
        """Share of each held-out text's runs of words that the documents which stay hold; above 0 only."""
        return {name: share for _, name, share in self._left.item_shares() if share > 0}

    def _counted(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            self.read += 1
            yield document


def _overlap_left(run: Run, left: list[dict[str, float]]) -> list[dict[str, Any]]:
    """For each probe and test set: texts, those that share any run of words with what is trained on, and those of
    which one source holds at least half."""
    rows = []
    for split in ("probes", "test"):
        for name, documents in read_probes(run.path(split)).items():
            shares = [max((found.get(d.id, 0.0) for found in left), default=0.0) for d in documents]
            rows.append(
                {
                    "set": f"{split}: {name}",
                    "items": len(shares),
                    "any": sum(share > 0 for share in shares),
                    "half": sum(share >= OVERLAP_SHARE for share in shares),
                }
            )
    return rows


def _tokens(run: Run) -> Spent:
    jobs = [Job(source.name, _tokenize_one, (run, source.name)) for source in run.recipe.sources]
    counts = run_jobs(jobs, workers=run.workers, description="tokenizing", unit="sources")
    left = [count.pop("left") for count in counts]
    write_json(run.path("tokens", "held_out_overlap.json"), _overlap_left(run, left))
    for count in counts:
        count["tokens"] = TokenSource.open(run.path("tokens", count["source"])).total_tokens
    write_json(run.path("tokens", "counts.json"), counts)
    return Spent(tokens=sum(count["tokens"] for count in counts))


PROBES = Stage(
    name="probes",
    folder="probes",
    needs=("representative",),
    settings=lambda recipe: [
        recipe.probes.share,
        recipe.probes.maximum_documents,
        recipe.capabilities_of,
        recipe.seed,
    ],
    outputs=("*.parquet",),
    work=_probes,
    about="hold out a part of the representative sets",
    fixed_seconds=1,
)

TEST = Stage(
    name="test",
    folder="test",
    needs=("documents",),
    settings=lambda recipe: [
        recipe.probes.test_share,
        recipe.probes.maximum_test_documents,
        recipe.capabilities_of,
        recipe.seed,
    ],
    outputs=("*.parquet",),
    work=_test,
    about="set text aside for the final comparison",
    fixed_seconds=1,
)

TOKENS = Stage(
    name="tokens",
    folder="tokens",
    needs=("documents", "tokenizer", "probes", "test"),
    settings=lambda recipe: [
        recipe.probes.test_share,
        recipe.seed,
        [source.name for source in recipe.sources],
    ],
    outputs=("*/tokens-*.bin", "*/shard.json", "counts.json", "held_out_overlap.json"),
    work=_tokens,
    about="tokenize what is not held out",
    fixed_seconds=8,
)
