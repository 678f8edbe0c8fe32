"""Killed and continued, in shares, in memory that does not grow, and what the command prints."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from curation.errors import DataError, RecipeError
from mixing.influence import (
    InfluenceSettings,
    SampleDocument,
    Stopping,
    influence_at_checkpoints,
    influence_of_files,
    read_record,
    write_store,
)
from mixing.influence.loading import learning_rate_at, step_of
from recipes.cli import app, influencing
from tests.mixing.test_influence_checkpoints import Trained, huggingface, texts, trained, write_jsonl

__all__ = ["huggingface", "influencing", "trained"]  # fixtures, and the module that adds the command

ROOT = Path(__file__).parents[2]
CHILD = """
import pickle, sys
from mixing.influence import influence_at_checkpoints
influence_at_checkpoints(*pickle.loads(sys.stdin.buffer.read()))
"""


def test_killed_in_the_middle_of_a_checkpoint_and_continued(trained: Trained, tmp_path: Path) -> None:
    import pickle

    jobs = [trained.job(12, "code", "knowledge")]
    settings = InfluenceSettings(part_documents=2, cosine=True)
    arguments = (jobs, trained.probes, list(trained.samples), tmp_path / "killed", settings)
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, cwd=ROOT)
    assert child.stdin is not None
    child.stdin.write(pickle.dumps(arguments))
    child.stdin.close()
    end = time.monotonic() + 120
    while len(parts := list((tmp_path / "killed").glob(".work/*/parts/[!.]*.npy"))) < 3:
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = {p: p.stat().st_mtime_ns for p in parts}
    assert not list((tmp_path / "killed").glob("*.parquet"))
    seen = []
    from mixing.influence import checkpoints

    real = checkpoints.OpenCheckpoint.score
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoints.OpenCheckpoint, "score", lambda s, u: seen.append(len(u)) or real(s, u))
        patched.setattr(checkpoints, "probe_directions", lambda *a, **k: pytest.fail("made again"))
        files = influence_at_checkpoints(*arguments)
    assert 0 < len(seen) <= 12 - len(kept)
    whole = influence_at_checkpoints(jobs, trained.probes, trained.samples, tmp_path / "whole", settings)
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in whole]
    assert not list((tmp_path / "killed").glob(".work/*/parts"))


def test_shares_of_one_checkpoint_make_the_bytes_of_one_process(trained: Trained, tmp_path: Path) -> None:
    jobs = [trained.job(12, "code")]
    settings = InfluenceSettings(part_documents=4)
    one = influence_at_checkpoints(jobs, trained.probes, trained.samples, tmp_path / "one", settings)
    two = tmp_path / "two"
    assert influence_at_checkpoints(jobs, trained.probes, trained.samples, two, settings, share=(1, 2)) == []
    files = influence_at_checkpoints(jobs, trained.probes, trained.samples, two, settings, share=(0, 2))
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in one]
    with pytest.raises(RecipeError, match="no share 2 of 2"):
        influence_at_checkpoints(jobs, trained.probes, trained.samples, two, settings, share=(2, 2))


def test_tables_say_how_they_were_made(trained: Trained, tmp_path: Path) -> None:
    [file] = influence_at_checkpoints([trained.job(12, "code")], trained.probes, trained.samples, tmp_path)
    record = read_record(file)
    assert {
        "direction",
        "checkpoint",
        "reduction",
        "dtype",
        "engine",
        "pilot",
        "step",
        "settings",
    } <= record.keys()
    assert len(record["direction"]["hash"]) == 64 and record["checkpoint"] == "step-12"
    assert json.loads(file.with_suffix(".json").read_text())["direction"] == record["direction"]


def test_stores_hold_documents_on_the_disk_whatever_their_number(tmp_path: Path) -> None:
    import tracemalloc

    def documents(count: int):
        for i in range(count):
            yield SampleDocument(f"document {i}", f"s{i % 3}", np.full(500, i % 100))

    write_store(tmp_path / "first", documents(10))  # what is imported at the first call is not counted
    peaks = []
    for count in (12_288, 20_480):
        tracemalloc.start()
        store = write_store(tmp_path / str(count), documents(count))
        assert [len(v) for v in store.numbers().values()] == [-(-(count - g) // 3) for g in range(3)]
        assert store[count - 1].id == f"document {count - 1}" and store[7].ids.tolist() == [7] * 500
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        del store
    # 8,192 more documents hold 33 MB (as int64) of tokens; what grows are 8-byte keys in a set and arrays of numbers.
    assert peaks[1] - peaks[0] < 3e6
    with pytest.raises(DataError, match="Two documents have the id 'x'"):
        write_store(tmp_path / "twice", [SampleDocument("x", "s", np.arange(3))] * 2)
    renamed = write_store(tmp_path / "twice", [SampleDocument("x", "s", np.arange(3))] * 2, rename=True)
    assert [d.id for d in renamed] == ["x", "x#2"] and "repeat an id" in renamed.notes[0]


def test_steps_and_learning_rates_come_from_the_checkpoint(trained: Trained, tmp_path: Path) -> None:
    assert (
        step_of(trained.job(6).checkpoint) == 6
        and step_of("a/checkpoint-40") == 40
        and step_of("a/b") is None
    )
    rates = [learning_rate_at(trained.job(step).checkpoint) for step in (6, 12)]
    assert rates[0] is not None and rates[1] is not None and rates[0] > rates[1] > 0
    other = tmp_path / "checkpoint-3"
    other.mkdir()
    (other / "trainer_state.json").write_text(
        json.dumps(
            {"global_step": 3, "log_history": [{"step": 2, "learning_rate": 0.5}, {"step": 3, "loss": 1.0}]}
        )
    )
    assert (step_of(other), learning_rate_at(other)) == (3, 0.5) and learning_rate_at("a/b") is None


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    samples = tmp_path / "samples.jsonl"
    rows = [{"id": i, "text": t, "source": s} for s in ("code", "prose") for i, t in texts(s, 30, 20)]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "samples": samples,
        "code": write_jsonl(tmp_path / "code.jsonl", texts("code", 6, 30), "probe"),
        "knowledge": write_jsonl(tmp_path / "knowledge.jsonl", texts("prose", 6, 31), "probe"),
    }


def test_the_command(
    huggingface: Path,
    files: dict[str, Path],
    tmp_path: Path,
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("recipes.cli.output.progress_mode", lambda: "plain")
    out = tmp_path / "out.parquet"
    command = [
        "influence",
        "--model",
        str(huggingface),
        "--samples",
        str(files["samples"]),
        "--out",
        str(out),
    ]
    command += [
        "--probe",
        f"code={files['code']}",
        "--probe",
        f"knowledge={files['knowledge']}",
        "--device",
        "cpu",
    ]
    runner = CliRunner(env={"COLUMNS": "80", "TERM": "dumb"})
    shown = runner.invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    for words in (
        "Source",
        "Weight",
        "Interval",
        "forward passes for each token",
        "correlation",
        "Every document",
    ):
        assert words in shown.stdout
    before = out.read_bytes()
    again = runner.invoke(app, [*command, "--json"])
    found = json.loads(again.stdout)
    assert out.read_bytes() == before and sum(w["weight"] for w in found["weights"]) == pytest.approx(1)
    assert (
        found["pilot"]["documents"] == 32
        and found["forward_passes_per_token"] > 1
        and found["documents"] == 60
    )
    steps = [f"--checkpoint={trained.job(step).checkpoint}" for step in (6, 12)]
    several = [a for a in command if a not in ("--model", str(huggingface))]
    several += [*steps, "--tokenizer", str(trained.folder / "tokenizer"), "--half-width", "0.2", "--json"]
    sampled = runner.invoke(app, [*several, "--checkpoint-weights", "learning_rate"])
    assert sampled.exit_code == 0, sampled.output
    result = json.loads(sampled.stdout)
    assert result["sampled"]["reached"] and [c["step"] for c in result["checkpoints"]] == [6, 12]
    assert not list(tmp_path.glob(".*.work"))


def test_requests_and_files_that_cannot_be_served(
    huggingface: Path, files: dict[str, Path], tmp_path: Path, trained: Trained
) -> None:
    probes = {"code": files["code"]}
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no documents"):
        influence_of_files({None: huggingface}, [files["samples"]], {"code": tmp_path / "empty.jsonl"})
    with pytest.raises(RecipeError, match="not scored in shares"):
        influence_of_files({None: huggingface}, [files["samples"]], probes, stopping=Stopping(), share=(0, 2))
    with pytest.raises(DataError, match="no such file"):
        influence_of_files({None: huggingface}, [tmp_path / "none.jsonl"], probes)
    mixed = tmp_path / "mixed.jsonl"
    rows = [
        {"text": t, **({"source": "prose"} if i % 2 else {})} for i, (_, t) in enumerate(texts("prose", 8, 3))
    ]
    rows.append({"text": json.loads(files["code"].read_text().splitlines()[0])["text"], "id": "thief"})
    mixed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = influence_of_files({None: huggingface}, [mixed], probes)
    assert found is not None
    assert any("5 of 9 records" in note and "count as 'mixed'" in note for note in found.notes)
    assert any("among them code-30-0 (sample thief)" in note for note in found.notes)
    runner = CliRunner()
    base = ["influence", "--samples", "s.jsonl", "--probe", "a=b", "--out", str(tmp_path / "o.parquet")]
    for more, words in (
        ([], "Neither a model nor a checkpoint"),
        (["--checkpoint", "somewhere"], "step of the checkpoint somewhere is not known"),
        (["--checkpoint", "3=a", "--checkpoint", "3=b"], "Two checkpoints are of step 3"),
        (["--model", "m", "--engine", "magic"], "no engine 'magic'"),
        (["--model", "m", "--share", "1"], "not of the form R/N"),
    ):
        result = runner.invoke(app, [*base, *more])
        assert isinstance(result.exception, RecipeError) and words in str(result.exception), more
