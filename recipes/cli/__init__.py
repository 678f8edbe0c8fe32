"""The `mixwright` command: thin functions over the floors, one module for each kind of work."""

from __future__ import annotations

import errno
import os
import sys

import typer
from rich.console import Console

from curation.errors import MachineError, MixwrightError
from curation.progress import set_progress_mode
from curation.quiet_libraries import quiet_libraries
from recipes.cli.command_list import CommandList

INTERRUPTED = 130
GLOBAL_FLAGS = {"--quiet": "quiet", "-q": "quiet", "--plain": "plain"}

app = typer.Typer(
    name="mixwright",
    cls=CommandList,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find out which data makes a small language model reason, in what proportion to mix it, and train the model.",
    epilog="Exit codes: 0 done, 1 unexpected, 2 recipe or usage, 3 data, 4 machine, 130 interrupted.",
)


@app.callback()
def _main(
    quiet: bool = typer.Option(
        False, "--quiet", "-q", help="Print results and errors only; anywhere on the line."
    ),
    plain: bool = typer.Option(
        False, "--plain", help="Progress as plain lines, as in a log; anywhere on the line."
    ),
) -> None:
    from recipes.cli.output import expect_json

    expect_json(False)
    quiet_libraries()
    if quiet or plain:
        set_progress_mode("quiet" if quiet else "plain")


def main() -> None:
    """Entry point: errors for the user are one sentence and an exit code, never a traceback."""
    try:
        _run()
    except KeyboardInterrupt:  # before a command began: while libraries were being imported
        sys.stderr.write("Interrupted. Nothing was begun.\n")
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        from training.distributed import end_rank

        end_rank(end.code if isinstance(end.code, int) else int(end.code is not None))


def _run() -> None:
    # They add their commands.
    from recipes.cli import (  # noqa: F401
        classifying,
        comparing,
        compressing,
        curating,
        deploying,
        evaluating,
        exporting,
        fitting,
        hybrids,
        influencing,
        machine,
        mixing,
        post_training,
        proposing,
        running,
        speed,
        training,
        tuning,
    )

    # Libraries draw bars of their own; ours say what they are about. Workers inherit the variable.
    os.environ.setdefault("TQDM_DISABLE", "1")
    arguments = sys.argv[1:]
    flags = [argument for argument in arguments if argument in GLOBAL_FLAGS]
    rest = [argument for argument in arguments if argument not in GLOBAL_FLAGS]
    errors = Console(stderr=True, highlight=False)
    try:
        app(args=flags + rest, prog_name="mixwright")
    except MixwrightError as error:
        errors.print(f"[bold red]Error:[/] {_plain(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        # Typer turns the first into the second, and says nothing.
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        errors.print("Interrupted. What is done is kept; the same command continues.")
        sys.exit(INTERRUPTED)
    except MemoryError:
        errors.print(
            "[bold red]Error:[/] The memory ran out. Close other programs, or use less data at once or fewer workers; "
            "what is done is kept."
        )
        sys.exit(MachineError.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        errors.print(
            f"[bold red]Error:[/] {_plain(error.strerror or '')} ({_plain(str(error.filename or ''))})."
        )
        sys.exit(MachineError.exit_code)


def _plain(text: str) -> str:
    """Text that rich must not read as markup."""
    return text.replace("[", r"\[")
