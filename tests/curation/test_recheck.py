"""A rough pass and its recheck decide as float32 does, for every rule; later thresholds score little."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from curation.atomic import read_json
from curation.documents import Document
from curation.educational import EducationalClassifier, int_score, parse_rule, passing
from curation.int8 import Int8Linear, _LastInput, fast_int8
from curation.precision import resolve_precision
from curation.recheck import RISK, _cut, decide, decide_documents
from curation.score_tables import score_source


def corpus(count: int = 150) -> list[Document]:
    words = ["even", "number", "return", "first", "because", "sum", "def", "add", "twice"]
    chance = random.Random(3)
    texts = [" ".join(chance.choices(words, k=chance.randint(1, 60))) for _ in range(count)]
    return [Document(f"{i:04d}", text, "s") for i, text in enumerate(texts)]


@pytest.fixture(scope="module", params=["bfloat16", "int8"])
def scorer(request: pytest.FixtureRequest, classifier_folder: Path) -> EducationalClassifier:
    """A classifier whose first look is rough."""
    if request.param == "int8" and not fast_int8():
        pytest.skip("this processor has no instructions for products of 8-bit numbers")
    return EducationalClassifier(str(classifier_folder), precision=request.param)


@pytest.fixture(scope="module")
def both(
    scorer: EducationalClassifier, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables of pure float32 and of the rough pass."""
    folder = tmp_path_factory.mktemp("both")
    exact = score_source(corpus(), scorer.in_float32(), folder)
    return exact, score_source(corpus(), scorer, folder)


def rules(exact: pl.DataFrame) -> list[str]:
    """Cuts in the thick of the scores, where a rough pass changes verdicts."""
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
    both: tuple[pl.DataFrame, pl.DataFrame], scorer: EducationalClassifier, tmp_path: Path
) -> None:
    exact, half = both
    assert set(half["educational_bits"].to_list()) == {scorer.bits}
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
            assert decision.recheck.risk <= RISK and 0 < decision.recheck.deviation < decision.recheck.largest
            assert 32 == decision.recheck.sample <= decision.recheck.rechecked
            assert "scored in float32 too" in decision.recheck.sentence("s")
            assert read_json(tmp_path / "educational_recheck.json")["rule"] == text
    assert changed  # the rough pass alone decides otherwise, or this test would prove nothing


