"""Proxy runs: each once, the same numbers for any number of workers, killed ones continue, tables joined by
id."""

from __future__ import annotations

import csv
import json
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from curation.errors import RecipeError
from mixing import run_making
from mixing.fit import read_proxy_table
from mixing.runs import ProxyRun, evaluation_steps, read_evaluation, read_result, run_proxies
from probes.capability import held_out_ids, read_probes
from probes.intervals import bits_per_byte
from tests.mixing.worlds import make_settings
from training.order import DataOrder, MixtureSchedule, Phase
from training.tokens import TokenSource

UNIFORM = {"code": 0.25, "wiki": 0.5, "noise": 0.25}
RUNS = [
    ProxyRun("b-code", {"code": 1.0, "wiki": 0.0, "noise": 0.0}, seed=1),
    ProxyRun("a-mix", UNIFORM, seed=1),
    ProxyRun("c-short", UNIFORM, seed=1, budget_share=0.5),
]


def _contents(folder: Path) -> dict[str, bytes]:
    kept = ("parquet", "csv", "safetensors")
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.suffix[1:] in kept
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    settings = make_settings(folder)
    results = run_proxies(RUNS, settings, folder / "runs", workers=0)
    return folder, settings, results


def test_what_a_run_leaves(study) -> None:
    folder, settings, results = study
    assert [r.run.run_id for r in results] == ["b-code", "a-mix", "c-short"]
    assert [r.steps for r in results] == [6, 6, 3]
    assert evaluation_steps(folder / "runs", "c-short") == (2, 3)
    tables = read_evaluation(folder / "runs", "a-mix", 6)
    probes = read_probes(folder / "probes")
    assert {p: sorted(t["id"].to_pylist()) for p, t in tables.items()} == {
        p: sorted(d.id for d in documents) for p, documents in probes.items()
    }
    last = {row["probe"]: row["bits_per_byte"] for row in results[1].metrics if row["step"] == 6}
    assert last == {p: bits_per_byte(t) for p, t in tables.items()}
    assert results[1].flops == 6 * 4 * 32 * settings.model.flops_per_token(32)
    assert not list((folder / "runs").rglob("optimizer.safetensors"))
    # A run on code alone is better at code than one that mostly reads other things.
    code = {
        r.run.run_id: [m["bits_per_byte"] for m in r.metrics if m["probe"] == "code"][-1] for r in results
    }
    assert code["b-code"] < code["a-mix"]


def test_tables_are_joined_by_run_id(study) -> None:
    folder, _, results = study
    rows = list(csv.DictReader((folder / "runs" / "ratios.csv").open()))
    assert [row["run_id"] for row in rows] == ["a-mix", "b-code", "c-short"]
    assert list(rows[0]) == ["run_id", "seed", "budget_tokens", "code", "noise", "wiki"]
    assert [int(row["budget_tokens"]) for row in rows] == [768, 768, 384]
    table = read_proxy_table(folder / "runs" / "ratios.csv", folder / "runs" / "metrics.csv")
    assert table.metrics == ("code", "knowledge") and table.sources == ("code", "noise", "wiki")
    assert table.weights[1].tolist() == [1.0, 0.0, 0.0]
    expected = [m["bits_per_byte"] for m in results[0].metrics if m["step"] == 6]
    assert table.losses[1].tolist() == expected


def test_no_probe_document_is_trained_on(study) -> None:
    folder, settings, _ = study
    held_out = held_out_ids(read_probes(folder / "probes"))
    for source in settings.tokens.values():
        assert not held_out & set(TokenSource.open(source).ids)


