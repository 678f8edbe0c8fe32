"""The cascade with raters whose verdicts are known: exact cuts, one verdict for each document, contracts kept."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from curation.atomic import hash_folder, read_json
from curation.cascade import CascadeSettings, Scorers, select_representative
from curation.documents import Document, document_id, write_documents
from curation.educational import parse_rule
from curation.errors import DataError
from curation.funnel import EARLY, audit
from curation.funnel import STAGES as ALL_STAGES
from curation.scoring.corpus import Corpus
from curation.scoring.execution import Execution
from curation.scoring.runners import open_runner


def number(document: Document) -> int:
    return int(document.text.split()[1])


@dataclass(frozen=True)
class Known:
    """A rater that knows the score of a document from its number."""

    name: str
    columns: tuple[str, ...]
    factor: int

    def fingerprint(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        value = np.array([number(d) * self.factor % 101 / 20 for d in documents], dtype=np.float32)
        return dict.fromkeys(self.columns, value)


STAGES = [stage for stage in ALL_STAGES if stage not in (*EARLY, "language")]
ASKED = ("margin", "p1_calibrated")
JUDGES = {
    purpose: Known(purpose, ASKED, factor)
    for purpose, factor in (("reasoning", 3), ("code", 5), ("knowledge", 7), ("combined", 11))
}
CAPABILITIES = {"alpha": ("code",), "beta": ("knowledge",), "gamma": ("code", "knowledge"), "noise": ()}


def embed(texts: Sequence[str]) -> np.ndarray:
    """Texts of one number are duplicates, whatever their source."""
    angles = np.array([float(text.split()[1]) for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def corpora(shuffle: int = 0) -> dict[str, list[Document]]:
    found = {}
    for source in CAPABILITIES:
        texts = [f"{source} {i}" for i in range(100)]
        random.Random(shuffle).shuffle(texts)
        found[source] = [Document(document_id(source, text), text, source) for text in texts]
    return found


SETTINGS = CascadeSettings(
    educational=parse_rule("raw > 2"),
    educational_of={"noise": parse_rule("top 0.5")},
    reasoning_share=0.5,
    domain_share=0.5,
    threshold=0.9999,
    documents=8,
)


def run(folder: Path, shuffle: int = 0, settings: CascadeSettings = SETTINGS) -> list[str]:
    scorers = Scorers(Known("educational", ("educational_score",), 1), JUDGES, embed)  # type: ignore[arg-type]
    return select_representative(
        corpora(shuffle), CAPABILITIES, scorers, settings, scores=folder / "scores", out=folder / "out"
    )


def ranked(found: list[Document], purpose: str) -> list[Document]:
    """Best first, by the definition of `Known`."""
    return sorted(
        found, key=lambda document: (-(number(document) * JUDGES[purpose].factor % 101), document.id)
    )


def test_cuts_are_those_of_the_definition(tmp_path: Path) -> None:
    run(tmp_path)
    for source, judge in (("alpha", "code"), ("beta", "knowledge"), ("gamma", "combined")):
        taught = [d for d in corpora()[source] if number(d) % 101 / 20 > 2]
        reasoned = ranked(taught, "reasoning")[: -(-len(taught) // 2)]
        chosen = ranked(reasoned, judge)[: -(-len(reasoned) // 2)]
        funnel = read_json(tmp_path / "out" / "funnel.json")
        counts = {row["stage"]: row["documents"] for row in funnel if row["source"] == source}
        assert [counts[stage] for stage in STAGES[:4]] == [100, len(taught), len(reasoned), len(chosen)]
        kept = pq.read_table(tmp_path / "out" / f"{source}.parquet")["id"].to_pylist()
        allowed = [document.id for document in chosen]
        assert kept == [identifier for identifier in allowed if identifier in kept]
        assert len(kept) <= 8


def test_every_document_has_one_verdict_and_the_funnel_balances(tmp_path: Path) -> None:
    run(tmp_path)
    verdicts = pl.read_parquet(tmp_path / "out" / "verdicts.parquet")
    assert verdicts.height == 400
    assert verdicts["id"].n_unique() == 400
    funnel: dict[str, list[int]] = {}
    for row in read_json(tmp_path / "out" / "funnel.json"):
        funnel.setdefault(row["source"], []).append(row["documents"])
    for source, counts in funnel.items():
        fell = dict(verdicts.filter(pl.col("source") == source)["verdict"].value_counts().rows())
        for before, after, stage in zip(counts, counts[1:], STAGES[1:], strict=False):
            assert before - after == fell.get(stage, 0)
        assert fell.get("kept", 0) == counts[-1]


def test_duplicates_across_corpora_go_to_the_first_source(tmp_path: Path) -> None:
    run(tmp_path)
    duplicates = pq.read_table(tmp_path / "out" / "duplicates.parquet").to_pylist()
    assert duplicates
    place = {source: rank for rank, source in enumerate(CAPABILITIES)}
    by_id = {d.id: d for found in corpora().values() for d in found}
    for row in duplicates:
        dropped, kept = by_id[row["dropped"]], by_id[row["kept_instead"]]
        assert number(dropped) == number(kept)
        assert place[kept.source] < place[dropped.source]


def test_the_order_of_the_documents_is_irrelevant(tmp_path: Path) -> None:
    run(tmp_path / "a", shuffle=1)
    run(tmp_path / "b", shuffle=2)
    assert hash_folder(tmp_path / "a" / "out") == hash_folder(tmp_path / "b" / "out")


def test_a_source_that_hardly_passes_is_a_warning(tmp_path: Path) -> None:
    strict = CascadeSettings(educational=parse_rule("raw > 4.99"), documents=1000)
    warnings = run(tmp_path, settings=strict)
    assert any("Only 0 of the 100 documents of alpha pass the educational rule" in text for text in warnings)
    assert any("noise has 0 of the " in text for text in warnings)


def test_scores_are_kept_for_another_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    monkeypatch.setattr(Known, "score", lambda self, documents: pytest.fail("scored again"))
    run(
        tmp_path,
        settings=CascadeSettings(educational=parse_rule("raw > 2.5"), educational_of={}, documents=4),
    )


def test_verdicts_say_why(tmp_path: Path) -> None:
    run(tmp_path)
    verdicts = pl.read_parquet(tmp_path / "out" / "verdicts.parquet")
    assert not verdicts.filter((pl.col("verdict") != "kept") & (pl.col("reason").str.len_chars() < 5)).height
    alpha = {row["id"]: row for row in verdicts.iter_rows(named=True) if row["source"] == "alpha"}
    by_number = {number(d): alpha[d.id] for d in corpora()["alpha"]}
    assert by_number[40]["verdict"] == "educational" and by_number[40]["reason"] == "score 2.0, rule raw > 2"
    ranked = sorted(range(41, 100), key=lambda i: -(i * 3 % 101))
    fell = by_number[ranked[-1]]
    assert (fell["verdict"], fell["reason"]) == ("reasoning", "rank 59 of 59; 30 are kept, the top 0.5")
    duplicate = verdicts.filter(pl.col("verdict") == "deduplicated").row(0, named=True)
    table = {
        row["dropped"]: row for row in pq.read_table(tmp_path / "out" / "duplicates.parquet").to_pylist()
    }
    assert duplicate["reason"].startswith(
        f"duplicate of {table[duplicate['id']]['kept_instead']}, cosine 1.0"
    )


def test_places_of_duplicates_are_filled_with_the_next_ranked(tmp_path: Path) -> None:
    run(tmp_path / "without")
    run(tmp_path / "with", settings=replace(SETTINGS, top_up=True))

    def counts(folder: str) -> dict[str, dict[str, Any]]:
        rows = read_json(tmp_path / folder / "out" / "funnel.json")
        return {row["source"]: row for row in rows if row["stage"] == "representative"}

    added = {source: row.get("topped_up", 0) for source, row in counts("with").items()}
    assert sum(added.values()) > 0
    kept: list[int] = []
    for source, before in counts("without").items():
        after = pl.read_parquet(tmp_path / "with" / "out" / f"{source}.parquet")
        old = pl.read_parquet(tmp_path / "without" / "out" / f"{source}.parquet")
        assert after["id"].to_list()[: old.height] == old["id"].to_list()
        assert after.height == before["documents"] + added[source] <= SETTINGS.documents
        kept += [int(text.split()[1]) for text in after["text"]]
    assert len(kept) == len(set(kept))  # none of those taken later duplicates anything kept
    verdicts = pl.read_parquet(tmp_path / "with" / "out" / "verdicts.parquet")
    taken = verdicts.filter(pl.col("reason").str.contains("in place of a duplicate"))
    assert taken.height == sum(added.values()) and set(taken["verdict"]) == {"kept"}
    assert verdicts.filter(pl.col("verdict") == "kept").height == len(kept)


def test_one_id_in_two_sources_is_a_sentence(tmp_path: Path) -> None:
    scorers = Scorers(Known("educational", ("educational_score",), 1), JUDGES, embed)  # type: ignore[arg-type]
    found = {source: [Document("1", f"{source} 1", source)] for source in ("alpha", "beta")}
    with pytest.raises(DataError, match="in two sources, alpha and beta"):
        select_representative(found, CAPABILITIES, scorers, SETTINGS, scores=tmp_path, out=tmp_path)


def dropped_table(kinds: dict[str, str]) -> pl.DataFrame:
    first = corpora()["alpha"][0].id
    rows = [(name, first, kind, 1.0 if kind == "exact" else 0.8) for name, kind in kinds.items()]
    return pl.DataFrame(rows, schema=["dropped", "kept_instead", "kind", "similarity"], orient="row")


def test_documents_dropped_before_are_not_scored_but_have_verdicts_and_stages(tmp_path: Path) -> None:
    kinds = {d.id: "exact" for d in corpora()["beta"][:30]} | {
        d.id: "minhash" for d in corpora()["beta"][30:50]
    }
    scorers = Scorers(Known("educational", ("educational_score",), 1), JUDGES, embed)  # type: ignore[arg-type]
    out = tmp_path / "out"
    select_representative(
        corpora(), CAPABILITIES, scorers, SETTINGS, scores=tmp_path / "scores", out=out,
        already_dropped=dropped_table(kinds | {"no document of these corpora": "exact"}),
    )  # fmt: skip
    rated = pl.read_parquet(tmp_path / "scores" / "beta" / "educational.parquet")["id"]
    assert rated.len() == 50 and not set(rated) & set(kinds)
    funnel = [row for row in read_json(out / "funnel.json") if row["source"] == "beta"]
    assert [row["stage"] for row in funnel] == [stage for stage in ALL_STAGES if stage != "language"]
    assert [row["documents"] for row in funnel][:3] == [100, 70, 50]
    sizes = {d.id: len(d.text.encode()) for d in corpora()["beta"]}
    assert funnel[0] == {
        "source": "beta",
        "stage": "read",
        "documents": 100,
        "share": 1,
        "bytes": sum(sizes.values()),
    }
    assert funnel[2]["bytes"] == sum(size for name, size in sizes.items() if name not in kinds)
    verdicts = {row["id"]: row for row in pl.read_parquet(out / "verdicts.parquet").iter_rows(named=True)}
    assert len(verdicts) == 400
    assert all(verdicts[name]["verdict"] == kind for name, kind in kinds.items())
    kept_instead = corpora()["alpha"][0].id
    reasons = {verdicts[name]["reason"] for name in kinds}
    assert reasons == {
        f"copy of {kept_instead}, similarity 1.0",
        f"near duplicate of {kept_instead}, similarity 0.8",
    }
    with pytest.raises(DataError, match="kind `fuzzy`"):
        select_representative(
            corpora(), CAPABILITIES, scorers, SETTINGS, scores=tmp_path / "scores", out=out,
            already_dropped=dropped_table({"x": "fuzzy"}),
        )  # fmt: skip


@pytest.mark.parametrize("files", [1, 4])
def test_files_in_any_order_give_the_bytes_of_memory(tmp_path: Path, files: int) -> None:
    run(tmp_path / "memory")
    found = {}
    for source, documents in corpora(shuffle=3).items():
        paths = [tmp_path / "d" / source / f"{number}.parquet" for number in range(files)]
        for number, path in enumerate(paths):
            write_documents(path, documents[number::files])
        found[source] = Corpus(source, tuple(reversed(paths)))
    scorers = Scorers(Known("educational", ("educational_score",), 1), JUDGES, embed)  # type: ignore[arg-type]
    with open_runner(Execution(tasks=3)) as runner:
        select_representative(
            found,
            CAPABILITIES,
            scorers,
            SETTINGS,
            scores=tmp_path / "s",
            out=tmp_path / "files",
            runner=runner,
        )
    assert hash_folder(tmp_path / "files") == hash_folder(tmp_path / "memory" / "out")


def test_what_does_not_add_up_is_an_error() -> None:
    read = pl.DataFrame({"id": ["a", "b", "c"]})
    cuts = dict.fromkeys(ALL_STAGES, read.head(1)) | {
        "read": read,
        "exact": read,
        "minhash": read,
        "language": read,
    }
    cuts["added"] = read.clear()
    verdicts = pl.DataFrame({"id": ["a", "b", "c"], "verdict": ["kept", "educational", "educational"]})
    audit("s", cuts, verdicts)
    with pytest.raises(DataError, match=r"do not add up at the stage `reasoning`: 1 reached it"):
        audit("s", cuts | {"reasoning": read.head(2)}, verdicts)
    with pytest.raises(DataError, match="3 were read, 2 have verdicts"):
        audit("s", cuts, verdicts.head(2))
    with pytest.raises(DataError, match="3 were read, 3 have verdicts"):
        audit("s", cuts, verdicts.with_columns(id=pl.Series(["a", "b", "b"])))
    with pytest.raises(DataError, match="at the stage `educational`"):
        audit("s", cuts, verdicts.with_columns(verdict=pl.Series(["kept", "educational", "domain"])))


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Peak memory of the cascade over 2 MB and over 100 MB of text, of equally many documents."""
    from tests.curation.large_corpus import make

    peaks = []
    for characters in (1_000, 50_000):
        make(tmp_path / str(characters), characters)
        command = [sys.executable, "-m", "tests.curation.large_corpus", str(tmp_path / str(characters))]
        result = subprocess.run(
            command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
        )
        peaks.append(int(result.stdout))
    assert peaks[1] - peaks[0] < 75 * 2**20, f"{peaks[0] >> 20} MB, then {peaks[1] >> 20} MB"
