"""The page: what it says, that it escapes, that it does without what is missing, that equal runs give equal bytes."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from curation.atomic import read_json, write_json
from curation.errors import DataError
from mixing.mixture import Mixture, write_mixture
from mixing.report import charts, write_report
from mixing.report.agreement import critical_rank_correlation
from mixing.report.curated import warning_blocks
from mixing.report.documents import EXCERPT_CHARACTERS, excerpt, joint_benefits
from mixing.report.elements import Bullets, Disclosure, Palette, Prose, heat
from mixing.report.gather import gather
from mixing.report.numbers import signed
from mixing.report.proof import difference_strip
from mixing.report.records import Difference
from mixing.report.terminal import print_summary
from mixing.report.verdict import against_uniform, primary_difference, what_helps
from tests.mixing.report_sample import EVIL_SOURCE, EVIL_TEXT, SOURCES, make_run

SECTIONS = [
    "mixture",
    "evidence",
    "comparison",
    "predicted",
    "front",
    "leave-one-out",
    "influence",
    "agreement",
    "documents",
    "tokens",
    "funnel",
    "raters",
    "probes",
    "broken",
    "model",
    "learning",
    "curves",
    "cost",
    "settings",
    "reproduce",
]
VOID = {"meta", "link", "br", "img", "input", "hr", "wbr", "path", "use"}


class Outline(HTMLParser):
    """Elements, ids, addresses and text of a page; complains about elements that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[int] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        opened = self.open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a source whose name is a script, and documents that try to break out of the page."""
    return make_run(tmp_path_factory.mktemp("report") / "quickstart")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    return Outline(page)


def test_every_section_is_there_and_says_what_the_files_say(run: Path, page: str, outline: Outline) -> None:
    assert [i for i in outline.values("id") if i in SECTIONS] == SECTIONS
    assert "Not run." not in outline.text
    mixture = read_json(run / "mixture.json")
    for source, weight in mixture["weights"].items():
        assert f"{100 * weight:.1f}\u202f%" in page, source
    for effect in read_json(run / "leave_one_out" / "leave_one_out.json")["effects"]:
        assert signed(effect["delta"], 3) in page
    for row in read_json(run / "comparison" / "comparison.json")["differences"]:
        assert signed(row["difference"], 4) in page
    for said in (
        "The mixture comes from the reference",
        "Clipped: <script>alert(1)</script> and licences_and_tables have a negative source sum",
        "small models that it trained itself",
        "Words out of order teach nothing.",
        "0.9312",
        "readmes.jsonl, line 17",
        "29 of 128",
        "from 23 % (16 to 31 %) to 45 %",
        "first-order approximation of H^-1",
        "Llama4ForCausalLM",
        "largest difference 3.8 × 10⁻⁶",
        "torch 2.13.0+cpu",
        "12 min 14 s",
        "done, attempt 2",
        "educational trained by this run",
        "judge published: someone/judge-1B",
        "readmes has 90 representative documents, not 120.",
        "Overlapping held-out text",
        "dropped 2 documents",
    ):
        assert said in outline.text, said


def test_the_page_is_one_sound_accessible_file(page: str, outline: Outline) -> None:
    assert len(page.encode()) < 3_000_000
    assert not outline.open, "some elements are never closed"
    ids = outline.values("id")
    assert len(ids) == len(set(ids)), [i for i, n in Counter(ids).items() if n > 1]
    inner = {a for a in outline.values("href") if a.startswith("#")}
    inner |= {f"#{name}" for name in re.findall(r"url\(#([^)]+)\)", page)}
    assert inner <= {f"#{i}" for i in ids}
    assert {a for a in outline.values("href") if not a.startswith("#")} == {"data:,"}
    assert not outline.values("src") and "http" not in page.replace("http-equiv", "")
    assert outline.headings[0] == 1 and outline.headings.count(1) == 1
    assert all(
        after - before <= 1 or after == 4
        for before, after in zip(outline.headings, outline.headings[1:], strict=False)
    )
    assert outline.tags["th"] == len([v for t, n, v in outline.attributes if t == "th" and n == "scope"])
    figures = [v for t, n, v in outline.attributes if t == "div" and n == "role" and v == "img"]
    assert outline.tags["svg"] <= len(figures) and outline.tags["svg"] > 20


def test_what_the_final_model_learned_is_drawn_and_in_a_table(outline: Outline) -> None:
    labels = [v for t, n, v in outline.attributes if (t, n) == ("div", "aria-label")]
    assert (
        "Loss on the probes in bits per byte: code from 3.100 to 2.350; mathematics from 3.300 to 2.550; "
        "knowledge from 3.500 to 2.750" in labels
    )
    ranks = next(label for label in labels if label.startswith("RankMe in directions"))
    assert ranks.endswith("output weight from 70.000 to 73.000")
    assert "divergence from the teacher, from 1.400 to 0.560 nats per token" in labels
    assert "Held-out: share of right answers from 0.23 to 0.45" in labels
    assert "The probes were measured 4 times" in outline.text and "MobileLLM-R1, Eq. 9" in outline.text
    assert "The loss on every one of them fell." in outline.text


@pytest.mark.parametrize(
    "rows",
    [
        "",
        "[1, 2]\nnull\n",
        '{"step": 5}\n',
        '{"bits_per_byte/code": 3.0}\n',
        '{"step": "<b>", "bits_per_byte/code": 3.0}\n',
        '{"step": 5, "bits_per_byte/</svg><script>x": NaN, "rankme/<script>y": 1e308}\n',
        '{"step": 5, "bits_per_byte/</svg><script>x": 1e300, "rankme/": -1e308}\n'
        '{"step": 1, "bits_per_byte/</svg><script>x": 2, "rankme/": 1e308}\n',
        '{"step": 5, "bits_per_byte/code":\n',
    ],
)
def test_hostile_evaluations_do_not_break_the_page(run: Path, tmp_path: Path, rows: str) -> None:
    for stage in ("pretrain", "grpo"):
        folder = tmp_path / "training" / stage
        folder.mkdir(parents=True)
        (folder / "evaluations.jsonl").write_text(rows, encoding="utf-8")
    outline = Outline(write_report(tmp_path).read_text(encoding="utf-8"))
    assert not outline.open and not {"script", "b"} & set(outline.tags)


def test_warnings_with_one_advice_are_one_and_a_recheck_is_no_warning() -> None:
    same = [f"judge saw only the head of 3 of 9 documents of s{i}: raise the context" for i in range(4)]
    recheck = "s1: 8 of 90 documents were scored in float32 too."
    grouped, few, note = warning_blocks([*same, recheck, "s2 has 9 documents: read more of it"])
    assert isinstance(grouped, Disclosure) and isinstance(grouped.blocks[0], Bullets)
    assert (
        grouped.summary.startswith("4 warnings such as: judge saw") and "mend them: raise" in grouped.summary
    )
    assert len(grouped.blocks[0].items) == 4
    assert few == Prose("s2 has 9 documents: read more of it.", "warning")
    assert note == Prose(recheck, "note")


def test_names_and_texts_are_text(outline: Outline) -> None:
    assert not {"script", "img", "iframe", "object", "b"} & set(outline.tags)
    assert not [name for _, name, _ in outline.attributes if name.startswith("on")]
    assert EVIL_SOURCE in outline.text
    hidden = EVIL_TEXT.replace("\u202e", "\ufffd").replace("\x07", "\ufffd")
    assert hidden in outline.text, "the document is not shown as it is, with what cannot be seen made visible"
    assert "\u202e" not in outline.text and "</svg" not in outline.text
    assert "there is no field `text` <b>at all</b>" in outline.text
    policy = next(
        v for t, n, v in outline.attributes if t == "meta" and n == "content" and "default-src" in v
    )
    assert policy.startswith("default-src 'none'")


def test_half_a_surrogate_in_a_name_does_not_stop_the_page(tmp_path: Path) -> None:
    write_mixture(tmp_path / "mixture.json", Mixture({"a": 0.5, "b": 0.5}, method="given"))
    file = tmp_path / "mixture.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"a"', '"a\\ud800"'), encoding="utf-8")
    assert "a\ufffd" in write_report(tmp_path).read_text(encoding="utf-8")


def test_an_empty_run_says_not_run_everywhere_and_how_to(tmp_path: Path) -> None:
    outline = Outline(write_report(tmp_path).read_text(encoding="utf-8"))
    assert outline.text.count("Not run.") == len(SECTIONS) - 1, "only `reproduce` needs nothing"
    assert outline.text.count("mixwright") > len(SECTIONS)
    assert "Not known: no models were trained to compare it with uniform." in outline.text


@pytest.mark.parametrize(
    "gone", ["comparison", "leave_one_out", "influence", "documents", "training", "raters", "model"]
)
def test_any_part_may_be_missing(run: Path, tmp_path: Path, gone: str) -> None:
    part = tmp_path / "part"
    shutil.copytree(run, part, ignore=shutil.ignore_patterns("metrics.jsonl"))
    shutil.rmtree(part / gone)
    assert not Outline(write_report(part).read_text(encoding="utf-8")).open


def test_files_that_cannot_be_read_are_named_and_the_rest_stands(run: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(run, part, ignore=shutil.ignore_patterns("metrics.jsonl"))
    (part / "comparison" / "comparison.json").write_text('{"runs": [', encoding="utf-8")
    write_json(part / "leave_one_out" / "leave_one_out.json", {"effects": [{"source": "a"}]})
    (part / "influence" / "uniform-code-step-73.parquet").write_bytes(b"PAR1 no")
    (part / "model" / "model.safetensors").write_bytes(b"\xff" * 20)
    text = Outline(write_report(part).read_text(encoding="utf-8")).text
    assert "comparison/comparison.json:" in text
    assert "leave_one_out/leave_one_out.json: the entry 'capability' is missing" in text
    assert "The influence files could not be joined" in text
    assert "model: the safetensors header is larger than the format allows" in text
    assert "Clipped: <script>alert(1)</script> and licences_and_tables" in text


def test_what_stands_in_a_file_does_not_lead_out_of_the_run(run: Path, tmp_path: Path) -> None:
    part, secret = tmp_path / "runs" / "part", tmp_path / "runs" / "secret"
    shutil.copytree(run, part, ignore=shutil.ignore_patterns("metrics.jsonl"))
    evaluations = part / "proxy_runs" / "loo-all-seed1" / "evaluations"
    shutil.move(evaluations, secret / "evaluations")
    write_json(part / "proxy_runs" / "baseline.json", {"run_id": "../../secret"})
    assert "Where it starts" in Outline(write_report(run).read_text(encoding="utf-8")).text
    assert "Where it starts" not in Outline(write_report(part).read_text(encoding="utf-8")).text


def test_equal_runs_give_equal_bytes(run: Path, page: str, tmp_path: Path) -> None:
    """In another folder, in another process, with another hash seed."""
    twin = tmp_path / "elsewhere" / run.name
    shutil.copytree(run, twin)
    code = (
        "import sys, pathlib; from mixing.report import write_report; write_report(pathlib.Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "MPLBACKEND": "agg", "TZ": "Asia/Tokyo"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(twin)], check=True, cwd=root, env=environment)
    assert (twin / "report.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("effect", "tone", "said"),
    [
        (-0.05, "good", "Yes: on held-out text"),
        (+0.05, "bad", "No, it did worse: on held-out text"),
        (-0.0004, "unclear", "Not separable from noise at this budget"),
    ],
)
def test_the_verdict_is_that_of_the_comparison(tmp_path: Path, effect: float, tone: str, said: str) -> None:
    run = make_run(tmp_path / "run", evil=False, effect=effect)
    facts = gather(run)
    verdict = against_uniform(facts)
    assert verdict.tone == tone and verdict.sentence.startswith(said)
    assert facts.comparison is not None
    row = primary_difference(facts.comparison, "leave_one_out")
    assert row is not None and row.capability == "mean"
    base = np.mean([r.bits_per_byte for r in facts.comparison.runs if r.mixture == "uniform"])
    assert f"{100 * abs(row.difference) / base:.2f}\u202f%" in verdict.sentence
    assert "3 paired seeds" in verdict.sentence
    if tone == "unclear":
        assert row.smallest_detectable is not None
        assert f"would reliably find is {100 * row.smallest_detectable / base:.2f}\u202f%" in verdict.sentence


def test_the_verdict_when_there_is_nothing_to_compare(run: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(run, part, ignore=shutil.ignore_patterns("metrics.jsonl", "recommendation"))
    even = dict.fromkeys([*SOURCES, EVIL_SOURCE], 1 / 8)
    write_mixture(part / "mixture.json", Mixture(even, method="uniform"))
    assert "is the uniform mixture itself" in against_uniform(gather(part)).sentence
    odd = {**even, "readmes": 0.25, "docstrings": 0.0}
    write_mixture(part / "mixture.json", Mixture(odd, method="influence"))
    assert "not among those that were trained" in against_uniform(gather(part)).sentence, (
        "another mixture of that name"
    )


def test_what_helps_names_only_effects_whose_interval_excludes_zero(run: Path) -> None:
    facts = gather(run)
    assert facts.leave_one_out is not None
    answers = {a.label: a.text for a in what_helps(facts)}
    assert list(answers) == ["code", "mathematics", "knowledge"], "in the recipe's order"
    for effect in facts.leave_one_out.effects:
        helps, hurts = answers[effect.capability].split("; ")[0], answers[effect.capability].split("; ")[1]
        if effect.source in helps:
            assert effect.low is not None and effect.low > 0
        if effect.source in hurts:
            assert effect.high is not None and effect.high < 0
    assert answers["code"].startswith("helped by standard_library")
    assert "hurt by licences_and_tables" in answers["code"]


def test_documents_are_ranked_by_the_joint_benefit_of_the_chosen_reference(run: Path) -> None:
    facts = gather(run)
    assert facts.influence is not None
    scored = joint_benefits(run, facts.influence)
    assert set(scored) == {*SOURCES, EVIL_SOURCE}
    density = {
        w.source: w for r in facts.influence.references if r.name == facts.influence.chosen for w in r.weights
    }
    for source, found in scored.items():
        assert len(found.documents) == 24
        assert (np.diff(found.benefits) <= 0).all()
        # rho is the same benefits weighted by tokens, so it lies between the extremes.
        assert found.benefits[-1] < density[source].rho < found.benefits[0]


def test_an_excerpt_is_short_and_keeps_its_lines() -> None:
    assert excerpt("a\r\nb\n\n\n\nc") == "a\nb\n\nc"
    long = excerpt("x" * 5000)
    assert len(long) == EXCERPT_CHARACTERS + 2 and long.endswith(" …")
    assert excerpt("\u2066\x1b[31mred") == "\ufffd\ufffd[31mred"


def test_strips_put_zero_in_the_middle_and_better_on_the_left() -> None:
    row = Difference("m", "uniform", "mean", -0.5, None, -1.0, 0.25, None, (-1.0, 0.0), None, "not separable")
    strip = difference_strip(row, 1.0)
    assert (strip.zero, strip.mean, strip.low, strip.high, strip.dots) == (50.0, 27.0, 4.0, 61.5, (4.0, 50.0))
    assert difference_strip(row, 0.0).mean == 50.0


def test_heat_is_centred_at_zero() -> None:
    assert [heat(v, 2.0) for v in (2.0, 0.01, 0.0, -0.01, -2.0)] == ["p5", "p1", "", "n1", "n5"]
    assert heat(float("nan"), 1.0) == "" and heat(1.0, 0.0) == ""


def test_colours_follow_sources_not_positions() -> None:
    names = tuple(f"s{i}" for i in range(25))
    palette = Palette.of(names)
    assert palette.sort({"s3", "s1", "new"}) == ["s1", "s3", "new"]
    assert (
        palette.of_source("s3") == 3 and palette.of_source("s20") == 2 and palette.of_source("new") == 25 % 18
    )


def test_thinned_curves_keep_their_means_and_their_end() -> None:
    x = np.arange(1.0, 1001.0)
    shown, y = charts.thinned(x, 2 * x, most=50)
    assert len(shown) == 50 and shown[-1] == 1000 and y[-1] == 2000
    assert np.allclose(y, 2 * shown) and (np.diff(shown) > 0).all()
    same, _ = charts.thinned(x[:50], x[:50], most=50)
    assert len(same) == 50


def test_drawings_follow_the_page_and_share_no_ids() -> None:
    first = charts.lines([charts.Line([1, 2], [0.1, -0.1], 1)], "one", x_label="step", zero=True)
    second = charts.lines([charts.Line([1, 2], [0.1, -0.1], 1)], "two", x_label="step", zero=True)
    assert "var(--k1)" in first and "#0" not in re.sub(r'(href="|url\()#', "", first), (
        "a stand-in colour is left"
    )
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    bars = charts.histogram(np.array([-9.0, -1.0, 1.0, 1.0]), "bars", limits=(-2.0, 2.0), x_label="benefit")
    assert "var(--positive)" in bars and "var(--negative)" in bars


def test_the_critical_rank_correlation_falls_with_more_sources() -> None:
    values = [critical_rank_correlation(n) for n in range(4, 40)]
    assert values == sorted(values, reverse=True)
    assert critical_rank_correlation(30) == pytest.approx(0.361, abs=0.002)


def test_the_terminal_summary_fits_80_columns_and_reads_no_markup(run: Path, tmp_path: Path) -> None:
    part = tmp_path / "a-run"
    shutil.copytree(run, part, ignore=shutil.ignore_patterns("metrics.jsonl"))
    mixture = read_json(part / "mixture.json")
    for key in ("weights", "intervals", "epochs", "caps"):
        mixture[key]["[bold]x[/bold]" * 3] = mixture[key].pop("readmes")
    (part / "mixture.json").write_text(json.dumps(mixture), encoding="utf-8")
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"), force_terminal=False)
    print_summary(part, console)
    text = console.export_text()
    *lines, last = text.rstrip().splitlines()
    assert max(map(len, lines)) <= 80
    assert "[bold]x[/bold]" in text.replace("\n", "") and EVIL_SOURCE in text
    assert "Against uniform: " in text and "Cost: 12 min 14 s" in text
    assert last == f"Report: {part / 'report.html'}", "the path is one line"


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no run folder"):
        write_report(tmp_path / "nothing")


@pytest.mark.parametrize("module", ["numbers", "elements", "documents", "agreement", "curated", "curves"])
def test_the_examples_in_docstrings_hold(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"mixing.report.{module}"))
    assert found.attempted and not found.failed
