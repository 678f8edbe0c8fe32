"""Exact and MinHash deduplication against brute force, and against what datatrove alone would leave."""

from __future__ import annotations

import gzip
import json
import os
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.curation_templates import template_shares
from curation.atomic import read_json
from curation.documents import Document, document_id, write_documents
from curation.errors import DataError, RecipeError
from curation.exact_duplicates import normalised
from curation.minhash import MinhashSettings, greedy, shingles, words
from curation.near_duplicates import NearDuplicateSettings, find_near_duplicates

WORDS = [f"w{n}" for n in range(400)]
EXACT_ONLY = NearDuplicateSettings(minhash=None)


def corpora_folder() -> Path:
    """The real corpora, or a skip that says why."""
    here = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("MIXWRIGHT_CORPORA", here.parent / "shared" / "corpora"))
    if not (folder / "stackexchange.jsonl.gz").is_file():
        pytest.skip("the real corpora are not there; name their folder in MIXWRIGHT_CORPORA")
    return folder


def write(
    folder: Path, texts: dict[str, list[str]], ids: dict[str, list[str]] | None = None
) -> dict[str, Path]:
    for source, found in texts.items():
        if ids is None:
            found = list(dict.fromkeys(found))
        names = (ids or {}).get(source) or [document_id(source, text) for text in found]
        rows = [Document(name, text, source) for name, text in zip(names, found, strict=True)]
        write_documents(folder / source / "part-00000.parquet", rows)
    return {source: folder / source for source in texts}


