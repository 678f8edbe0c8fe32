"""One rank of the recipe's final training: `python -m recipes.stages.rank_entry RUN NOTES STARTER` under torchrun."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from curation.atomic import write_json
from curation.errors import MixwrightError
from recipes.execute import open_run
from recipes.stages.final import train_final


def main(folder: str, notes: str, starter: str) -> int:
    """One rank. Its error is left in `notes` for the starter: torchrun would print a page and drop the sentence."""
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
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # All is on the disk. The threads of the process group may be alive, and a normal end then aborts now and then.
    os._exit(code)
