"""Slurm cannot run here: a stand-in for its commands runs the very scripts that datatrove submits."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from curation.atomic import hash_folder
from curation.errors import MachineError, RecipeError
from curation.score_tables import score_ahead, score_files
from curation.scoring.execution import Execution
from curation.scoring.runners import open_runner
from tests.curation.fakes import Length
from tests.curation.test_scoring import corpus

SBATCH = """#!/bin/bash
# Runs the elements of the array in the background, as Slurm would; the first submission loses one of them.
for script; do true; done
number=$(( $(ls {home}/jobs | wc -l) + 1 ))
mkdir -p {home}/jobs/$number
cp "$script" {home}/jobs/$number/script
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
(
  for element in $(seq 0 $last); do
    if [ $number = 1 ] && [ $element = 0 ]; then continue; fi
    SLURM_ARRAY_TASK_ID=$element RUN_OFFSET=0 SLURM_NODELIST=here bash {home}/jobs/$number/script
  done > {home}/jobs/$number/log 2>&1
  touch {home}/jobs/$number/ended
) > /dev/null 2>&1 &
echo "Submitted batch job $number"
"""
SQUEUE = """#!/bin/bash
for job; do true; done
[ -e {home}/jobs/$job/ended ] || echo "$job waiting"
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done
exec "$@"
"""
SCONTROL = "#!/bin/bash\necho here\n"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `jobs/<number>/script` of each submission."""
    home = tmp_path / "slurm"
    (home / "bin").mkdir(parents=True)
    (home / "jobs").mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("srun", SRUN), ("scontrol", SCONTROL)):
        file = home / "bin" / name
        file.write_text(text.replace("{home}", str(home)))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return home / "jobs"


def test_the_job_array_is_submitted_and_again_for_what_was_lost(tmp_path: Path, cluster: Path) -> None:
    whole = corpus(tmp_path / "d", 60)
    few = corpus(tmp_path / "few", 8, files=1)
    score_files(whole, Length(), tmp_path / "here", unit_documents=10)
    score_files(few, Length(), tmp_path / "few-here", unit_documents=10)
    execution = Execution(
        kind="slurm",
        workers=2,
        tasks=2,
        partition="gpu",
        gpus_per_task=1,
        memory_gigabytes=8,
        time="01:00:00",
        sbatch={"account": "me"},
        poll_seconds=0.2,
    )
    with open_runner(execution) as runner:
        places = [(whole, tmp_path / "slurm-scores"), (few, tmp_path / "slurm-few")]
        wanted = [(found, place, found.listing()) for found, place in places]
        score_ahead(wanted, Length(), runner, unit_documents=10)  # both in the queue at the same time
        assert sorted(job.name for job in cluster.iterdir()) == ["1", "2", "3"]
        for found, place in places:
            score_files(found, Length(), place, unit_documents=10, runner=runner)
    assert hash_folder(tmp_path / "slurm-scores") == hash_folder(tmp_path / "here")
    assert hash_folder(tmp_path / "slurm-few") == hash_folder(tmp_path / "few-here")
    assert len(list(cluster.iterdir())) == 3
    script = (cluster / "1" / "script").read_text()
    wanted = {"array=0-1%2", "partition=gpu", "gpus=1", "mem-per-cpu=8G", "cpus-per-task=1", "time=01:00:00"}
    directives = {
        line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")
    }
    assert wanted | {"account=me", "job-name=length_s"} <= directives
    assert "launch_pickled_pipeline" in script


def test_what_cannot_be_submitted_is_a_sentence(
    tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = corpus(tmp_path / "d", 5)

    def score(execution: Execution) -> None:
        with open_runner(execution) as runner:
            score_files(whole, Length(), tmp_path / "s", runner=runner)

    with pytest.raises(RecipeError, match="Slurm needs a partition"):
        score(Execution(kind="slurm", workers=1))
    with pytest.raises(RecipeError, match="Give 1 or more"):
        score(Execution(kind="slurm", workers=0))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MachineError, match="no command `sbatch`"):
        score(Execution(kind="slurm", workers=1, partition="p"))