def varied(seed: int, count: int) -> list[str]:
    """Texts of 60 random words, most of them altered copies of earlier ones."""
    rng = random.Random(seed)
    texts = [rng.choices(WORDS, k=60) for _ in range(count // 3)]
    while len(texts) < count:
        copy = list(rng.choice(texts))
        for _ in range(rng.randrange(4)):
            copy[rng.randrange(60)] = rng.choice(WORDS)
        texts.append(copy)
    return [" ".join(text) for text in texts]


def own_shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    """Written without datatrove: lower-case words of ASCII text."""
    found = text.lower().split()
    return {tuple(found[at : at + size]) for at in range(len(found) - size + 1)}


def brute_force(texts: list[str], similarity: float) -> dict[int, tuple[int, float]]:
    sets = [own_shingles(text) for text in texts]
    kept: list[int] = []
    dropped = {}
    for row, own in enumerate(sets):
        pairs = [(len(own & sets[k]) / len(own | sets[k]), -k) for k in kept if own | sets[k]]
        best = max(pairs, default=(0.0, 0))
        if best[0] >= similarity:
            dropped[row] = (-best[1], best[0])
        else:
            kept.append(row)
    return dropped


def test_normalisation_is_stated_and_idempotent() -> None:
    assert normalised("  Caf\u0065\u0301\t\n2 ") == normalised("CAFÉ 2") == "café 2"
    assert normalised("A", fold_case=False) == "A"
    assert normalised("1 + 1") != normalised("1 + 2")


@given(st.text(max_size=40))
@settings(max_examples=50, deadline=None)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


def test_exact_copies_keep_the_first_source_then_the_smaller_id(tmp_path: Path) -> None:
    texts = {"b": ["One  text.", "Alone"], "a": ["one text.", "ONE TEXT.", "Other"]}
    ids = {"b": ["z", "y"], "a": ["m", "c", "d"]}
    found = find_near_duplicates(write(tmp_path / "in", texts, ids), tmp_path / "out", EXACT_ONLY)
    assert found.rows() == [("c", "z", "exact", 1.0), ("m", "z", "exact", 1.0)]
    strict = NearDuplicateSettings(fold_case=False, minhash=None)
    assert find_near_duplicates({s: tmp_path / "in" / s for s in texts}, tmp_path / "o2", strict).height == 0
    assert pl.read_parquet(tmp_path / "out" / "near_duplicates.parquet").equals(found)


def test_near_copies_are_those_of_brute_force_with_their_similarity(tmp_path: Path) -> None:
    texts = varied(3, 240)
    priority = {"first": texts[:120], "second": texts[120:]}
    places = write(tmp_path / "in", priority)
    with_ids = [
        (p, document_id(s, t), t) for p, (s, found) in enumerate(priority.items()) for t in set(found)
    ]
    ordered = sorted(with_ids)
    # Exact copies first, then greedily by Jaccard, as two plain loops.
    seen: dict[str, str] = {}
    exact = {}
    unique = []
    for _, name, text in ordered:
        if text in seen:
            exact[name] = seen[text]
        else:
            seen[text] = name
            unique.append((name, text))
    expected = brute_force([text for _, text in unique], MinhashSettings().similarity)
    near = {unique[row][0]: (unique[kept][0], value) for row, (kept, value) in expected.items()}
    table = find_near_duplicates(places, tmp_path / "out", NearDuplicateSettings())
    got = {row["dropped"]: row for row in table.iter_rows(named=True)}
    exact_ends = {name: near.get(kept, (kept, 1.0))[0] for name, kept in exact.items()}
    extra = set(got) - set(near) - set(exact)
    assert not extra, "what is dropped reaches the similarity"
    assert len(set(near) & set(got)) >= 0.95 * len(near)
    assert len(near) > 40
    for name, (kept, value) in near.items():
        if name in got and got[name]["kept_instead"] == kept:
            assert got[name]["similarity"] == pytest.approx(value, abs=1e-12)
    agreed = sum(got[n]["kept_instead"] == kept for n, (kept, _) in near.items() if n in got)
    assert agreed >= 0.95 * len(near)
    assert all(got[name]["kept_instead"] == kept for name, kept in exact_ends.items() if kept not in near)
    assert not set(table["kept_instead"]) & set(table["dropped"]), "what is named is kept"
    rows = read_json(tmp_path / "out" / "report.json")["sources"]
    assert all(row["documents"] == row["kept"] + row["exact"] + row["minhash"] for row in rows)


@pytest.mark.parametrize("workers, shard_size", [(0, 7), (2, 50)])
def test_the_result_does_not_depend_on_workers_or_shards(
    tmp_path: Path, workers: int, shard_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("near_duplicates", "near_duplicate_candidates"):
        monkeypatch.setattr(f"curation.{module}.FEW_DOCUMENTS", 100)
    monkeypatch.setattr("curation.near_duplicate_candidates.FEW_SIGNATURES", 100)
    texts = varied(5, 120)
    places = write(tmp_path / "in", {"x": texts[:50], "y": texts[50:]})
    alone = find_near_duplicates(places, tmp_path / "alone", NearDuplicateSettings())
    again = find_near_duplicates(
        places, tmp_path / "again", NearDuplicateSettings(), workers=workers, shard_size=shard_size
    )
    assert again.equals(alone) and alone.height > 10
    assert (tmp_path / "again" / "near_duplicates.parquet").read_bytes() == (
        tmp_path / "alone" / "near_duplicates.parquet"
    ).read_bytes()
    assert not (tmp_path / "again" / ".work").exists()


def test_sums_with_other_numbers_are_two_documents(tmp_path: Path) -> None:
    """datatrove writes every number as 0 by itself, and would drop one of these."""
    body = "A farmer has {} apples and gives {} of them to {} friends, so each friend gets {} apples in all."
    texts = [" ".join(body.format(*range(n, n + 4)) for n in (k, k + 9, k + 50)) for k in (1, 200, 400)]
    found = find_near_duplicates(
        write(tmp_path / "in", {"sums": texts}), tmp_path / "out", NearDuplicateSettings()
    )
    assert found.height == 0


def test_a_chain_loses_only_what_is_like_a_kept_document(tmp_path: Path) -> None:
    """a is like b, b like c, a unlike c: datatrove keeps one of the cluster, we keep a and c."""
    base = [f"x{n}" for n in range(100)]
    a, b, c = base[:80], base[10:90], base[20:100]
    sets = [shingles(" ".join(text), MinhashSettings()) for text in (a, b, c)]
    assert [(d, k) for d, k, _ in greedy(sets, 0.7)] == [(1, 0)]
    texts = [" ".join(text) for text in (a, b, c)]
    places = write(tmp_path / "in", {"s": texts}, {"s": ["1", "2", "3"]})
    found = find_near_duplicates(
        places, tmp_path / "out", NearDuplicateSettings(minhash=MinhashSettings(0.7, buckets=60, hashes=2))
    )
    assert found.select("dropped", "kept_instead", "kind").rows() == [("2", "1", "minhash")]
    assert found["similarity"][0] == pytest.approx(66 / 86)


def test_copies_of_a_near_duplicate_name_what_is_kept(tmp_path: Path) -> None:
    base = [f"x{n}" for n in range(80)]
    near = " ".join([*base[:79], "other"])
    places = write(tmp_path / "in", {"s": [" ".join(base), near, near.upper()]}, {"s": ["1", "2", "3"]})
    found = find_near_duplicates(places, tmp_path / "out", NearDuplicateSettings())
    assert found["kept_instead"].to_list() == ["1", "1"]
    assert found["kind"].to_list() == ["minhash", "minhash"]
    assert found["similarity"][0] == found["similarity"][1] == pytest.approx(75 / 77)


@given(st.lists(st.lists(st.integers(0, 12), max_size=8), max_size=25), st.sampled_from([0.3, 0.5, 0.8]))
@settings(max_examples=60, deadline=None)
def test_greedy_is_the_plain_loop(rows: list[list[int]], similarity: float) -> None:
    sets = [np.unique(np.array(row, dtype=np.uint64)) for row in rows]
    if not sets:
        return
    kept: list[int] = []
    expected = []
    for row, own in enumerate(sets):
        best = (0.0, 0)
        for k in kept:
            union = len(set(own) | set(sets[k]))
            value = len(set(own) & set(sets[k])) / union if union else 0.0
            best = max(best, (value, -k))
        if best[0] >= similarity:
            expected.append((row, -best[1], best[0]))
        else:
            kept.append(row)
    assert greedy(sets, similarity) == expected


def test_words_of_scripts_without_spaces() -> None:
    assert words("日本語x ก1") == ["日", "本", "語", "x", "ก", "1"]
    chinese = "我们研究哪些数据使小型语言模型学会推理并以何种比例混合它们"
    assert len(shingles(chinese, MinhashSettings())) == len(chinese) - 4


def test_odd_input(tmp_path: Path) -> None:
    odd = ["", " ", "\u202e<script>", "a b", "\x00 nul", "a b c d e"]
    ids = ['a"b', "c/d", "..", "\n", "é", "x y"]
    places = write(tmp_path / "in", {"s": odd, "empty": []}, {"s": ids, "empty": []})
    found = find_near_duplicates(places, tmp_path / "out", NearDuplicateSettings())
    assert found.select("dropped", "kept_instead").rows() == [("c/d", 'a"b')], (
        "both are nothing but white space"
    )
    with pytest.raises(DataError, match="the id `same`"):
        places = write(tmp_path / "twice", {"a": ["x"], "b": ["y"]}, {"a": ["same"], "b": ["same"]})
        find_near_duplicates(places, tmp_path / "o", EXACT_ONLY)
    with pytest.raises(RecipeError, match="Jaccard"):
        bad = NearDuplicateSettings(minhash=MinhashSettings(similarity=0.0))
        find_near_duplicates(places, tmp_path / "o", bad)
    with pytest.raises(RecipeError, match="0 buckets"):
        find_near_duplicates(
            places, tmp_path / "o", NearDuplicateSettings(minhash=MinhashSettings(buckets=0))
        )


def test_signatures_of_a_killed_run_are_used_again_but_not_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import curation.near_duplicates as module

    places = write(tmp_path / "in", {"x": varied(1, 40), "y": varied(2, 40)})
    expected = find_near_duplicates(places, tmp_path / "whole", NearDuplicateSettings())
    signed: list[str] = []
    sign = module._sign

    def dying(argument: object, advance: object) -> None:
        signed.append(argument[1].source)  # type: ignore[index]
        if len(signed) == 2:
            raise KeyboardInterrupt
        sign(argument, advance)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_sign", dying)
    with pytest.raises(KeyboardInterrupt):
        find_near_duplicates(places, tmp_path / "out", NearDuplicateSettings())
    assert find_near_duplicates(places, tmp_path / "out", NearDuplicateSettings()).equals(expected)
    assert signed == ["x", "y", "y"], "the first shard is not read again"
    signed.clear()
    with pytest.raises(KeyboardInterrupt):
        find_near_duplicates(places, tmp_path / "out", NearDuplicateSettings())
    signed.append("padding")
    find_near_duplicates(places, tmp_path / "out", NearDuplicateSettings(fold_case=False))
    assert signed[-2:] == ["x", "y"], "other settings start anew"


def test_real_pages_against_every_pair(tmp_path: Path) -> None:
    """400 of the templated medical pages: no false one, and what MinHash misses is near the threshold."""
    with gzip.open(corpora_folder() / "stackexchange.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = (json.loads(line)["text"] for line in lines)
        texts = sorted({text for text in rows if "What are the symptoms of" in text[:60]})[:400]
    places = write(tmp_path / "in", {"pages": texts})
    ordered = sorted(texts, key=lambda text: document_id("pages", text))
    sets = [shingles(text, MinhashSettings()) for text in ordered]
    least = MinhashSettings().similarity
    # Independent of `greedy`: numpy set operations on every pair.
    kept: list[int] = []
    expected = set()
    for row, own in enumerate(sets):
        near = any(
            len(np.intersect1d(own, sets[k], assume_unique=True)) / max(len(np.union1d(own, sets[k])), 1)
            >= least
            for k in kept
            if min(len(own), len(sets[k])) >= least * max(len(own), len(sets[k])) > 0
        )
        if near:
            expected.add(document_id("pages", ordered[row]))
        else:
            kept.append(row)
    found = set(find_near_duplicates(places, tmp_path / "out", NearDuplicateSettings())["dropped"])
    assert len(expected) > 30
    assert len(found & expected) >= 0.9 * len(expected)
    assert len(found - expected) <= 0.02 * len(expected), "a missed document may let another one be dropped"


def test_the_defaults_find_the_templated_pages(tmp_path: Path) -> None:
    """Of the 600 shortest with the template's passage, those that are little else; the measure compares no two."""
    with gzip.open(corpora_folder() / "stackexchange.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = (json.loads(line)["text"] for line in lines)
        texts = sorted((text for text in rows if "Human Phenotype Ontology provides" in text), key=len)[:600]
    places = write(tmp_path / "in", {"stackexchange": texts})
    found = set(find_near_duplicates(places, tmp_path / "out", NearDuplicateSettings())["dropped"])
    shares = template_shares(texts)
    names = [document_id("stackexchange", text) for text in texts]
    mostly = {name for name, share in zip(names, shares, strict=True) if share >= 0.7}
    assert len(mostly) > 380
    assert len(found) > 400 and len(mostly - found) < 5
    dropped = [name in found for name in names]
    assert (shares[dropped] > 0.5).mean() > 0.9, "and hardly a page that says something of its own"


def test_every_pair_of_greedy_is_below_the_threshold_at_the_end() -> None:
    sets = [shingles(text, MinhashSettings()) for text in varied(9, 60)]
    gone = {row for row, _, _ in greedy(sets, 0.7)}
    left = [set(found.tolist()) for row, found in enumerate(sets) if row not in gone]
    assert all(len(a & b) / len(a | b) < 0.7 for a, b in combinations(left, 2))
