"""What decided a document's fate, as `mixwright show` and the report tell it; texts that mean harm stay text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from rich.cells import cell_len
from typer.testing import CliRunner

from curation.budget import Cost, Cut, plan_budget
from curation.cascade import CascadeSettings, Scorers, select_representative
from curation.classifiers.language import LanguageRule
from curation.documents import Document, write_documents
from curation.educational import parse_rule
from curation.errors import DataError
from curation.fates import cut_tables, verdicts_of
from curation.near_duplicates import NearDuplicateSettings, find_near_duplicates
from mixing.report import write_report
from recipes.budget import pilot_cuts
from recipes.cli import app, curating, running  # noqa: F401  (they add their commands)
from recipes.cli.funnel import print_budget, print_funnel
from recipes.cli.output import expect_json, print_json, print_table, say
from recipes.funnel import funnel_of
from recipes.show import find_document

HOSTILE = "\x1b[2J\x1b]0;owned\x07<script>alert(1)</script> \u202egnp.exe \u200f \x9b31m [bold]x[/bold] end"
CAPABILITIES = {"alpha": ["code"], "beta": ["knowledge", "code"]}


@dataclass(frozen=True)
class ByNumber:
    """Scores a document by the number that its text begins with."""

    name: str
    columns: tuple[str, ...]
    factor: int

    def fingerprint(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        values = [int(d.text.split()[0]) * self.factor % 101 / 20 for d in documents]
        return dict.fromkeys(self.columns, np.array(values, dtype=np.float32))


def embed(texts: Sequence[str]) -> np.ndarray:
    """Documents of one number are paraphrases of each other, whatever their source."""
    angles = np.array([float(text.split()[0]) for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def judge(purpose: str, factor: int) -> ByNumber:
    return ByNumber(f"ask_llm-{purpose}-v1", ("margin", "p1_calibrated"), factor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that ends with the representative sets."""
    run = tmp_path_factory.mktemp("show") / "run"
    documents = {}
    for source in CAPABILITIES:
        found = [Document(f"{source}/{n:03d} x", f"{n} {source} {HOSTILE} {n}", source) for n in range(100)]
        if source == "beta":
            found.append(Document("copy of alpha", f"  7 ALPHA {HOSTILE} 7", "beta"))
        write_documents(run / "documents" / source / "part-00000.parquet", found)
        documents[source] = found
    dropped = find_near_duplicates(
        {source: run / "documents" / source for source in documents},
        run / "near_duplicates",
        NearDuplicateSettings(minhash=None),
    )
    judges = {"reasoning": judge("reasoning", 3), "code": judge("code", 5), "combined": judge("combined", 5)}
    scorers = Scorers(ByNumber("educational", ("educational_score",), 1), judges, embed)  # type: ignore[arg-type]
    settings = CascadeSettings(
        educational=parse_rule("raw > 2"),
        reasoning_share=0.5,
        domain_share=0.5,
        threshold=0.9999,
        documents=8,
    )
    select_representative(
        documents,
        CAPABILITIES,
        scorers,
        settings,
        scores=run / "scores",
        out=run / "representative",
        already_dropped=dropped,
    )
    recipe = {
        "sources": [{"name": name, "capabilities": found} for name, found in CAPABILITIES.items()],
        "curation": {
            "near_duplicates": {"similarity": 0.7},
            "educational": {"rule": "raw > 2"},
            "judge": {"reasoning_share": 0.5, "domain_share": 0.5},
            "deduplication": {"threshold": 0.9999},
            "representative_documents": 8,
        },
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return run


def test_a_kept_document_shows_every_step(folder: Path) -> None:
    name = verdicts_of(folder).filter((pl.col("verdict") == "kept") & (pl.col("source") == "alpha"))["id"][0]
    found = find_document(folder, name)
    assert [step["step"] for step in found["steps"]] == [
        "exact", "minhash", "educational", "reasoning", "domain", "deduplicated", "representative",
    ]  # fmt: skip
    assert all(step["passed"] for step in found["steps"]) and found["verdict"] == "kept"
    number = int(found["text"].split()[0])
    steps = {step["step"]: step for step in found["steps"]}
    assert steps["educational"]["value"] == pytest.approx(number / 20) and steps["educational"]["of"] == 100
    assert steps["educational"]["rank"] == 100 - number and steps["educational"]["kept"] == 59
    assert steps["educational"]["last_kept"] == pytest.approx(41 / 20)
    assert steps["educational"]["first_dropped"] == pytest.approx(2)
    assert steps["educational"]["rule"] == "raw > 2"
    assert steps["reasoning"]["value"] == pytest.approx(number * 3 % 101 / 20)
    assert steps["reasoning"]["of"] == 59 and steps["reasoning"]["kept"] == 30
    # By hand: how many of 41..99 have a higher margin.
    better = sum(n * 3 % 101 > number * 3 % 101 for n in range(41, 100))
    assert steps["reasoning"]["rank"] == better + 1


def test_documents_that_fell_say_where(folder: Path) -> None:
    low = find_document(folder, "alpha/003 x")
    assert low["verdict"] == "educational" and low["steps"][-1]["step"] == "educational"
    assert not low["steps"][-1]["passed"]
    early = find_document(folder, "copy of alpha")
    assert early["verdict"] == "exact"
    (kept,) = early["duplicate_of"]
    assert (kept["kind"], kept["kept_instead"], kept["similarity"]) == ("exact", "alpha/007 x", 1.0)
    assert kept["text"].startswith("7 alpha")
    assert {"kind": "exact", "dropped": "copy of alpha", "similarity": 1.0} in find_document(
        folder, "alpha/007 x"
    )["duplicates"]
    fallen = verdicts_of(folder).filter(pl.col("verdict") == "deduplicated")["id"]
    assert len(fallen)
    late = find_document(folder, fallen[0])
    assert late["duplicate_of"][0]["kind"] == "semantic" and late["duplicate_of"][0]["similarity"] > 0.9999
    assert late["steps"][-1]["kept_instead"] == late["duplicate_of"][0]["kept_instead"]
    beyond = verdicts_of(folder).filter(pl.col("verdict") == "representative")["id"]
    assert find_document(folder, beyond[0])["steps"][-1]["rank"] > 8


def test_ranks_and_cuts_agree_with_the_verdicts(folder: Path) -> None:
    verdicts = verdicts_of(folder)
    for source, capabilities in CAPABILITIES.items():
        cuts = cut_tables(folder, source, capabilities, verdicts)
        assert [cut.name for cut in cuts] == ["educational", "reasoning", "domain", "representative"]
        for cut in cuts:
            assert cut.table["passed"].to_list() == [True] * cut.kept + [False] * (
                cut.table.height - cut.kept
            )
            above, below = cut.around(2)
            assert above["value"].to_list() == sorted(above["value"].to_list())
            assert min(above["value"], default=9) >= max(below["value"], default=0)


def test_the_terminal_is_never_commanded(folder: Path) -> None:
    for name in ("alpha/050 x", "copy of alpha"):
        plain = CliRunner().invoke(app, ["show", str(folder), name])
        assert plain.exit_code == 0, plain.output
        as_json = CliRunner().invoke(app, ["show", str(folder), name, "--json"])
        for output in (plain.output, as_json.output):
            assert not set(output) & set("\x1b\x07\x9b\u202e\u200f")
        assert "<script>" in plain.output and "[bold]x[/bold]" in plain.output
        assert json.loads(as_json.output)["text"].endswith(HOSTILE + (" 50" if "050" in name else " 7"))
    assert "of alpha/007 x" in plain.output


def test_no_or_many_matches_are_sentences(folder: Path, tmp_path: Path) -> None:
    for start, message in (
        ("alpha/", "100 documents have"),
        ("zzz", "No document has"),
        ("", "documents have"),
    ):
        with pytest.raises(DataError, match=message):
            find_document(folder, start)
    with pytest.raises(DataError, match="no documents yet"):
        find_document(tmp_path, "a")


def test_the_report_shows_texts_around_each_cut_escaped(folder: Path) -> None:
    page = write_report(folder).read_text(encoding="utf-8")
    assert "alpha: where it was cut" in page and "Just above" in page and "Ask-LLM, domain" in page
    assert "<script>" not in page and "&lt;script&gt;alert(1)" in page
    assert not set(page) & set("\x1b\x07\x9b\u202e\u200f")
    assert "1 exact duplicate left out" in page and "Near copies out" in page


def test_the_funnel_fits_eighty_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = funnel_of(folder)
    by = {(row["source"], row["stage"]): row for row in rows}
    assert by["beta", "read"]["documents"] == 101 and by["beta", "exact"]["documents"] == 100
    assert by["beta", "exact"]["share"] == pytest.approx(100 / 101)
    assert by["beta", "reasoning"]["of_read"] == pytest.approx(30 / 101)
    print_funnel([row | {"tokens": 123_456_789_012} for row in rows])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and any("alpha" in line for line in lines)
    with pytest.raises(DataError, match="no funnel yet"):
        funnel_of(folder / "documents")


def test_json_stands_alone_and_what_is_said_beside_it_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.cli.output.progress_mode", lambda: "plain")
    expect_json(True)
    say("Nothing to do")
    print_json({"a": 1})
    told = capsys.readouterr()
    assert json.loads(told.out) == {"a": 1} and told.err == "Nothing to do\n"
    expect_json(False)
    say("Nothing to do")
    assert capsys.readouterr() == ("Nothing to do\n", "")


def test_one_column_is_cut_so_that_names_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"source": "licences_and_tables", "at": "1024:2048", "text": "\u4e16" * 60}
    print_table("Rows", [row], {"source": "Source", "at": "Tokens", "text": "Text"}, cut="text")
    told = capsys.readouterr().out
    assert "licences_and_tables" in told and "\u4e16\u2026" in told.replace(" ", "")
    assert max(map(cell_len, told.splitlines())) <= 80
    assert len(told.splitlines()) == 5 + 1, "title, blank, head, rule, one row, blank"


