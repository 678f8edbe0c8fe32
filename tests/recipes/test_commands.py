"""Commands that work alone, as a user types them."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import recipes.cli.machine
from recipes.cli.command_list import SECTIONS
from recipes.load import load_recipe
from tests.recipes.test_end_to_end import mixwright

TEXTS = [
    f"Paragraph {i} says that {i} times {i} is {i * i}, and nothing else of note. " * 3 for i in range(12)
]


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def test_help_lists_every_command_in_a_section_and_cuts_no_sentence() -> None:
    said = mixwright("--help").stdout
    assert "Other:" not in said and "..." not in said.split("COMMAND [ARGS]...")[1]
    assert all(len(line) <= 80 for line in said.splitlines())
    for title, names in SECTIONS.items():
        section = said.split(f"{title}:")[1]
        assert all(f"\n  {name} " in section for name in names), title


def test_init_writes_a_recipe_that_loads(tmp_path: Path) -> None:
    corpora = [write_lines(tmp_path / f"{name}.jsonl", TEXTS) for name in ("wiki", "python_code")]
    out = tmp_path / "recipe.yaml"
    result = mixwright("init", *map(str, corpora), "--out", str(out))
    assert result.returncode == 0, result.stderr
    recipe, _ = load_recipe(out)
    assert recipe.capabilities_of == {"wiki": ("knowledge",), "python_code": ("code",)}
    assert yaml.safe_load(out.read_text())["sources"][0]["path"] == "wiki.jsonl"
    again = mixwright("init", *map(str, corpora), "--out", str(out))
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_dedup_and_decontaminate(tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "a.jsonl", [*TEXTS, TEXTS[0] + " "])
    result = mixwright(
        "dedup", str(corpus), "--threshold", "0.999", "--out", str(tmp_path / "kept.parquet"), "--json"
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["read"] == 13
    assert report["kept"] + report["dropped"] == 13
    assert pq.read_table(report["table"]).column_names == ["dropped", "kept_instead", "cosine"]
    benchmark = write_lines(tmp_path / "benchmark.jsonl", TEXTS[3:4])
    clean = tmp_path / "clean.jsonl"
    result = mixwright(
        "decontaminate", str(corpus), "--against", str(benchmark), "--out", str(clean), "--json"
    )
    assert result.returncode == 0, result.stderr
    assert TEXTS[3] not in [json.loads(line)["text"] for line in clean.read_text().splitlines()]


def test_fit(tmp_path: Path) -> None:
    rows = [(0.1 * i, 1 - 0.1 * i) for i in range(1, 10)]
    (tmp_path / "r.csv").write_text(
        "run_id,wiki,code\n" + "".join(f"r{i},{a:.1f},{b:.1f}\n" for i, (a, b) in enumerate(rows))
    )
    (tmp_path / "m.csv").write_text(
        "run_id,loss\n" + "".join(f"r{i},{(a - 0.7) ** 2 + 2}\n" for i, (a, _) in enumerate(rows))
    )
    files = ["--ratios", str(tmp_path / "r.csv"), "--metrics", str(tmp_path / "m.csv")]
    result = mixwright("fit", *files, "--out", str(tmp_path / "mixture.json"), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["weights"]["wiki"] == pytest.approx(0.7, abs=0.05)
    tokens = ["--available-tokens", "wiki=300", "--available-tokens", "code=5e3", "--budget-tokens", "1e3"]
    result = mixwright(
        "fit",
        *files,
        *tokens,
        "--max-epochs",
        "2",
        "--minimum",
        "code=0.45",
        "--out",
        str(tmp_path / "m.json"),
    )
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    for shown in ("90 % interval", "Epochs", "Against proportional", "P(best of these)", "Predicted loss"):
        assert shown in result.stdout
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["weights"]["wiki"] == pytest.approx(0.55) and found["epochs"]["wiki"] == pytest.approx(
        1.833, abs=1e-3
    )
    assert found["evidence"]["predicted"]["loss"]["value"] == pytest.approx(2.02, abs=0.02)
    result = mixwright("fit", *files, "--method", "regmx", "--out", str(tmp_path / "mixture.json"))
    assert result.returncode == 2
    assert "There is no method" in result.stderr


def test_doctor_and_usage_errors() -> None:
    result = mixwright("doctor", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["torch"].startswith("2.")
    assert mixwright("frobnicate").returncode == 2
    wrong = mixwright("run", "quickstart", "--set", "proxy.tokns=3")
    assert wrong.returncode == 2
    assert "did you mean `tokens`" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_an_interrupted_command_says_that_its_work_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes.cli.machine, "_facts", interrupted)
    monkeypatch.setattr("sys.argv", ["mixwright", "doctor"])
    with pytest.raises(SystemExit) as end:
        recipes.cli.main()
    assert end.value.code == 130
    assert "the same command continues" in capsys.readouterr().err
