"""Proxy runs on a real local Ray cluster with a worker killed in the middle, and through a stand-in for Slurm."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from curation.errors import DataError
from curation.scoring.execution import Execution
from curation.scoring.runners import open_runner
from mixing.runs import ProxyRun, run_proxies
from tests.curation.test_slurm import cluster  # noqa: F401
from tests.mixing.test_runs import UNIFORM, _contents
from tests.mixing.worlds import make_settings

ROOT = Path(__file__).parents[2]
RUNS = [ProxyRun(f"run-{seed}", UNIFORM, seed=seed) for seed in (1, 2, 3)]


def test_ray_with_a_killed_worker_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    settings = make_settings(tmp_path, steps=240, evaluate=(120, 240), resume_every=20)
    run_proxies(RUNS, settings, tmp_path / "here", workers=2)
    ray.init(
        num_cpus=2,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    killed: list[int] = []

    def kill_one() -> None:
        """Kill the process that holds a run's log open, once it has a checkpoint to continue from."""
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for log in (tmp_path / "ray").glob("*/train/metrics.jsonl"):
                if any(log.parent.glob("*/step-*")) and (owner := _holder(log)) is not None:
                    os.kill(owner, signal.SIGKILL)
                    killed.append(owner)
                    return
            time.sleep(0.005)

    try:
        killer = threading.Thread(target=kill_one)
        killer.start()
        with open_runner(Execution(kind="ray", workers=2, poll_seconds=0.5)) as runner:
            results = run_proxies(RUNS, settings, tmp_path / "ray", runner=runner)
        killer.join()
        assert killed, "no worker was caught in the middle of a run"
        assert [result.run.run_id for result in results] == ["run-1", "run-2", "run-3"]
        assert _contents(tmp_path / "ray") == _contents(tmp_path / "here")
        assert not (tmp_path / "ray" / ".tasks").exists()
    finally:
        ray.shutdown()


def _holder(path: Path) -> int | None:
    """The process that has a file open."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                if any(link.readlink() == path for link in (process / "fd").iterdir()):
                    return int(process.name)
            except OSError:
                continue
    return None


def test_slurm_makes_each_run_in_a_task_and_lost_ones_again(tmp_path: Path, cluster: Path) -> None:  # noqa: F811
    settings = make_settings(tmp_path)
    run_proxies(RUNS[:2], settings, tmp_path / "here", workers=0)
    with open_runner(Execution(kind="slurm", workers=2, partition="gpu", poll_seconds=0.2)) as runner:
        run_proxies(RUNS[:2], settings, tmp_path / "slurm", runner=runner)
    assert _contents(tmp_path / "slurm") == _contents(tmp_path / "here")
    # The stand-in loses the first element of the first array.
    assert sorted(job.name for job in cluster.iterdir()) == ["1", "2"]
    assert "array=0-1%2" in (cluster / "1" / "script").read_text()


def test_a_run_that_fails_elsewhere_is_its_own_sentence(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    broken = replace(settings, target_tokens=settings.run_tokens * 10**6)
    with (
        open_runner(Execution()) as runner,
        pytest.raises(DataError, match="less than half a document"),
    ):
        run_proxies(RUNS[:1], broken, tmp_path / "runs", runner=runner)
