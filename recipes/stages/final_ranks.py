"""The final training on several processes of this machine: torchrun starts ranks, and each runs this module.

The stage itself stays one process. It holds the run folder's lock, writes the stage's record and waits; the ranks
read the recipe that is kept in the folder and meet in `training.loop.train`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

from curation.atomic import read_json, write_json
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
        command += ["--nproc-per-node", str(run.recipe.final.processes), "-m", "recipes.stages.final_ranks"]
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


def main(folder: str, notes: str, starter: str) -> int:
    """One rank. Its error is left in `notes` for the starter: torchrun would print a page and drop the sentence."""
    from recipes.execute import open_run
    from recipes.stages.final import train_final

    threading.Thread(target=_stop_without, args=(int(starter),), daemon=True).start()
    try:
        train_final(open_run(Path(folder) / "recipe.yaml", Path(folder)))
    except MixwrightError as error:
        noted = {
            "kind": type(error).__name__,
            "what": error.what,
            "where": error.where,
            "remedy": error.remedy,
        }
        write_json(Path(notes) / f"rank-{os.environ['RANK']}.json", noted)
    return 0


def _stop_without(starter: int) -> None:
    """Ask this process to stop when the process `starter` is gone."""
    while True:
        try:
            os.kill(starter, 0)
        except OSError:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
