"""The whole pipeline at toy size, as a user runs it: finished, repeated, killed, continued, verified."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from curation.atomic import hash_file, read_json
from recipes.load import load_recipe
from tests.recipes.miniature import miniature_recipe

ROOT = Path(__file__).parent.parent.parent
RESULTS = (
    "mixture.json",
    "mixtures/influence/mixture.json",
    "mixtures/leave_one_out/mixture.json",
    "leave_one_out/leave_one_out.json",
    "doremi/doremi.json",
    "influence/summary.json",
    "front/pareto.json",
    "token_benefits/tokens.json",
    "comparison/comparison.json",
    "model/model.safetensors",
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from recipes.cli import main; main()", *arguments]


def mixwright(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the miniature recipe."""
    folder = tmp_path_factory.mktemp("miniature")
    result = mixwright("run", str(miniature_recipe(folder)), "--out", str(folder / "run"))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder / "run"


def hashes(run: Path) -> dict[str, str]:
    return {name: hash_file(run / name) for name in RESULTS}


def test_every_contract_file_is_there(finished: Path) -> None:
    for name in (*RESULTS, "report.html", "proxy_runs/ratios.csv", "proxy_runs/metrics.csv", "settings.json"):
        assert (finished / name).stat().st_size > 0, name
    assert list(finished.rglob("*.partial")) == []


def test_a_second_run_does_nothing_and_says_so(finished: Path) -> None:
    before = hashes(finished)
    result = mixwright("run", str(finished / "recipe.yaml"), "--out", str(finished))
    assert result.returncode == 0, result.stderr
    assert "Nothing to do" in result.stdout
    assert hashes(finished) == before


def test_no_probe_or_test_document_is_ever_trained_on(finished: Path) -> None:
    held_out: dict[str, str] = {}
    for folder in ("probes", "test"):
        for capability in ("code", "mathematics", "knowledge"):
            table = pq.read_table(finished / folder / f"{capability}.parquet", columns=["id", "text"])
            held_out |= dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    trained: set[str] = set()
    for folder in (finished / "tokens").iterdir():
        if folder.is_dir():
            from training.tokens import TokenSource

            trained |= set(TokenSource.open(folder).ids)
    assert held_out
    assert trained
    assert trained.isdisjoint(held_out)
    documents = [
        row
        for file in (finished / "documents").glob("*/*.parquet")
        for row in pq.read_table(file, columns=["id", "text"]).to_pylist()
    ]
    texts = {row["text"] for row in documents if row["id"] in trained}
    assert texts.isdisjoint(held_out.values())


def test_verify_finds_a_changed_result(finished: Path, tmp_path: Path) -> None:
    assert mixwright("verify", str(finished)).returncode == 0
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "leave_one_out" / "leave_one_out.json").write_text("{}")
    result = mixwright("verify", str(copy), "--json")
    assert result.returncode == 3
    assert "has changed" in json.loads(result.stdout)["problems"][0]


