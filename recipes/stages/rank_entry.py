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
from recipes.stages.final_ranks import POLL_SECONDS, STOP
from training.distributed import end_rank


def main(folder: str, notes: str, starter: str) -> int:
    """One rank. Its error is left in `notes` for the starter: torchrun would print a page and drop the sentence."""
    threading.Thread(target=_watch, args=(int(starter), Path(notes) / STOP), daemon=True).start()
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


def _watch(starter: int, asked: Path) -> None:
    """Have this process stop between two updates when the starter asks for it, or is gone."""
    while not asked.exists():
        try:
            os.kill(starter, 0)
        except OSError:
            break
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    end_rank(main(*sys.argv[1:]))