def test_the_budget_table_fits_and_says_no(capsys: pytest.CaptureFixture[str]) -> None:
    settings = CascadeSettings(
        parse_rule("raw > 4"), {"proofs": parse_rule("top 0.5"), "all": parse_rule("all")}
    )
    unique = {"documents": 5_000, "kept": 4_900}
    counts = {"read": 2_000, "educational": 100, "reasoning": 10, "domain": 1, "deduplicated": 1}
    cuts = {
        name: pilot_cuts(name, unique, counts, settings)
        for name in ("a_source_with_a_long_name", "proofs", "all")
    }
    assert [cut.share for cut in cuts["proofs"]] == [None, 0.5, 0.1, 0.1, None]
    assert [cut.share for cut in cuts["all"]] == [None, 1.0, 0.1, 0.1, None]
    assert cuts["a_source_with_a_long_name"][1] == Cut("educational", 2_000, 100)
    costs = [Cost("judge", "reasoning", 0.5, 1e12)]
    plans = [plan_budget(name, found, available=30_000, costs=costs) for name, found in cuts.items()]
    print_budget([*plans, plan_budget("empty", [Cut("educational", 10, 0)], available=10)])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "cannot give 10,000" in " ".join(out.split()) and "GPU" in out and "None of the 10" in out


def test_the_budget_counts_the_cut_by_language() -> None:
    spoken = CascadeSettings(parse_rule("top 0.5"), language_of={"web": LanguageRule(("en",), 0.65)})
    counts = {"read": 2_000, "language": 1_000, "educational": 500, "reasoning": 50, "domain": 5}
    unique = {"documents": 2_000, "kept": 2_000}
    cuts = pilot_cuts("web", unique, counts, spoken)[:3]
    language = Cut("language", 2_000, 1_000)
    assert cuts[1:] == [language, Cut("educational", 1_000, 500, share=0.5)]
    assert plan_budget("web", cuts, 100).needed == 400, "100 / (.5 x .5)"
    assert [cut.name for cut in pilot_cuts("other", unique, counts, spoken)][1] == "educational"


def test_operations_that_are_not_known_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    costs = [Cost("judge", "educational", 0.5, 1e12), Cost("embedder", "educational", 0.1)]
    for given in (costs, costs[1:]):
        print_budget([plan_budget("web", [Cut("educational", 100, 50)], 100, costs=given)])
    both, none = " ".join(capsys.readouterr().out.split()).split("To end with")[1:]
    assert "about 2e+14 FLOPs, without those of the embedder, whose size is not known; 2 seconds" in both
    assert "FLOPs are not known: nor is the size of the embedder" in none


def test_a_source_without_survivors_is_shown_too(folder: Path) -> None:
    rows = [
        {"source": "s", "stage": stage, "documents": n}
        for stage, n in (("read", 5), ("educational", 0), ("reasoning", 0))
    ]
    other = folder.parent / "none"
    (other / "representative").mkdir(parents=True)
    (other / "representative" / "funnel.json").write_text(json.dumps(rows))
    assert [row["share"] for row in funnel_of(other)] == [None, 0.0, None]
