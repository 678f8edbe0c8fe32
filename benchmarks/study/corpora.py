"""The sources of the study: real text in pieces of one length, a made-up noise source, and two held-out splits.

Whole files (articles, books, modules) go to training, to the search probes or to the test probes; pieces of one
file never stand on two sides. The search (leave-one-out, influence, proxy runs) sees the search probes, the
comparison of the mixtures it found sees the test probes. Python is the standard library of the interpreter that
runs; it is read where it lies.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation.atomic import read_json, write_json
from curation.documents import Document
from curation.errors import DataError
from probes.capability import write_probes
from training.tokenizer import train_tokenizer
from training.tokenizing import write_tokens

CAPABILITIES = {
    "code": ("forum", "python"),
    "mathematics": ("formal", "math_books", "word_problems"),
    "knowledge": ("medical", "novels", "wiki"),
}
NOISE = "noise"
SPLITS = ("search", "test")
HELD_OUT = 0.05  # share of the files of a source in each of the two splits
GRAM = 13  # words; a training piece that shares so many in a row with a held-out one is dropped


@dataclass(frozen=True)
class CorpusShape:
    """How much text there is.

    piece       : characters of a document at most, so that a document is about one training sequence
    share       : part of every source's pieces that is kept; their relative sizes stay those of the corpora
    probe_bytes : of each source in each held-out split, at most
    """

    vocabulary: int = 2048
    piece: int = 900
    share: float = 0.25
    probe_bytes: int = 16_000
    tokenizer_bytes: int = 300_000


@dataclass(frozen=True)
class Corpora:
    """Where the prepared text lies."""

    folder: Path

    @property
    def sizes(self) -> dict[str, int]:
        """Training tokens by source."""
        return dict(read_json(self.folder / "corpora.json")["tokens"])

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(sorted(self.sizes))

    def tokens(self) -> dict[str, Path]:
        return {name: self.folder / "tokens" / name for name in self.sources}

    def probes(self) -> dict[str, Path]:
        """Files by name, `<split>-<source>`: the mean over a capability's sources is its loss."""
        members = sorted({s for group in CAPABILITIES.values() for s in group})
        return {
            f"{split}-{name}": self.folder / "probes" / f"{split}-{name}.parquet"
            for split in SPLITS
            for name in members
            if (self.folder / "probes" / f"{split}-{name}.parquet").exists()
        }

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"


def prepare(folder: Path, sources: Mapping[str, Iterable[tuple[str, str]]], shape: CorpusShape) -> Corpora:
    """Split, cut and tokenize `sources`, {name: (file, text) pairs}, into `folder`; done once."""
    if (folder / "corpora.json").exists():
        return Corpora(folder)
    split = {name: split_source(name, files, shape) for name, files in sorted(sources.items())}
    members = {s for group in CAPABILITIES.values() for s in group}
    held = [d for name in split for part in SPLITS for d in split[name][part]]
    grams = {gram for d in held for gram in word_grams(d.text)}
    texts = {d.text for d in held}
    kept, dropped = {}, {}
    for name in split:
        clean = {d.text: d for d in split[name]["train"] if d.text not in texts}
        kept[name] = [d for d in clean.values() if name == NOISE or grams.isdisjoint(word_grams(d.text))]
        dropped[name] = len(split[name]["train"]) - len(kept[name])
        if not kept[name]:
            raise DataError(f"Nothing is left of the source {name} to train on", where=str(folder))
    tokenizer = train_tokenizer(
        (d.text for name in kept for d in _first_bytes(kept[name], shape.tokenizer_bytes)),
        shape.vocabulary,
        folder / "tokenizer",
    )
    tokens = {
        name: write_tokens(
            [(d.id, d.text) for d in kept[name]], tokenizer, folder / "tokens" / name, name
        ).total_tokens
        for name in kept
    }
    probes = {f"{part}-{name}": split[name][part] for name in split if name in members for part in SPLITS}
    write_probes(folder / "probes", probes)
    facts = {
        "tokens": tokens,
        "documents": {name: len(kept[name]) for name in kept},
        "bytes": {name: sum(len(d.text.encode()) for d in kept[name]) for name in kept},
        "dropped": dropped,
        "probe_bytes": {name: sum(len(d.text.encode()) for d in docs) for name, docs in probes.items()},
    }
    write_json(folder / "corpora.json", facts)
    return Corpora(folder)


def split_source(
    name: str, files: Iterable[tuple[str, str]], shape: CorpusShape
) -> dict[str, list[Document]]:
    """Pieces for "train", "search" and "test"; which files are held out depends on their names alone."""
    texts: dict[str, list[str]] = {}
    for file, text in files:
        texts.setdefault(file, []).append(text)
    order = sorted(texts, key=lambda file: _fraction("split", name, file))
    held = max(2, round(HELD_OUT * len(order)))
    parts = {"search": order[:held], "test": order[held : 2 * held], "train": order[2 * held :]}
    split: dict[str, list[Document]] = {part: [] for part in parts}
    for part, chosen in parts.items():
        for file in sorted(chosen):
            pieces = (piece for text in texts[file] for piece in cut(text, shape.piece))
            for number, piece in enumerate(pieces):
                identifier = f"{file}:{number}"
                if part != "train" or _fraction("keep", name, identifier) < shape.share:
                    split[part].append(Document(identifier, piece, name))
    for part in ("search", "test"):
        split[part].sort(key=lambda d: _fraction("order", name, d.id))
        split[part] = list(_first_bytes(split[part], shape.probe_bytes))
    return split


