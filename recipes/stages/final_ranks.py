"""The final training on several processes of this machine: torchrun starts ranks, each runs `rank_entry`.

The stage itself stays one process. It holds the run folder's lock, writes the stage's record and waits; the ranks
read the recipe that is kept in the folder and meet in `training.loop.train`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from curation.atomic import read_json
from curation.errors import DataError, MachineError, MixwrightError, RecipeError
from recipes.pipeline import Run
from training.result import TrainResult, read_result
from training.stop_requests import TrainingStopped, stop_requests

_ERRORS = {kind.__name__: kind for kind in (RecipeError, DataError, MachineError, TrainingStopped)}
POLL_SECONDS = 0.5


def train_on_ranks(run: Run) -> TrainResult:
    """The final training of the run on `final.processes` ranks; what stops a rank is raised here, as its own error.

    SIGTERM and SIGINT are handed on, so that the ranks save where they stand. Ranks whose starter has been killed
    save and end by themselves.
    """
    with tempfile.TemporaryDirectory() as notes, stop_requests() as stop:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(run.recipe.final.processes), "-m", "recipes.stages.rank_entry"]
        command += [str(run.folder.resolve()), notes, str(os.getpid())]
        # A session of their own: Ctrl-C reaches them through here alone, and once. A second signal would kill.
        with subprocess.Popen(
            command, env={"OMP_NUM_THREADS": "1"} | dict(os.environ), start_new_session=True
        ) as ranks:
            told = False
            while ranks.poll() is None:
                if stop and not told:
                    ranks.terminate()
                    told = True
                time.sleep(POLL_SECONDS)
        for note in sorted(Path(notes).glob("*.json"), key=lambda file: file.stat().st_mtime_ns):
            _raise(read_json(note))
    if ranks.returncode:
        raise MachineError(
            f"The processes of the final training have ended with code {ranks.returncode}",
            where=str(run.path("training", "pretrain")),
            remedy="Their own messages are above; start the run again to continue from the last checkpoint",
        )
    return read_result(run.path("training", "pretrain"))


def _raise(noted: dict[str, str]) -> NoReturn:
    kind = _ERRORS.get(noted["kind"], MixwrightError)
    raise kind(noted["what"], where=noted["where"], remedy=noted["remedy"])
