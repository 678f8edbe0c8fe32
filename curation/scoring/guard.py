"""What an unfinished piece of work was about, so that another one in its folder is noticed, and not taken as
done.

datatrove marks a finished task with an empty file that says nothing about the pipeline, its input or the
number of tasks: another pipeline on an old logging folder is "already completed". Here a folder keeps the
facts of its work beside such markers, and the markers go when the facts change.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curation.atomic import read_json, write_json

FACTS = "work.json"
_log = logging.getLogger(__name__)


def begin(folder: Path, facts: Mapping[str, Any], name: str) -> list[str]:
    """Record `facts` (JSON-able) in `folder`; return the names of those that were otherwise, sorted.

    When any was, datatrove's markers and statistics in `folder` are removed, and a warning is logged; not for `tasks`
    alone, which are fewer each time that work continues, and which results do not depend on.
    """
    path = folder / FACTS
    try:
        before = dict(read_json(path))
    except (OSError, ValueError, TypeError):
        before = {}
    changed = sorted(key for key in {*before, *facts} if before.get(key) != facts.get(key)) if before else []
    if told := [key for key in changed if key != "tasks"]:
        _log.warning(
            "%s: %s changed since the unfinished work in this folder; only what still fits counts as done",
            name,
            " and ".join(told),
        )
    if changed:
        for old in ("completions", "stats"):
            shutil.rmtree(folder / old, ignore_errors=True)
    write_json(path, dict(facts))
    return changed