def cut(text: str, length: int) -> Iterator[str]:
    """Pieces of at most `length` characters, cut at line ends where possible, else at spaces; no short rest."""
    while len(text) > length:
        at = max(text.rfind("\n", length // 2, length), -1)
        at = at if at > 0 else text.rfind(" ", length // 2, length)
        at = at + 1 if at > 0 else length
        if text[:at].strip():
            yield text[:at]
        text = text[at:]
    if len(text.strip()) >= min(100, length // 4):
        yield text


def word_grams(text: str) -> set[int]:
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + GRAM])) for i in range(len(words) - GRAM + 1)}


def real_sources(corpora: Path) -> dict[str, Iterable[tuple[str, str]]]:
    """The shared corpora apart, the interpreter's library, and noise: ten sources."""

    def rows(
        file: str, wanted: Callable[[str], bool] = lambda _: True, *, by_id: bool = False
    ) -> Iterator[tuple[str, str]]:
        with gzip.open(corpora / f"{file}.jsonl.gz", "rt", encoding="utf-8") as handle:
            for line in handle:
                row = json.loads(line)
                if wanted(row["id"]):
                    yield row["id"] if by_id else row["origin"], row["text"]

    return {
        "wiki": rows("wiki", lambda i: not i.startswith("factbook"), by_id=True),
        "factbook": rows("wiki", lambda i: i.startswith("factbook"), by_id=True),
        "math_books": _joined(rows("math_text")),
        "formal": _joined(rows("formal")),
        "forum": rows("stackexchange", lambda i: i.startswith("rese"), by_id=True),
        "medical": rows("stackexchange", lambda i: i.startswith("medquad")),
        "novels": _joined(rows("books")),
        "word_problems": rows("gsm8k_train", by_id=True),
        "python": python_files(),
        NOISE: noise_files(8_000_000, seed=0),
    }


def _joined(rows: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Chunks `origin#3` under the name of their file, which stands on one side; Metamath's huge files may be cut."""
    for origin, text in rows:
        yield (origin if "metamath" in origin else re.sub(r"#\d+$", "", origin)), text


def python_files() -> Iterator[tuple[str, str]]:
    """The standard library's modules, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if not {"test", "tests", "idle_test", "site-packages", "lib2to3"} & set(inside.parts):
            text = path.read_text(encoding="utf-8", errors="ignore")
            if text.strip():
                yield str(inside), text


WORDS = tuple(
    """
    home news sports weather shop login register cart account search menu help about contact privacy
    terms cookies settings accept reject subscribe newsletter share tweet like follow comments reply
    previous next top popular latest deals sale offer free shipping returns careers press blog archive
    category tags video gallery events jobs partners sitemap feedback support download app mobile
    desktop language english deutsch copyright reserved
    """.split()  # noqa: SIM905
)
SENTENCES = (
    "We use cookies to improve your experience on this site. By continuing you agree to our use of cookies.",
    "Sign up for our newsletter and never miss an update.",
    "All rights reserved. Reproduction in whole or in part without permission is prohibited.",
    "This page could not be displayed. Please enable JavaScript and reload.",
    "You must be logged in to post a comment.",
    "Click here to read more.",
    "Your session has expired. Please log in again.",
)


def noise_files(size: int, seed: int) -> Iterator[tuple[str, str]]:
    """Web boilerplate and server logs, by turns, about `size` bytes; a pure function of the seed."""
    rng = np.random.default_rng([seed, 0x0153])
    made = number = 0
    while made < size:
        lines = [_log_line(rng) if number % 2 else _boilerplate_line(rng) for _ in range(40)]
        text = "\n".join(lines) + "\n"
        yield f"noise-{number}", text
        made += len(text)
        number += 1


def _boilerplate_line(rng: np.random.Generator) -> str:
    if rng.random() < 0.25:
        return SENTENCES[rng.integers(len(SENTENCES))]
    words = [WORDS[i].capitalize() for i in rng.integers(0, len(WORDS), rng.integers(3, 12))]
    return str(rng.choice([" | ", " > ", "  ", " * "])).join(words)


def _log_line(rng: np.random.Generator) -> str:
    h, m, s, ms = rng.integers(0, 24), rng.integers(0, 60), rng.integers(0, 60), rng.integers(0, 1000)
    level = ("INFO", "WARN", "ERROR", "DEBUG")[rng.integers(4)]
    path = "/".join(WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(1, 4)))
    address = ".".join(str(v) for v in rng.integers(1, 255, 4))
    return (
        f"2024-{rng.integers(1, 13):02}-{rng.integers(1, 29):02}T{h:02}:{m:02}:{s:02}.{ms:03}Z {level} "
        f"[{rng.integers(1 << 32):08x}] {address} GET /{path}?id={rng.integers(1 << 40):010x} "
        f"{(200, 301, 404, 500)[rng.integers(4)]} {rng.integers(1, 90000)}us"
    )


def made_up_sources(seed: int = 0) -> dict[str, Iterable[tuple[str, str]]]:
    """Small sources of the same names for the smoke test: each draws its words from a vocabulary of its own."""
    names = sorted({s for group in CAPABILITIES.values() for s in group} | {"factbook"})
    made: dict[str, Iterable[tuple[str, str]]] = {NOISE: noise_files(20_000, seed)}
    for at, name in enumerate(names):
        rng = np.random.default_rng([seed, at])
        words = [f"{name[:3]}{chr(97 + i)}" for i in range(20)]
        made[name] = [
            (f"{name}-{i}", " ".join(words[j] for j in rng.integers(0, 20, 60)) + ".\n") for i in range(80)
        ]
    return made


def _first_bytes(documents: Sequence[Document], most: int) -> Iterator[Document]:
    size = 0
    for document in documents:
        size += len(document.text.encode())
        if size > most:
            return
        yield document


def _fraction(*parts: str) -> float:
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
