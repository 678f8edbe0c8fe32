"""A bfloat16 pass and its recheck decide as float32 does, for every rule; later thresholds score little."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.atomic import read_json
from curation.documents import Document
from curation.educational import EducationalClassifier, int_score, parse_rule, passing
from curation.precision import resolve_precision
from curation.recheck import decide_documents, undecided
from curation.score_tables import score_source


def corpus(count: int = 150) -> list[Document]:
    words = ["even", "number", "return", "first", "because", "sum", "def", "add", "twice"]
    chance = random.Random(3)
    texts = [" ".join(chance.choices(words, k=chance.randint(1, 60))) for _ in range(count)]
    return [Document(f"{i:04d}", text, "s") for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def both(
    classifier_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables of pure float32 and of bfloat16."""
    folder, rough = (
        tmp_path_factory.mktemp("both"),
        EducationalClassifier(str(classifier_folder), precision="bfloat16"),
    )
    exact = score_source(corpus(), rough.in_float32(), folder)
    return exact, score_source(corpus(), rough, folder)


def rules(exact: pl.DataFrame) -> list[str]:
    """Cuts in the thick of the scores, where bfloat16 changes verdicts."""
    middle, high = (float(np.quantile(exact["educational_score"].to_numpy(), q)) for q in (0.5, 0.9))
    return [
        f"raw > {middle:.4f}",
        f"raw > {high:.4f}",
        "top 0.1",
        "top 0.5",
        "top 1",
        "int_score >= 1",
        "all",
    ]


def test_every_rule_decides_as_float32(
    both: tuple[pl.DataFrame, pl.DataFrame], classifier_folder: Path, tmp_path: Path
) -> None:
    exact, half = both
    scorer = EducationalClassifier(str(classifier_folder), precision="bfloat16")
    assert set(half["educational_bits"].to_list()) == {16}
    changed = 0
    for text in rules(exact):
        rule = parse_rule(text)
        truth = passing(exact, rule)["id"].to_list()
        decision = decide_documents(corpus(), half, rule, scorer, tmp_path)
        assert decision.passing["id"].to_list() == truth, text
        assert decision.passing.columns == ["id", "educational_score"]
        changed += passing(half.select("id", "educational_score"), rule)["id"].to_list() != truth
        if decision.recheck is not None:
            again = decision.scores.filter(pl.col("educational_bits") == 32)
            assert again.height == decision.recheck.rechecked
            assert decision.recheck.band == 3 * decision.recheck.largest > 0
            assert "scored in float32 too" in decision.recheck.sentence("s")
            assert read_json(tmp_path / "educational_recheck.json")["rule"] == text
    assert changed  # bfloat16 alone decides otherwise, or this test would prove nothing


def test_a_later_threshold_scores_only_its_own_band(
    both: tuple[pl.DataFrame, pl.DataFrame],
    classifier_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, half = both
    scorer = EducationalClassifier(str(classifier_folder), precision="bfloat16")
    first = decide_documents(corpus(), half, parse_rule("top 0.1"), scorer, tmp_path)
    scored: list[str] = []
    score = EducationalClassifier.score

    def counting(self: EducationalClassifier, documents: list[Document]) -> dict[str, np.ndarray]:
        scored.extend(document.id for document in documents)
        return score(self, documents)

    monkeypatch.setattr(EducationalClassifier, "score", counting)
    assert decide_documents(corpus(), half, parse_rule("top 0.1"), scorer, tmp_path) is not None
    assert not scored
    second = decide_documents(corpus(), half, parse_rule("top 0.3"), scorer, tmp_path)
    known = set(first.scores.filter(pl.col("educational_bits") == 32)["id"].to_list())
    assert not set(scored) & known
    assert second.recheck is not None and len(scored) < second.recheck.rechecked


def test_too_narrow_a_band_is_widened(
    both: tuple[pl.DataFrame, pl.DataFrame], classifier_folder: Path, tmp_path: Path
) -> None:
    """From a sample of one document, the rechecked ones show what the error really is."""
    exact, half = both
    scorer = EducationalClassifier(str(classifier_folder), precision="bfloat16")
    rule = parse_rule(rules(exact)[0])
    decision = decide_documents(corpus(), half, rule, scorer, tmp_path, sample=1)
    assert decision.recheck is not None and decision.recheck.sample == 1 and decision.recheck.widened > 0
    assert decision.passing["id"].to_list() == passing(exact, rule)["id"].to_list()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 80),
    band=st.floats(1e-6, 2.0),
    rule=st.sampled_from(["raw > 2", "int_score >= 2", "int_score >= 3", "top 0.1", "top 0.34", "top 1"]),
)
def test_what_is_not_undecided_is_decided(seed: int, count: int, band: float, rule: str) -> None:
    """For any errors within the band, scoring the undecided until none is left gives the true verdicts."""
    chance = np.random.default_rng(seed)
    true = np.round(chance.uniform(0, 5, count), 2)
    rough = true + chance.uniform(-0.999 * band, 0.999 * band, count)
    unknown, scores, parsed = np.ones(count, dtype=bool), rough.copy(), parse_rule(rule)
    while (more := undecided(scores, unknown, parsed, band)).any():
        scores[more], unknown = true[more], unknown & ~more
    ids = [f"{i:03d}" for i in range(count)]
    found, truth = (
        passing(pl.DataFrame({"id": ids, "educational_score": values}), parsed)["id"].to_list()
        for values in (scores, true)
    )
    assert found == truth


