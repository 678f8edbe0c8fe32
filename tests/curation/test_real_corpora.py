"""The whole chain on a slice of five real corpora: reading, duplicates, cuts, and a planner that knows the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import regex

from curation.atomic import read_json
from curation.budget import Cut, plan_budget
from curation.cascade import CascadeSettings, Scorers, select_representative
from curation.documents import Document, document_files, read_documents
from curation.educational import parse_rule
from curation.near_duplicates import NearDuplicateSettings, find_near_duplicates
from curation.scoring.corpus import Corpus
from curation.sources import SourceSpec, read_source
from tests.curation.test_near_duplicates import corpora_folder

CAPABILITIES = {
    "wiki": ["knowledge"],
    "math_text": ["mathematics"],
    "formal": ["mathematics"],
    "stackexchange": ["knowledge", "code"],
    "books": ["knowledge"],
}
WORDS = {
    "reasoning": r"\b(because|therefore|thus|hence|implies|suppose|since|if)\b",
    "knowledge": r"\b(is|are|was|were)\b",
    "mathematics": r"\b(theorem|proof|function|group|integral|equation)\b",
    "combined": r"\b(should|can|function|symptoms|treatment)\b",
}


@dataclass(frozen=True)
class CountsWords:
    """Matches of a pattern to a thousand characters: a rater that needs no model."""

    name: str
    columns: tuple[str, ...]
    pattern: str

    def fingerprint(self) -> dict[str, Any]:
        return {"pattern": self.pattern}

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        found = [
            1000 * len(regex.findall(self.pattern, d.text.lower())) / (100 + len(d.text)) for d in documents
        ]
        return dict.fromkeys(self.columns, np.array(found, dtype=np.float32))


def embed(texts: Sequence[str]) -> np.ndarray:
    """Hashed words, 256 dimensions."""
    rows = np.zeros((len(texts), 256), dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in regex.findall(r"\w+", text.lower()):
            row[hashlib.blake2b(word.encode(), digest_size=1).digest()[0]] += 1
        row /= max(float(np.linalg.norm(row)), 1e-9)
    return rows


def test_a_slice_of_five_corpora(tmp_path: Path) -> None:
    folder = corpora_folder()
    for name in CAPABILITIES:
        options = {"scan_bytes": 600_000, "piece_bytes": 4000}
        spec = SourceSpec(name, "local", path=str(folder / f"{name}.jsonl.gz"), options=options)
        read_source(spec, tmp_path / "documents", max_bytes=None, seed=0)
    places = {name: tmp_path / "documents" / name for name in CAPABILITIES}
    dropped = find_near_duplicates(places, tmp_path / "near", NearDuplicateSettings())
    judges = {
        name: CountsWords(f"ask_llm-{name}-v1", ("margin", "p1_calibrated"), p) for name, p in WORDS.items()
    }
    scorers = Scorers(CountsWords("educational", ("educational_score",), WORDS["knowledge"]), judges, embed)  # type: ignore[arg-type]
    settings = CascadeSettings(
        educational=parse_rule("raw > 4"),
        educational_of={"formal": parse_rule("top 0.5")},
        reasoning_share=0.5,
        domain_share=0.5,
        threshold=0.98,
        documents=20,
    )
    select_representative(
        {name: Corpus(name, tuple(document_files(path))) for name, path in places.items()},
        CAPABILITIES,
        scorers,
        settings,
        scores=tmp_path / "scores",
        out=tmp_path / "out",
        already_dropped=dropped,
    )
    verdicts = pl.read_parquet(tmp_path / "out" / "verdicts.parquet")
    funnel = {(r["source"], r["stage"]): r["documents"] for r in read_json(tmp_path / "out" / "funnel.json")}
    for name, path in places.items():
        documents = read_documents(path)
        own = verdicts.filter(pl.col("source") == name)
        assert own["id"].sort().to_list() == sorted(d.id for d in documents), "one verdict for each document"
        assert funnel[name, "read"] == len(documents) > 100
        kept = own.filter(pl.col("verdict") == "kept").height
        assert 0 < kept == funnel[name, "representative"] <= 20
        # The whole source is the pilot: to have again what it gave, about all of it must be read.
        cuts = [
            Cut("near_duplicates", funnel[name, "read"], funnel[name, "minhash"], duplicates=True),
            Cut("educational", funnel[name, "minhash"], funnel[name, "educational"]),
            Cut("reasoning", funnel[name, "educational"], funnel[name, "reasoning"], share=0.5),
            Cut("domain", funnel[name, "reasoning"], funnel[name, "domain"], share=0.5),
            Cut("deduplicated", funnel[name, "domain"], funnel[name, "deduplicated"], duplicates=True),
        ]
        plan = plan_budget(name, cuts, funnel[name, "deduplicated"], available=len(documents))
        assert plan.low <= len(documents) <= (plan.high or 0)
        assert plan.expected is not None and abs(plan.expected - funnel[name, "deduplicated"]) <= 3
        assert plan_budget(name, cuts, 10_000, available=len(documents)).verdict == "not enough"
    assert funnel["stackexchange", "minhash"] <= funnel["stackexchange", "exact"]
