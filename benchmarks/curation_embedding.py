"""Embedding in curation against sentence-transformers, on real texts, one thread."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.curation_models import NAMES, peaks, real_texts, speed, timed
from benchmarks.measure import machine, publish, table

THRESHOLD = 0.9
CHOSEN_ON = ("wiki", "math_text")
"""Corpora on which it was chosen what an int8 pass of an embedder rounds (see `curation.embedding.in_eight_bits`)."""


def embedding(
    *,
    write: bool,
    documents: int = 2000,
    timed_documents: int = 50,
    model: Path | None = None,
    model_name: str = "the given folder",
    scratch: Path | None = None,
) -> None:
    """sentence-transformers' default encode and ours in each format, with the recheck.

    model : folder of a sentence-transformers model; without it, MiniLM-L6's shape with random weights
    All documents are embedded by all, in pieces that are kept in `scratch`, so that it can be called again until all
    are there. Each call is one more paired round: about `timed_documents` of all corpora, others in each round.
    """
    from sentence_transformers import SentenceTransformer

    from curation.embedding import embed

    torch.set_num_threads(1)
    of = [name for name in NAMES for _ in range(documents // len(NAMES))]
    texts = [text for name in NAMES for text in real_texts(name, documents // len(NAMES))]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if scratch is None else scratch
        folder = model or _embedder_folder(Path(temporary), texts)
        library = SentenceTransformer(str(folder), device="cpu")

        def theirs(some: list[str]) -> np.ndarray:
            return np.asarray(library.encode(some, normalize_embeddings=True, show_progress_bar=False))

        works: dict[str, Callable[[list[str]], np.ndarray]] = {"sentence-transformers, default": theirs}
        for name in ("float32", "bfloat16", "int8"):
            works[f"ours, {name}"] = partial(embed, model=folder, precision=name)
        vectors = {name: _vectors_in_pieces(texts, work, place / name) for name, work in works.items()}
        rounds = _embedding_rounds(texts, works, place, timed_documents)
    others = np.array([name not in CHOSEN_ON for name in of])
    rows, sentences = _embedding_rows(texts, others, vectors, rounds)
    weights = f"weights of {model_name}" if model else "random weights"
    heading = (
        f"## Embeddings, {_named(library)}, one thread\n\n"
        f"{len(texts)} documents of five corpora, {weights}. Errors are over all pairs of them, and over the pairs of "
        f"those that are neither {' nor '.join(CHOSEN_ON)}, on which the products in int8 were chosen. Speeds are CPU "
        f"time, medians of {len(rounds)} paired rounds (their range behind) of {timed_documents} documents each. "
        + " ".join(sentences)
        + "\n\n"
    )
    speeds, errors = ["documents per CPU-second", "times the first"], ["largest error", "of the others"]
    header = ["pipeline", *speeds, *errors, "changed pairs"]
    facts = machine("torch", "transformers", "sentence-transformers")
    publish(
        "curation: embedding", f"{heading}{table(header, rows)}\n{peaks(size=384)}\n\n{facts}\n", write=write
    )


def _embedding_rounds(
    texts: list[str], works: dict[str, Callable[[list[str]], np.ndarray]], place: Path, documents: int
) -> list[dict[str, float]]:
    """CPU seconds a document of each pipeline, in one more round than `place` has, and in those."""
    path = place / f"rounds_{documents}.json"
    rounds: list[dict[str, float]] = json.loads(path.read_text()) if path.exists() else []
    every = max(1, len(texts) // documents)
    some, cost = texts[len(rounds) % every :: every], {}
    for name, work in works.items():
        work(texts[:2])
        cost[name] = timed(lambda work=work: work(some))[0] / len(some)  # type: ignore[misc]
    cost["naive"] = cost["sentence-transformers, default"]
    cost["float32"] = cost["ours, float32"]
    rounds.append(cost)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounds))
    return rounds


def _named(library: Any) -> str:
    config = library[0].auto_model.config
    return f"{config.num_hidden_layers} x {config.hidden_size}, {library.max_seq_length} tokens"


def _vectors_in_pieces(
    texts: list[str], work: Callable[[list[str]], np.ndarray], folder: Path, size: int = 200
) -> np.ndarray:
    """Vectors of all texts; pieces that `folder` has are not computed again."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = []
    for start in range(0, len(texts), size):
        path = folder / f"{start:06d}.npy"
        if not path.exists():
            np.save(folder / "unfinished.npy", work(texts[start : start + size]))
            (folder / "unfinished.npy").rename(path)
        pieces.append(np.load(path))
    return np.concatenate(pieces)


def _embedding_rows(
    texts: list[str], others: np.ndarray, vectors: dict[str, np.ndarray], rounds: list[dict[str, float]]
) -> tuple[list[list[Any]], list[str]]:
    """The lines of the table at `THRESHOLD`, and what each recheck says of itself."""
    from curation import embedding_recheck
    from curation.semantic_duplicates import find_duplicates

    first, exact = next(iter(vectors.items()))
    where = {text: i for i, text in enumerate(texts)}
    truth = {pair[:2] for pair in find_duplicates(vectors["ours, float32"], THRESHOLD)}

    def row(label: str, name: str, in_float32: float, found: np.ndarray) -> list[Any]:
        error = np.abs(found @ found.T - exact @ exact.T)
        changed = len(truth ^ {pair[:2] for pair in find_duplicates(found, THRESHOLD)})
        errors = [f"{error.max():.2g}", f"{error[np.ix_(others, others)].max():.2g}"]
        return [label, *speed(rounds, name, in_float32), *errors, changed]

    rows = [row(name if name in (first, "ours, float32") else f"{name} alone", name, 0, found)
            for name, found in vectors.items()]  # fmt: skip
    sentences = []
    for name in ("bfloat16", "int8"):

        def known(some: list[str], model: Any, *, precision: str = "float32", **options: Any) -> np.ndarray:
            return vectors[f"ours, {precision}"][[where[text] for text in some]]

        with mock.patch.object(embedding_recheck, "embed", known):
            found, report = embedding_recheck.embed_near(texts, "", THRESHOLD, precision=name)
        assert report is not None
        ours, share = f"ours, {name}", report.rechecked / report.documents
        rows.append(row(f"{ours} and recheck of {report.rechecked}", ours, share, found))
        inside = (report.rechecked - report.sample) / max(1, report.documents - report.sample)
        again = (report.sample + inside * (10_000 - report.sample)) / 10_000
        rows.append(["the same for 10,000 documents, computed", *speed(rounds, ours, again), "-", "-", "-"])
        sentences.append(report.sentence())
    return rows, sentences


def _embedder_folder(scratch: Path, texts: list[str]) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    from curation.rater_tokenizer import train_rater_tokenizer

    sample = [text[:20_000] for text in texts]
    tokenizer = train_rater_tokenizer(sample, scratch / "tokenizer", vocabulary=16_000)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(scratch / "bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    BertModel(BertConfig(**shape, initializer_range=0.05)).save_pretrained(scratch / "bert")
    transformer = Transformer(str(scratch / "bert"), max_seq_length=256)
    modules = [transformer, Pooling(384, pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(scratch / "st"), create_model_card=False)
    return scratch / "st"
