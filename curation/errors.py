"""Errors that are sentences for the user: what is wrong, where, and how to mend it."""

from __future__ import annotations


class MixwrightError(Exception):
    """A problem the user can mend; the command line prints it without a traceback.

    what   : what is wrong, a sentence without its full stop
    where  : file, line, field, or stage in which it was found
    remedy : what to do about it, a sentence without its full stop

    >>> print(MixwrightError("The corpus is empty", where="wiki.jsonl", remedy="Point `path` at a file with documents"))
    The corpus is empty (wiki.jsonl). Point `path` at a file with documents.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        place = f" ({where})" if where else ""
        advice = f" {remedy}." if remedy else ""
        super().__init__(f"{what}{place}.{advice}")


class RecipeError(MixwrightError):
    """The recipe, an option or an argument asks for something that cannot be."""

    exit_code = 2


class DataError(MixwrightError):
    """A corpus, a table or a model folder does not hold what it should."""

    exit_code = 3


class MachineError(MixwrightError):
    """The machine refuses: no disk left, a read-only folder, a worker killed, a library missing."""

    exit_code = 4
