"""Libraries that tell, at import, what of theirs this machine cannot load: it is nothing to the user."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# transformers imports torchao with every model, where it is installed.
TALKATIVE = ("torchao", "torch.utils._pytree")


def quiet_libraries() -> None:
    """Show only errors of the `TALKATIVE` loggers; for our commands and their workers, not for other programs."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def quiet_import() -> Iterator[None]:
    """Within the block neither warnings nor log records below errors are shown; errors are raised as ever."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
