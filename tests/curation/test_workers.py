"""Workers: same results for any number of them, killed ones noticed, none outlives its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curation.errors import DataError, MachineError, RecipeError
from curation.workers import Job, JobFailed, run_jobs
from tests.curation import worker_jobs


def test_results_are_in_order_whatever_the_number_of_workers() -> None:
    jobs = [Job(f"square {i}", worker_jobs.square, i) for i in range(5)]
    expected = [(i * i, 1) for i in range(5)]
    assert run_jobs(jobs, workers=2) == expected
    assert run_jobs(jobs, workers=0, total=5) == expected


def test_a_killed_worker_is_a_sentence_and_finished_results_are_kept(tmp_path: Path) -> None:
    marker = tmp_path / "finished"
    kept = []

    def on_result(job: Job, result: object) -> None:
        kept.append((job.name, result))
        marker.touch()

    jobs = [Job("run-b", worker_jobs.die, str(marker)), Job("run-a", worker_jobs.square, 3)]
    started = time.monotonic()
    with pytest.raises(MachineError, match=r"'run-b' was lost: killed by SIGKILL.*memory ran out.*is kept"):
        run_jobs(jobs, workers=2, on_result=on_result)
    assert kept == [("run-a", (9, 1))]
    assert time.monotonic() - started < 60


def test_errors_come_back_as_what_they_were() -> None:
    with pytest.raises(DataError, match=r"The corpus is empty \(wiki\)\. Give it text\."):
        run_jobs([Job("a", worker_jobs.sentence, "wiki")], workers=1)
    with pytest.raises(JobFailed, match="ZeroDivisionError"):
        run_jobs([Job("a", worker_jobs.bug, 0)], workers=1)
    with pytest.raises(MachineError, match=r"memory ran out in a worker.*fewer workers"):
        run_jobs([Job("a", worker_jobs.exhaust, 0)], workers=1)
    with pytest.raises(RecipeError, match="-1 workers"):
        run_jobs([Job("a", worker_jobs.bug, 0)], workers=-1)


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    # A script without a __main__ guard, which `multiprocessing` would start again in every worker.
    script = (
        "from curation.workers import Job, run_jobs\n"
        "from tests.curation import worker_jobs\n"
        f"run_jobs([Job('a', worker_jobs.sleep_with_pid, {str(pid_file)!r})], workers=1)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    try:
        _until(lambda: pid_file.exists() and pid_file.read_text() != "", 60)
    finally:
        parent.kill()
        parent.wait()
    worker = int(pid_file.read_text())
    _until(lambda: not _alive(worker), 10)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def _until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