def test_finished_runs_are_not_repeated_and_workers_do_not_change_numbers(study, tmp_path) -> None:
    folder, settings, _ = study
    before = _contents(folder / "runs")
    stamps = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*.parquet")}
    run_proxies(RUNS, settings, folder / "runs", workers=2)
    assert {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*.parquet")} == stamps
    run_proxies(RUNS[::-1], settings, tmp_path / "runs", workers=2)
    assert _contents(tmp_path / "runs") == before


def test_runs_take_turns_on_the_devices_and_need_not_stay_there(study, tmp_path, monkeypatch) -> None:
    _, settings, _ = study
    real, used = run_making.train, []

    def noted(model, order, train_settings, *given, **named):
        used.append(train_settings.device)
        return real(model, order, replace(train_settings, device="cpu"), *given, **named)

    monkeypatch.setattr(run_making, "train", noted)
    few = [replace(RUNS[2], run_id=name) for name in ("x", "y", "z")]
    run_proxies(few, settings, tmp_path / "runs", workers=0, devices=("cuda:0", "cuda:1"))
    assert used == ["cuda:0", "cuda:1", "cuda:0"]
    run_proxies(few, settings, tmp_path / "runs", workers=0, devices=("cpu",))
    assert len(used) == 3, "a finished run is not repeated because it would be made elsewhere"


def test_a_changed_run_is_made_anew_and_only_that_one(study, tmp_path) -> None:
    _, settings, _ = study
    runs = [replace(RUNS[0], budget_share=0.5), replace(RUNS[1], budget_share=0.5)]
    run_proxies(runs, settings, tmp_path, workers=0)
    first = json.loads((tmp_path / "a-mix" / "result.json").read_text())
    other = json.loads((tmp_path / "b-code" / "result.json").read_text())
    run_proxies([runs[0], replace(runs[1], seed=2)], settings, tmp_path, workers=0)
    second = json.loads((tmp_path / "a-mix" / "result.json").read_text())
    assert second["run"]["seed"] == 2 and second["metrics"] != first["metrics"]
    assert json.loads((tmp_path / "b-code" / "result.json").read_text()) == other


def test_a_killed_study_ends_with_the_same_bytes(study, tmp_path) -> None:
    folder, settings, _ = study
    script = (
        "import pickle, sys\nfrom mixing.runs import run_proxies\n"
        "runs, settings, out = pickle.loads(bytes.fromhex(sys.argv[1]))\nrun_proxies(runs, "
        "settings, out, workers=1)\n"
    )
    slow = replace(settings, train=replace(settings.train, resume_every=1))
    parcel = pickle.dumps((RUNS, slow, tmp_path / "killed")).hex()
    process = subprocess.Popen([sys.executable, "-c", script, parcel], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while (
        not list((tmp_path / "killed").glob("*/evaluations/step-3.parquet")) and time.monotonic() < deadline
    ):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "c-short" / "result.json").exists()
    run_proxies(RUNS, slow, tmp_path / "killed", workers=0)
    assert _contents(tmp_path / "killed") == _contents(folder / "runs")


def test_runs_of_one_seed_share_weights_and_the_order_of_documents(study) -> None:
    _, settings, _ = study
    sources = {name: TokenSource.open(path) for name, path in settings.tokens.items()}

    def documents(weights: dict[str, float], source: str) -> list:
        order = DataOrder(MixtureSchedule((Phase("p", 24, weights),), seed=1, block=8), sources, 32)
        return [order.window(i).pieces for i in range(24) if order.window(i).source == source]

    full, without = documents(UNIFORM, "code"), documents({"code": 0.5, "wiki": 0.5, "noise": 0.0}, "code")
    assert without[: len(full)] == full


@pytest.mark.parametrize(
    ("run", "match"),
    [
        (ProxyRun("a/b", UNIFORM, 0), "cannot be the name"),
        (ProxyRun("a", {"code": 0.5, "wiki": 0.4}, 0), r"sum to 0\.9"),
        (ProxyRun("a", {"code": 0.5, "books": 0.5}, 0), "'books', which has no tokens"),
        (ProxyRun("a", UNIFORM, 0, budget_share=0.1), "too few to be evaluated"),
        (ProxyRun("a", UNIFORM, 0, budget_share=2.0), "cannot train 2 of the budget"),
    ],
)
def test_impossible_runs_are_refused_before_any_training(study, tmp_path, run: ProxyRun, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        run_proxies([run], study[1], tmp_path / "x", workers=0)
    assert not (tmp_path / "x").exists()


def test_two_runs_of_one_name_are_refused(study, tmp_path) -> None:
    with pytest.raises(RecipeError, match="Two runs are called 'a-mix'"):
        run_proxies([RUNS[1], RUNS[1]], study[1], tmp_path, workers=0)
    assert read_result(study[0] / "runs", "a-mix").run == RUNS[1]
