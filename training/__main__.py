"""Train from one plain file: `python -m training RUN.yaml --out DIR`, or under torchrun with several ranks.

Exit codes: 0 the run is finished, 75 it was asked to stop and has saved where it stands, 2 a wrong setting,
3 bad data, 4 a refusal of the machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from curation.errors import MixwrightError
from curation.memory import keep_freed_memory


def main(arguments: list[str] | None = None) -> int:
    """Read the file, train, say where the model is."""
    parser = argparse.ArgumentParser(prog="python -m training", description="Train a model.")
    parser.add_argument("config", type=Path, help="JSON or YAML: model, data, training; see docs/parallel.md")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the same again continues")
    options = parser.parse_args(arguments)
    rank = int(os.environ.get("RANK", "0"))
    keep_freed_memory()
    try:
        from training.launch import read_launch
        from training.loop import train

        asked = read_launch(options.config)
        result = train(asked.model, asked.order, asked.settings, options.out, init_from=asked.init_from)
    except MixwrightError as error:
        print(f"rank {rank}: {error}" if rank else error, file=sys.stderr)
        return error.exit_code
    if rank == 0:
        print(f"{result.tokens:,} tokens in {result.seconds:,.0f} s; the model is {result.final}")
    return 0


if __name__ == "__main__":
    ended = main()
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(ended)
    from training.distributed import end_rank

    end_rank(ended)