def test_float32_tables_are_simply_decided(both: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path) -> None:
    exact, _ = both
    scorer = EducationalClassifier("never loaded")
    decision = decide_documents(corpus(), exact, parse_rule("top 0.2"), scorer, tmp_path)
    assert decision.recheck is None and decision.passing.equals(passing(exact, parse_rule("top 0.2")))
    assert not any(tmp_path.iterdir())


def test_no_documents_and_one(classifier_folder: Path, tmp_path: Path) -> None:
    scorer = EducationalClassifier(str(classifier_folder), precision="bfloat16")
    for count in (0, 1):
        found = corpus(count)
        table = score_source(found, scorer, tmp_path / str(count))
        for rule in ("raw > 0", "top 0.1", "int_score >= 9"):
            decision = decide_documents(found, table, parse_rule(rule), scorer, tmp_path / str(count))
            assert decision.scores.height == count


def test_scores_that_were_reused_are_not_checked(classifier_folder: Path, tmp_path: Path) -> None:
    scorer = EducationalClassifier(str(classifier_folder), precision="bfloat16", reuse="score")
    found = [Document(str(i), "even number", "s", meta={"score": i / 2}) for i in range(10)]
    table = score_source(found, scorer, tmp_path)
    assert set(table["educational_bits"].to_list()) == {32}
    decision = decide_documents(found, table, parse_rule("raw > 3"), scorer, tmp_path)
    assert decision.passing["id"].to_list() == ["7", "8", "9"]
    assert decision.recheck is not None and decision.recheck.rechecked == 0


def test_precision_is_in_the_fingerprint_and_auto_is_what_it_resolves_to(classifier_folder: Path) -> None:
    prints = {
        name: EducationalClassifier(str(classifier_folder), precision=name).fingerprint()  # type: ignore[arg-type]
        for name in ("float32", "bfloat16", "auto")
    }
    assert prints["float32"] != prints["bfloat16"]
    assert prints["auto"] == prints[resolve_precision("auto")]


def test_a_text_of_ten_megabytes_and_one_without_tokens(classifier_folder: Path) -> None:
    scorer = EducationalClassifier(str(classifier_folder), precision="bfloat16")
    found = [Document("a", "even number " * 900_000, "s"), Document("b", " ", "s"), Document("c", "", "s")]
    assert np.isfinite(scorer.score(found)["educational_score"]).all()


def test_the_integer_rule_is_cut_where_the_integers_change() -> None:
    scores = np.linspace(0, 5, 5001)
    for least in (0.5, 1.0, 2.0, 3.0, 4.0, 5.0):
        near = undecided(scores, np.ones(len(scores), dtype=bool), parse_rule(f"int_score >= {least}"), 2e-4)
        assert near.sum() == 1
        place = int(np.flatnonzero(near)[0])
        verdicts = int_score(scores[[place - 1, place + 1]]) >= least
        assert verdicts.tolist() == [False, True]
