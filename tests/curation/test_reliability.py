"""Killed at random, starved of disk, worker after worker lost: the result is that of an undisturbed scoring."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import curation
from curation.atomic import hash_folder
from curation.errors import MachineError
from curation.score_tables import score_files
from curation.scoring.execution import Execution
from curation.scoring.runners import open_runner
from curation.workers import Job, Workers
from tests.curation import worker_jobs
from tests.curation.fakes import Length
from tests.curation.test_scoring import corpus

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("MIXWRIGHT_KILLS", "8"))
"""Random kills; MIXWRIGHT_KILLS=100 for the long run."""
PATIENCE = 900
"""Seconds that a crowded machine may take for what needs a few: only what hangs is to fail."""


def start(documents: Path, scores: Path, **settings: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.curation.scoring_script", str(documents), str(scores)]
    return subprocess.Popen(
        [*command, json.dumps(settings)], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def children(pid: int) -> list[int]:
    file = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(child) for child in file.read_text().split()]
    except OSError:
        return []


def tables(scores: Path) -> set[Path]:
    """Tables and parts at their final names; folders may vanish meanwhile."""
    found = {Path(folder) / name for folder, _, names in os.walk(scores) for name in names}
    return {file for file in found if file.suffix == ".parquet" and not file.name.startswith(".")}


def whole(scores: Path) -> None:
    """Nothing at a final name is half written."""
    for file in tables(scores):
        with contextlib.suppress(FileNotFoundError):  # parts go when their table is there
            pq.read_table(file)


def test_random_kills_of_parent_or_worker_change_nothing(tmp_path: Path) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("finding the workers of a process needs /proc")
    corpus(tmp_path / "d", 300)
    expected = tmp_path / "expected"
    assert start(tmp_path / "d", expected).wait(PATIENCE) == 0
    moments, rounds, victims = random.Random(20261121), 0, {"parent": 0, "worker": 0}
    while sum(victims.values()) < KILLS:
        rounds += 1
        scores = tmp_path / f"killed-{rounds}"
        while sum(victims.values()) < KILLS and not (scores / "second.json").exists():
            # The number of tasks changes from one start to the next, too.
            process = start(tmp_path / "d", scores, workers=2, tasks=moments.choice([1, 3, 8]), seconds=0.1)
            try:
                _kill_at_random(process, moments, victims, scores)
            finally:
                process.kill()
                process.communicate()
        assert start(tmp_path / "d", scores).wait(PATIENCE) == 0
        assert hash_folder(scores) == hash_folder(expected)
        assert sorted(p.name for p in scores.iterdir()) == sorted(p.name for p in expected.iterdir())
    assert KILLS < 50 or min(victims.values()) > 0
    print(f"kills: {victims}, in {rounds} scorings")


def _kill_at_random(
    process: subprocess.Popen[str], moments: random.Random, victims: dict[str, int], scores: Path
) -> None:
    """Kill workers, and at last the parent, while it starts or while it scores; return when it has ended."""
    while sum(victims.values()) < KILLS:
        if moments.random() < 0.75:
            _until_a_part_is_new(process, scores)
        try:
            process.wait(moments.uniform(0.0, 1.5))
            return
        except subprocess.TimeoutExpired:
            whole(scores)
        workers = children(process.pid)
        if workers and moments.random() < 0.7:
            os.kill(moments.choice(workers), signal.SIGKILL)
            victims["worker"] += 1
        else:
            process.kill()
            victims["parent"] += 1
            return


def _until_a_part_is_new(process: subprocess.Popen[str], scores: Path) -> None:
    known = tables(scores)
    deadline = time.monotonic() + 30
    while process.poll() is None and tables(scores) <= known and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_dead_worker_is_noticed_and_its_units_are_done_again(tmp_path: Path) -> None:
    whole_corpus = corpus(tmp_path / "d", 60)
    expected = score_files(whole_corpus, Length(), tmp_path / "here", unit_documents=10)
    with open_runner(Execution(workers=1, tasks=2, retries=1)) as runner:
        marker = tmp_path / "lives"
        marker.write_text("1")
        table = score_files(
            whole_corpus, Dying(lives=str(marker)), tmp_path / "once", unit_documents=10, runner=runner
        )
        assert table.equals(expected)
        marker.write_text("1000")
        started = time.monotonic()
        with pytest.raises(MachineError, match=r"lost 2 times without progress: killed by SIGKILL.*is kept"):
            score_files(
                whole_corpus, Dying(lives=str(marker)), tmp_path / "often", unit_documents=10, runner=runner
            )
        assert time.monotonic() - started < 60  # two starts of a worker; each death itself is noticed at once
        marker.write_text("0")
        table = score_files(
            whole_corpus, Dying(lives=str(marker)), tmp_path / "often", unit_documents=10, runner=runner
        )
        assert table.equals(expected)


class Dying(Length):
    """Kills its process while the file `lives` has a number above 0, which it lowers."""

    def __init__(self, lives: str) -> None:
        super().__init__()
        self.lives = lives

    def score(self, documents):  # type: ignore[no-untyped-def]
        left = int(Path(self.lives).read_text())
        if left > 0:
            Path(self.lives).write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(documents)


def test_workers_stay_from_one_list_of_jobs_to_the_next() -> None:
    jobs = [Job(f"pid {i}", worker_jobs.process_id, i) for i in range(4)]
    with Workers(1) as workers:
        assert len({*workers.run(jobs), *workers.run(jobs)}) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_a_sentence_and_the_run_continues(tmp_path: Path, workers: int) -> None:
    corpus(tmp_path / "d", 300)
    process = start(tmp_path / "d", tmp_path / "s", file_size=1500, workers=workers)
    assert process.wait(PATIENCE) == MachineError.exit_code
    assert process.stderr is not None
    message = process.stderr.read()
    assert "MachineError" in message and "larger than the system allows" in message
    whole(tmp_path / "s")
    assert not list(tmp_path.glob("s/**/*.partial")) and not list(tmp_path.glob("s/*.parquet"))
    assert start(tmp_path / "d", tmp_path / "s").wait(PATIENCE) == 0
    assert start(tmp_path / "d", tmp_path / "expected").wait(PATIENCE) == 0
    assert hash_folder(tmp_path / "s") == hash_folder(tmp_path / "expected")


def test_no_model_may_bring_its_own_code() -> None:
    """`trust_remote_code` is never on by itself, and pickled weights are loaded only when a setting says so."""
    for file in Path(curation.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                assert not (keyword.arg == "trust_remote_code" and value is True), file
                assert not (keyword.arg == "use_safetensors" and value is False), file
                assert not (keyword.arg == "weights_only" and value is False), file
