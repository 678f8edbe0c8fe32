"""The page's sections on evidence: what they say is what the files say, and hostile files stay text."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.atomic import read_json, write_json
from curation.errors import DataError
from mixing.fit.evidence_of import evidence_of
from mixing.fit.fit import fit_mixture
from mixing.mixture import read_mixture
from mixing.predicted import predicted_against_realised, slope
from mixing.report import charts, write_report
from mixing.report.compressed import parse_compression
from mixing.report.evidence import chance, weighed_mixtures
from mixing.report.front import parse_front
from mixing.report.gather import gather
from mixing.report.numbers import percent, plain, signed
from mixing.report.predicted import realised
from mixing.report.records import RunFacts
from mixing.report.tokens import MOST_CHARACTERS, MOST_PIECES, parse_tokens
from mixing.report.verdict import sureness, what_it_rests_on
from tests.mixing.report_sample import CAPABILITIES, EVIL_SOURCE, make_run, proxy_table
from tests.mixing.test_report import Outline


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("evidence") / "quickstart")


@pytest.fixture(scope="module")
def facts(run: Path) -> RunFacts:
    return gather(run)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    return Outline(page)


def section(page: str, name: str) -> str:
    """The text of one section."""
    found = re.search(rf'<section id="{name}".*?</section>', page, re.S)
    assert found is not None, name
    return Outline(found.group(0)).text


def spaced(text: str) -> str:
    """As `section` gives it: every white space a plain one."""
    return re.sub(r"\s", " ", text)


def test_evidence_of_a_mixture_is_that_of_fit() -> None:
    """A mixture from `fit` is weighed as `fit` weighs it, within what 4,000 draws leave open."""
    table = proxy_table(("standard_library", "sympy_source", "readmes", "word_problems"))
    fitted = fit_mixture(runs=table, method="gaussian-process")
    assert fitted.evidence is not None
    uniform = dict.fromkeys(table.sources, 1 / 4)
    found = evidence_of({"ours": fitted.weights, "uniform": uniform}, table)
    ours = found["ours"]
    assert ours.beats["uniform"] == pytest.approx(fitted.evidence.beats["uniform"], abs=0.03)
    assert ours.gain_percent["uniform"].value == pytest.approx(
        fitted.evidence.gain_percent["uniform"].value, rel=0.1
    )
    assert (
        found["uniform"].verdict == "This is the uniform mixture" and "uniform" not in found["uniform"].beats
    )
    assert sum(e.best["this"] for e in found.values()) == pytest.approx(1, abs=0.03)
    with pytest.raises(DataError, match="name different sources"):
        evidence_of({"ours": {"other": 1.0}}, table)


def test_every_candidate_is_weighed(facts: RunFacts, page: str) -> None:
    text = section(page, "evidence")
    weighed = weighed_mixtures(facts)
    assert list(weighed) == ["leave_one_out", "influence", "uniform"], (
        "the recommended one first, uniform last"
    )
    for name, evidence in weighed.items():
        assert name in text
        for value in (*evidence.beats.values(), evidence.best["this"]):
            assert chance(value) in text
        for loss in evidence.predicted.values():
            assert plain(loss.value, 3) in text
    assert weighed["leave_one_out"].verdict in text and "18 proxy runs" in text
    assert [chance(v) for v in (None, 0.0, 0.31, 1.0)] == ["–", "below 0.01", "0.31", "above 0.99"]


def test_the_summary_says_how_sure_and_why(facts: RunFacts, page: str) -> None:
    answer = section(page, "answer")
    assert facts.recommended is not None and facts.recommended.evidence is not None
    evidence = facts.recommended.evidence
    assert "How sure are we?" in answer and "What does it rest on?" in answer
    assert f"{chance(evidence.beats['uniform'])} of beating uniform" in answer
    assert f"of being the best of {len(evidence.best)} candidates" in answer
    assert (
        spaced(f"Predicted was a loss lower by {percent(evidence.gain_percent['uniform'].value / 100, 2)}")
        in answer
    )
    assert any("comparison of 3 mixtures trained with 3 seeds" in said for said in what_it_rests_on(facts))
    assert any("Leaving out each of 8 sources" in said for said in what_it_rests_on(facts))
    assert any("equal" in said for said in sureness(facts)) or facts.comparison is None


def test_equal_and_unknown_are_told_apart(tmp_path: Path, run: Path) -> None:
    """Two mixtures without a verdict: one is shown to be equal to uniform, the other is not."""
    part = tmp_path / "part"
    shutil.copytree(run, part, ignore=shutil.ignore_patterns("metrics.jsonl"))
    file = part / "comparison" / "comparison.json"
    value = read_json(file)
    for row in value["differences"]:
        row |= {
            "verdict": "not separable",
            "equivalent": row["mixture"] == "influence",
            "p_equivalence": 0.04,
        }
        row |= {"margin": 0.0111, "p_bootstrap": 0.0004}
    write_json(file, value)
    text = section(write_report(part).read_text(encoding="utf-8"), "comparison")
    assert (
        "For influence the difference to uniform is too small to matter: equal within 0.5 % on the mean"
        in text
    )
    assert "leave_one_out is neither shown to differ from uniform nor to equal it" in text
    assert "bootstrap < 0.01" in text and "with few seeds it is too sure of itself" in text


def test_predicted_stands_beside_realised(facts: RunFacts, page: str) -> None:
    rows = realised(facts)
    assert {(r.mixture, r.capability) for r in rows} == {
        (m, c) for m in ("influence", "leave_one_out") for c in CAPABILITIES
    }
    assert facts.comparison is not None
    for row in rows:
        expected = np.mean(
            [
                a.bits_per_byte - b.bits_per_byte
                for a in facts.comparison.runs
                for b in facts.comparison.runs
                if (a.mixture, b.mixture) == (row.mixture, "uniform")
                and a.seed == b.seed
                and a.capability == b.capability == row.capability
            ]
        )
        assert row.realised == pytest.approx(expected)
        evidence = {name: m.evidence for name, m in facts.mixtures.items()}
        ours, base = evidence[row.mixture], evidence["uniform"]
        assert ours is not None and base is not None
        assert row.predicted == pytest.approx(
            ours.predicted[row.capability].value - base.predicted[row.capability].value
        )
        assert signed(row.realised, 4) in page
    inside = sum(row.inside is True for row in rows)
    text = section(page, "predicted")
    assert f"{inside} of 6 changes" in text
    found = slope(rows)
    assert found is not None and plain(found, 2) in text
    assert predicted_against_realised({}, {"uniform": {0: {"code": 1.0}}}) == []


def test_the_front_has_its_prices_and_mixtures(run: Path, page: str) -> None:
    record = read_json(run / "front" / "pareto.json")
    text = section(page, "front")
    for price in record["prices"]:
        assert price["sentence"] in text
    for source, weight in record["balanced"]["weights"].items():
        assert f"{100 * weight:.1f} %" in text, source
    for name in CAPABILITIES:
        assert plain(record["balanced"]["losses"][name][0], 3) in text
    assert "code (across) and mathematics (up)" in text
    assert "by 18 proxy runs" in text


def test_tokens_are_coloured_and_stay_text(page: str, outline: Outline) -> None:
    text = section(page, "tokens")
    marks = [value for tag, name, value in outline.attributes if (tag, name) == ("mark", "class")]
    assert {tone[0] for tone in marks} == {"p", "n"} and all(
        re.fullmatch("[pn][2-5]", tone) for tone in marks
    )
    assert "Look : </script> <img src=x onerror= \ufffdgnp" in text
    assert "hurts most: “</script>”" in text and "helps most: “</script>”" in text, "for who sees no colours"
    assert "3 tokens after these were not scored" in text and EVIL_SOURCE in text
    assert not {"script", "img"} & set(outline.tags)
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert style is not None and '.tokens mark[class^="n"] { text-decoration: underline' in style.group(1)


def test_rounds_of_compression_are_drawn_beside_each_other(page: str, outline: Outline) -> None:
    text = section(page, "compression")
    assert "2 rounds of scoring" in text and "The last round kept 50.0 % of the tokens" in text
    assert "\u22120.0123 bits per byte (\u22120.41%)" in text
    labels = [v for t, n, v in outline.attributes if (t, n) == ("div", "aria-label")]
    assert "code: round 1: 87 % of the documents help, round 2: 67 % of the documents help" in map(
        spaced, labels
    )
    assert "75 %" in text and "3,000 tokens" in text and EVIL_SOURCE in text
    assert "Mid-training" in page and "pre-training, mid-training, SFT and GRPO" in page


def test_texts_and_pieces_are_bounded() -> None:
    row = {"document": "d", "source": "s", "benefit": 1.0, "pieces": [["ab" * 50, 1.0]] * 900, "rest": 2.0}
    found = parse_tokens({"capabilities": {"code": {"checkpoint": 1, "documents": [row] * 50}}})
    documents = found.documents["code"]
    shown = documents[0].pieces
    assert len(documents) == 8 and len(shown) <= MOST_PIECES
    assert sum(len(text) for text, _ in shown) <= MOST_CHARACTERS
    assert documents[0].rest == pytest.approx(902 - len(shown))


HOSTILE: dict[str, list[Any]] = {
    "front/pareto.json": [
        [],
        {"capabilities": ["code"], "points": [], "prices": []},
        {"capabilities": ["a", "b"], "points": [{"weights": {}, "losses": {"a": [1, 2], "b": [1, 2, 3]}}]},
        {
            "capabilities": ["</svg><script>", "b"],
            "points": [
                {"weights": {"<b>": 1e308}, "losses": {"</svg><script>": [1e308, -1e308, 1e308], "b": [0, 0, 0]}}
            ],
            "balanced": {"weights": {"<b>": -1}, "losses": {"</svg><script>": [0, 0, 0], "b": [1, 1, 1]}},
            "prices": [{"gain": "<b>", "cost": "b", "end": {"<i>": 1}, "sentence": "<b>\u202e</b>"}],
        },
    ],
    "token_benefits/tokens.json": [
        {"capabilities": []},
        {"capabilities": {"code": {"checkpoint": 1, "documents": [{"document": "d"}]}}},
        {
            "capabilities": {
                "</h2><script>": {
                    "checkpoint": 1,
                    "documents": [
                        {
                            "document": "<b>",
                            "source": "<i>",
                            "benefit": 1e308,
                            "pieces": [["</pre><script>", -1e308], ["", 0]],
                        }
                    ],
                }
            }
        },
    ],
    "training/compression/compression.json": [
        {"arms": {"compressed": {"1": {"rounds": [], "stop": {"text": "x"}}}}, "comparison": {}},
        {"arms": {"compressed": {"1": {"rounds": [{"number": 1}], "stop": {"text": "x"}}}}, "comparison": {}},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "at"), [(name, at) for name, values in HOSTILE.items() for at in range(len(values))]
)
def test_hostile_files_do_not_break_the_page(tmp_path: Path, name: str, at: int) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(HOSTILE[name][at]), encoding="utf-8")
    found = Outline(write_report(tmp_path).read_text(encoding="utf-8"))
    assert not found.open and not {"script", "b", "i"} & {
        t for t in found.tags if t != "i" or found.tags["i"] > 11
    }
    assert "\u202e" not in found.text


def test_what_is_no_record_is_an_error() -> None:
    for parse, value in ((parse_front, {}), (parse_tokens, {}), (parse_compression, {})):
        with pytest.raises((KeyError, TypeError, ValueError)):
            parse(value)  # type: ignore[operator]


def test_a_run_without_evidence_says_so(run: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(run, part, ignore=shutil.ignore_patterns("metrics.jsonl", "front", "token_benefits"))
    for file in [part / "mixture.json", *part.glob("mixtures/*/mixture.json")]:
        value = read_json(file)
        del value["evidence"]
        write_json(file, value)
        assert read_mixture(file).evidence is None
    page = write_report(part).read_text(encoding="utf-8")
    found = Outline(page)
    missing = re.findall(r'class="absent">([^<]*)</a>', page)
    assert missing[: len(missing) // 2] == [
        "How sure we are",
        "Predicted against realised",
        "Trade-offs",
        "Token by token",
        "Loss curves",
    ], "the rows of the curves were left out as well"
    assert "nobody weighed this mixture" in found.text and not found.open


def test_numbers_on_an_axis_keep_their_decimals() -> None:
    """They were cut to two as if they were coordinates: 0.005 and 0.000 were both 0.00."""
    svg = charts.dots(
        [charts.Dot(0.0, 0.0), charts.Dot(0.01, 0.02, (0.0, 0.02))], "d", x_label="x", y_label="y"
    )
    numbers = re.findall(r"<text[^>]*>([\d.\u2212]+)</text>", svg)
    assert numbers.count("0.005") == 2 and max(numbers.count(n) for n in numbers) == 2, numbers


@pytest.mark.parametrize("module", ["evidence"])
def test_the_examples_in_docstrings_hold(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"mixing.report.{module}"))
    assert found.attempted and not found.failed
