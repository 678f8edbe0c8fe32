"""Scoring on a real local Ray cluster, with one of its workers killed in the middle."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from curation.atomic import hash_folder
from curation.errors import DataError, MachineError
from curation.near_duplicates import NearDuplicateSettings, find_near_duplicates
from curation.score_tables import score_ahead, score_files
from curation.scoring.execution import Execution, Runner
from curation.scoring.runners import check_execution, open_runner
from tests.curation.fakes import DiesOnce, Length
from tests.curation.test_near_duplicates import varied, write
from tests.curation.test_scoring import corpus, documents

ROOT = Path(__file__).parents[2]


def test_a_killed_ray_worker_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    whole = corpus(tmp_path / "d", 200)
    few = corpus(tmp_path / "few", 20, files=1)
    score_files(whole, Length(), tmp_path / "here", unit_documents=10)
    score_files(few, Length(), tmp_path / "few-here", unit_documents=10)
    model = tmp_path / "model"
    model.mkdir()
    ray.init(
        num_cpus=2,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    try:
        killed: list[int] = []

        def kill_one() -> None:
            deadline = time.monotonic() + 60
            while not killed and time.monotonic() < deadline:
                busy = [int(file.name.split("-")[0]) for file in model.iterdir()]
                if busy and len(list((tmp_path / "ray").glob(".length.parts-*/*.parquet"))) >= 3:
                    os.kill(busy[0], signal.SIGKILL)
                    killed.append(busy[0])
                time.sleep(0.01)

        killer = threading.Thread(target=kill_one)
        killer.start()
        with open_runner(Execution(kind="ray", workers=2, tasks=8, poll_seconds=0.5)) as runner:
            slow = Length(seconds=0.15, model=str(model))
            both = [(whole, tmp_path / "ray", whole.listing()), (few, tmp_path / "few-ray", few.listing())]
            score_ahead(both, slow, runner, unit_documents=10)
            for found, place, _ in both:
                score_files(found, slow, place, unit_documents=10, runner=runner)
            killer.join()
            assert killed
            assert hash_folder(tmp_path / "ray") == hash_folder(tmp_path / "here")
            assert hash_folder(tmp_path / "few-ray") == hash_folder(tmp_path / "few-here")
            assert len(list(model.iterdir())) <= 4  # a model for each process, not for each of 8 tasks
            bad = documents(200)[35]
            with pytest.raises(DataError, match=f"failed on the document {bad.id}: ValueError"):
                failing = Length(fail=bad.text, setting=2)
                score_files(whole, failing, tmp_path / "ray", unit_documents=10, runner=runner)
            near_duplicates_on(runner, tmp_path, monkeypatch, ray)
    finally:
        ray.shutdown()


def near_duplicates_on(runner: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch, ray: Any) -> None:
    """Deduplication in Ray tasks, one of whose workers is killed at its first job, gives the table of this process."""
    for module in ("near_duplicates", "near_duplicate_candidates"):
        monkeypatch.setattr(f"curation.{module}.FEW_DOCUMENTS", 0)
    monkeypatch.setattr("curation.near_duplicate_candidates.FEW_SIGNATURES", 0)
    sources, settings = (
        write(folder / "near", {"a": varied(1, 60), "b": varied(2, 60)}),
        NearDuplicateSettings(),
    )
    here = find_near_duplicates(sources, folder / "near_here", settings, shard_size=20)
    marks = folder / "marks"
    marks.mkdir()
    counts = DiesOnce(str(marks))
    there = find_near_duplicates(
        sources, folder / "near_ray", settings, counts=counts, counts_key=1, runner=runner, shard_size=20
    )
    assert there.height and there.equals(here)
    assert [mark.name for mark in marks.iterdir()] == ["died"]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://localhost:{}"])
def test_a_cluster_that_does_not_answer_is_a_sentence_at_once(address: str) -> None:
    """Ray itself tries for more than five minutes."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        execution = Execution(kind="ray", workers=1, ray_address=address.format(taken.getsockname()[1]))
        with pytest.raises(MachineError, match=r"No Ray cluster could be joined at .*refused.*ray_address"):
            check_execution(execution)


def test_addresses_without_a_port_are_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address in (None, "auto", "local"):
        check_execution(Execution(kind="ray", workers=1, ray_address=address))
