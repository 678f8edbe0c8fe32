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
# A file of this name beside the ranks' notes asks them to save and end.
STOP = "stop"
POLL_SECONDS = 0.25


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
            while ranks.poll() is None:
                if stop:
                    # Asked through a file: torchrun, told to end, kills ranks that save for longer than 30 seconds.
                    (Path(notes) / STOP).touch()
                time.sleep(POLL_SECONDS)
        for note in sorted(Path(notes).glob("rank-*.json"), key=lambda file: file.stat().st_mtime_ns):
            _raise(read_json(note))
    out = run.path("training", "pretrain")
    finished = (out / "result.json").is_file()
    if stop and not finished:
        # Before the first update a rank ends by the signal itself, and leaves no note.
        raise TrainingStopped(
            "The training was asked to stop before it had begun",
            where=str(out),
            remedy="Start it again in the same way to continue",
        )
    if ranks.returncode and not finished:
        raise MachineError(
            f"The processes of the final training have ended with code {ranks.returncode}",
            where=str(out),
            remedy="Their own messages are above; start the run again to continue from the last checkpoint",
        )
    return read_result(out)


def _raise(noted: dict[str, str]) -> NoReturn:
    kind = _ERRORS.get(noted["kind"], MixwrightError)
    raise kind(noted["what"], where=noted["where"], remedy=noted["remedy"])