def test_the_model_loads_in_transformers_with_equal_logits(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from training.huggingface import load_huggingface

    theirs = AutoModelForCausalLM.from_pretrained(finished / "model", dtype=torch.float32).eval()
    ours = load_huggingface(finished / "model").eval()
    tokens = AutoTokenizer.from_pretrained(finished / "model")("What is 3 + 4?", return_tensors="pt")[
        "input_ids"
    ]
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_show_gives_every_score_of_a_document(finished: Path) -> None:
    file = next((finished / "representative").glob("standard_library.parquet"))
    identifier = pq.read_table(file, columns=["id"])["id"][0].as_py()
    result = mixwright("show", str(finished), identifier, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["id"] == identifier
    assert found["verdict"] == "kept"
    steps = {step["step"]: step for step in found["steps"]}
    assert steps["educational"]["score"] == "educational_score" and steps["educational"]["passed"]
    assert steps["representative"]["rank"] == 1 and steps["representative"]["kept"] <= 12


def test_killed_at_random_moments_it_ends_with_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    """SIGKILL several times, at moments drawn over the whole run, then one undisturbed continuation."""
    recipe, run = miniature_recipe(tmp_path), tmp_path / "run"
    moments = random.Random(20261120)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    kills = 0
    for _ in range(6):
        process = subprocess.Popen(
            command("--quiet", "run", str(recipe), "--out", str(run)),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=moments.uniform(6, 25))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            time.sleep(0.5)
    assert kills >= 2
    result = mixwright("run", str(recipe), "--out", str(run))
    assert result.returncode == 0, result.stderr[-3000:]
    assert hashes(run) == hashes(finished)


def test_a_plan_tells_what_would_run_and_runs_nothing(tmp_path: Path) -> None:
    recipe = miniature_recipe(tmp_path)
    result = mixwright("plan", str(recipe), "--out", str(tmp_path / "run"), "--json")
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert not (tmp_path / "run").exists()
    stages = {row["stage"]: row for row in plan["stages"]}
    assert stages["comparison"]["state"] == "to do"
    loaded, _ = load_recipe(recipe)
    runs = len(loaded.comparison.mixtures) * len(loaded.comparison.seeds)
    assert stages["comparison"]["tokens"] >= runs * loaded.proxy.tokens
    assert plan["seconds"] > 0


def test_stages_record_what_they_cost(finished: Path) -> None:
    record = read_json(finished / "proxy_runs" / "stage.json")
    assert record["status"] == "done"
    assert record["flops"] > 0
    assert record["wall_seconds"] > 0
    assert set(record["versions"]) >= {"mixwright", "torch"}


def test_a_step_of_the_training_is_listed_with_ranks_and_texts(finished: Path) -> None:
    shown = mixwright("data", "show", str(finished), "--step", "0", "--ranks", "2")
    assert shown.returncode == 0, shown.stderr
    assert "Rank" in shown.stdout and all(len(line) <= 80 for line in shown.stdout.splitlines())
    rows = json.loads(mixwright("data", "show", str(finished), "--step", "0", "--json").stdout)
    assert all(document["text"] for row in rows for document in row["documents"])


def test_given_mixtures_are_compared_with_uniform(finished: Path) -> None:
    recipe = str(finished.parent / "miniature.yaml")
    given = ("--mixtures", f"mine={finished / 'mixtures' / 'influence' / 'mixture.json'}")
    seeds = ("--seed", "7", "--seed", "8")
    result = mixwright("compare", recipe, "--out", str(finished), *given, *seeds, "--json")
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["seeds"] == [7, 8] and set(record["mixtures"]) == {"uniform", "mine"}
    assert {row["mixture"] for row in record["differences"]} == {"mine"}
    assert all(0 <= row["p_bootstrap"] <= 1 for row in record["differences"] if "p_bootstrap" in row)
    made = [path.stat().st_mtime_ns for path in Path(record["folder"]).glob("runs/*/result.json")]
    again = mixwright("compare", recipe, "--out", str(finished), *given, *seeds)
    assert "equivalent" in again.stdout or "not separable" in again.stdout or "better" in again.stdout
    assert [path.stat().st_mtime_ns for path in Path(record["folder"]).glob("runs/*/result.json")] == made
    nameless = mixwright("compare", recipe, "--out", str(finished), "--mixtures", "uniform=x.json")
    assert nameless.returncode == 2 and "no name of its own" in nameless.stderr


def test_doremi_gives_weights_that_fit_makes_a_mixture_of(finished: Path, tmp_path: Path) -> None:
    shown = mixwright("doremi", str(finished.parent / "miniature.yaml"), "--out", str(finished))
    assert shown.returncode == 0 and "DoReMi's weights" in shown.stdout, shown.stderr
    found = read_json(finished / "doremi" / "doremi.json")
    assert sum(found["weights"].values()) == pytest.approx(1.0) and len(found["trajectory"]["step"]) == 8
    out = tmp_path / "mixture.json"
    fitted = mixwright(
        "fit", "--method", "doremi", "--doremi", str(finished / "doremi" / "doremi.json"), "--out", str(out)
    )
    assert fitted.returncode == 0, fitted.stderr
    assert read_json(out)["weights"] == pytest.approx(found["weights"])


def test_compression_between_pretraining_and_post_training(finished: Path) -> None:
    recipe = str(finished.parent / "miniature.yaml")
    without = mixwright("compress", recipe, "--out", str(finished))
    assert without.returncode == 2 and "no `compression` block" in without.stderr
    block = {
        "rounds": 1,
        "tokens": 1024,
        "sequence_tokens": 64,
        "batch_sequences": 4,
        "context": 64,
        "documents_per_source": 4,
        "probe_documents": 4,
        "least_positive": 0,
        "gathered": 0,
    }
    settings = [text for key, value in block.items() for text in ("--set", f"compression.{key}={value}")]
    result = mixwright("compress", recipe, "--out", str(finished), *settings, "--json")
    assert result.returncode == 0, result.stderr[-2000:]
    arms = json.loads(result.stdout)["arms"]
    assert set(arms) == {"compressed", "original"}
    assert (finished / "training" / "compression" / "model" / "model.safetensors").is_file()
    shown = mixwright("compress", recipe, "--out", str(finished), *settings)
    assert "Tokens kept" in shown.stdout and max(map(len, shown.stdout.splitlines())) <= 80