def test_a_later_threshold_scores_only_its_own_band(
    both: tuple[pl.DataFrame, pl.DataFrame],
    scorer: EducationalClassifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, half = both
    first = decide_documents(corpus(), half, parse_rule("top 0.1"), scorer, tmp_path)
    scored: list[str] = []
    all_scored: list[str] = []
    score = EducationalClassifier.score

    def counting(self: EducationalClassifier, documents: list[Document]) -> dict[str, np.ndarray]:
        scored.extend(document.id for document in documents if self.bits == 32)
        all_scored.extend(document.id for document in documents)
        return score(self, documents)

    monkeypatch.setattr(EducationalClassifier, "score", counting)
    assert decide_documents(corpus(), half, parse_rule("top 0.1"), scorer, tmp_path) is not None
    assert not all_scored
    second = decide_documents(corpus(), half, parse_rule("top 0.3"), scorer, tmp_path)
    known = set(first.scores.filter(pl.col("educational_bits") == 32)["id"].to_list())
    assert not set(scored) & known
    assert second.recheck is not None
    assert len(all_scored) < second.recheck.rechecked


def made_up(
    exact: np.ndarray, rough: np.ndarray, order: np.ndarray | None = None
) -> tuple[pl.DataFrame, Callable[[Any, pl.DataFrame], pl.DataFrame]]:
    """A rough table, in any order, and what scores in float32."""
    ids = [f"{i:05d}" for i in range(len(exact))]
    table = pl.DataFrame({"id": ids, "educational_score": rough.astype(np.float32)})
    table = table.with_columns(educational_bits=pl.lit(8.0, pl.Float32))
    values = exact.astype(np.float32)

    def score(_: Any, wanted: pl.DataFrame) -> pl.DataFrame:
        return wanted.with_columns(
            educational_score=pl.Series(values[wanted["id"].cast(pl.Int64).to_numpy()])
        )

    return (table if order is None else table[order]), score


ROUGH = EducationalClassifier("never loaded", precision="bfloat16")


def noise(law: str, count: int, chance: np.random.Generator) -> np.ndarray:
    if law == "t4":
        return chance.standard_t(4, count)
    if law == "laplace":
        return chance.laplace(size=count) / 2**0.5
    larger = 6.0 if law == "contaminated" else 1.0
    return chance.standard_normal(count) * np.where(chance.random(count) < 0.02, larger, 1.0)


@pytest.mark.parametrize("law", ["normal", "laplace", "t4", "contaminated"])
def test_the_promised_number_of_changed_verdicts_holds(law: str, tmp_path: Path) -> None:
    """Scores dense at the cut, errors of one law and a systematic part; docs/benchmarks.md has larger simulations."""
    changed = alone = rechecked = 0
    repeats, count = 8, 400
    for seed in range(repeats):
        chance = np.random.default_rng(seed)
        exact = chance.uniform(2, 4, count)
        rough = 1.02 * exact + 0.03 + 0.02 * noise(law, count, chance)
        table, score = made_up(exact, rough)
        rule = parse_rule("top 0.3" if seed % 2 else "raw > 3.5")
        decision = decide(table, rule, ROUGH, tmp_path, score)
        truth = table.with_columns(educational_score=pl.Series(exact.astype(np.float32)))
        kept = set(passing(truth.drop("educational_bits"), rule)["id"].to_list())
        changed += len(kept ^ set(decision.passing["id"].to_list()))
        alone += len(kept ^ set(passing(table.drop("educational_bits"), rule)["id"].to_list()))
        assert decision.recheck is not None and decision.recheck.risk <= RISK
        rechecked += decision.recheck.rechecked
    # At most 0.4 are expected (twice that of `top`): four or more have a chance of less than 1 in 200.
    assert changed <= 3 < alone and rechecked < 0.7 * repeats * count


def test_a_difference_that_contradicts_the_law_widens_the_search(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    exact = chance.uniform(2, 4, 1500)
    rough = exact + 0.01 * chance.standard_normal(1500)
    found = []
    for damage in (0.0, 0.3):  # three documents of 3.3 are seen at the cut
        rough[np.argsort(np.abs(exact - 3.3))[:3]] -= damage
        table, score = made_up(exact, rough)
        found.append(decide(table, parse_rule("raw > 3"), ROUGH, tmp_path, score).recheck)
    plain, contradicted = found
    assert plain is not None and contradicted is not None
    assert contradicted.rechecked > 1.3 * plain.rechecked and contradicted.band > 2 * plain.band


def test_the_order_of_the_documents_changes_nothing(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    exact = chance.uniform(2, 4, 600)
    rough = exact + 0.02 * chance.standard_normal(600)
    found = [
        decide(table, parse_rule("top 0.2"), ROUGH, tmp_path, score)
        for table, score in (made_up(exact, rough, order) for order in (None, chance.permutation(600)))
    ]
    assert found[0].passing.equals(found[1].passing) and found[0].scores.equals(found[1].scores)
    assert found[0].recheck == found[1].recheck


@pytest.mark.parametrize("rule", ["top 1", "int_score >= 9", "int_score >= 0"])
def test_where_no_score_can_change_a_verdict_only_the_sample_is_scored(rule: str, tmp_path: Path) -> None:
    exact = np.linspace(0, 5, 200)
    table, score = made_up(exact, exact + 0.01)
    decision = decide(table, parse_rule(rule), ROUGH, tmp_path, score)
    assert decision.recheck is not None and decision.recheck.rechecked == decision.recheck.sample == 32
    assert decision.passing.height == (0 if "9" in rule else 200)
    assert read_json(tmp_path / "educational_recheck.json")["band"] > 1e300
    assert decision.recheck.sentence("s").endswith(f"No score can change a verdict of `{rule}`.")


def test_many_documents_are_counted_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As good as exactly, and never with more risk."""
    chance = np.random.default_rng(2)
    exact = chance.uniform(2, 4, 3000)
    table, score = made_up(exact, exact + 0.02 * chance.standard_normal(3000))
    found = []
    for many in (10**6, 100):
        monkeypatch.setattr("curation.recheck._MANY", many)
        found.append(decide(table, parse_rule("raw > 3"), ROUGH, tmp_path, score).recheck)
    one, steps = found
    assert one is not None and steps is not None
    assert one.rechecked <= steps.rechecked <= 1.02 * one.rechecked


def test_scores_that_were_reused_do_not_count_as_rough(tmp_path: Path) -> None:
    chance = np.random.default_rng(3)
    exact = chance.uniform(2, 4, 3000)
    rough = exact + 0.02 * chance.standard_normal(3000)
    reused = np.arange(3000) % 10 > 0
    table, score = made_up(exact, np.where(reused, exact, rough))
    table = table.with_columns(educational_bits=pl.Series(np.where(reused, 32, 8).astype(np.float32)))
    mixed = decide(table, parse_rule("raw > 3"), ROUGH, tmp_path, score)
    few, known = table.filter(pl.col("educational_bits") == 8), mixed.recheck
    alone = decide(few, parse_rule("raw > 3"), ROUGH, tmp_path, score).recheck
    assert known is not None and alone is not None and known.rechecked == alone.rechecked < 150
    assert mixed.passing["id"].to_list() == [f"{i:05d}" for i in np.flatnonzero(exact > 3)]


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
        for name in ("float32", "bfloat16", "auto", "int8")
    }
    assert prints["float32"] != prints["bfloat16"]
    assert prints["auto"] == prints[resolve_precision("auto")]
    assert (prints["int8"] == prints["auto"]) != fast_int8()


def test_without_instructions_int8_is_what_auto_is(
    classifier_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation.educational.fast_int8", lambda device: False)
    scorer = EducationalClassifier(str(classifier_folder), precision="int8")
    assert scorer.resolved == resolve_precision("auto") and scorer.bits in (16, 32)


@pytest.mark.skipif(not fast_int8(), reason="no instructions for products of 8-bit numbers")
def test_an_int8_layer_is_near_its_float32_and_keeps_tokens_apart() -> None:
    """The error of n products of numbers rounded to a and b is near sqrt(n) (a |w| + b |x|) / sqrt(12)."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 40)
    layer = Int8Linear(linear, _LastInput())
    x = (torch.randn(5, 7, 96) * torch.logspace(-2, 2, 7)[:, None]).to(torch.bfloat16)
    with torch.inference_mode():
        exact, found = linear(x.float()), layer(x).float()
        sizes = (exact - linear.bias).norm(dim=-1)
        assert found.shape == exact.shape and ((found - exact).norm(dim=-1) < 0.02 * sizes + 0.01).all()
        assert ((found - exact).norm(dim=-1) > 1e-4 * sizes).any()
        assert torch.equal(
            layer(x[:, 3].clone()), layer(x.clone())[:, 3]
        )  # others in the batch change nothing
        assert torch.equal(layer(torch.zeros(2, 96, dtype=torch.bfloat16)), layer.product.bias.expand(2, 40))


def test_a_text_of_ten_megabytes_and_one_without_tokens(classifier_folder: Path) -> None:
    scorer = EducationalClassifier(str(classifier_folder), precision="bfloat16")
    found = [Document("a", "even number " * 900_000, "s"), Document("b", " ", "s"), Document("c", "", "s")]
    assert np.isfinite(scorer.score(found)["educational_score"]).all()


def test_the_integer_rule_is_cut_where_the_integers_change() -> None:
    for least in (0.5, 1.0, 2.0, 3.0, 4.0, 5.0):
        cut = _cut(np.zeros(3), parse_rule(f"int_score >= {least}"))
        verdicts = int_score(np.array([cut - 1e-3, cut + 1e-3])) >= least
        assert verdicts.tolist() == [False, True]
