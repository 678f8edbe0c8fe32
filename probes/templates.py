"""Templates of task files: `{field}` and nothing that runs.

A field is a path of keys and list positions in a row, `{choices.text}` or `{test_list.0}`, with filters after
bars from a fixed list, `{sentence|before:_}`. A list of texts is joined by `{tests|lines}`. `{{` and `}}` are
braces. A row's text is put in as it is: braces in it mean nothing, and neither attributes nor format
specifications exist.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from curation.errors import DataError, RecipeError
from training.rewards.answers import last_boxed

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def _wikihow(text: str) -> str:
    """HellaSwag's cleaning of WikiHow markup, as in the harness: titles become sentences, brackets go."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _boxed(text: str) -> str:
    """The content of the last \\boxed{} of a solution, as MATH's answers are given; nothing where there is none."""
    return last_boxed(text) or ""


LINES = "lines"
FILTERS: dict[str, Callable[[str], str]] = {
    "boxed": _boxed,
    "strip": str.strip,
    "capitalize": str.capitalize,
    "lower": str.lower,
    "spaces": lambda text: text.replace("_", " "),
    "wikihow": _wikihow,
}
ARGUMENT_FILTERS: dict[str, Callable[[str, str], str]] = {
    "before": lambda text, mark: text.partition(mark)[0],
    "after": lambda text, mark: text.partition(mark)[2],
}


def render(template: str, row: Mapping[str, Any], where: str = "") -> str:
    """`template` with the fields of `row`.

    >>> render("Q: {question|strip}{{}} {tests.0}", {"question": " 1 {x}? ", "tests": ["a"]})
    'Q: 1 {x}?{} a'

    Raises DataError when the row lacks a field or holds no text there, RecipeError on a broken template.
    """

    def piece(match: re.Match[str]) -> str:
        whole = match.group(0)
        if whole in ("{{", "}}"):
            return whole[0]
        if match.group(1) is None or not match.group(1).strip():
            raise RecipeError(
                f"A template has a lone or empty brace: {template[:80]!r}",
                where=where,
                remedy="Write {field}, and {{ or }} for a brace itself",
            )
        path, *filters = match.group(1).split("|")
        value = lookup(row, path.strip(), where)
        if filters[:1] == [LINES]:
            filters, value = filters[1:], _joined(value, path, where)
        text = as_text(value, path, where)
        for name in filters:
            text = _filtered(text, name, where)
        return text

    return _PIECE.sub(piece, template)


def field_values(template: str, row: Mapping[str, Any], where: str = "") -> list[str]:
    """The texts of the fields that a template names, each once, as they are in the row: without filters.

    >>> field_values("Question: {q|strip}\\nAnswer: {a.0} {q}", {"q": " Why? ", "a": ["so"]})
    [' Why? ', 'so']
    """
    named = [match.group(1) for match in _PIECE.finditer(template) if match.group(1)]
    paths = dict.fromkeys(name.split("|")[0].strip() for name in named)
    values = [(path, lookup(row, path, where)) for path in paths]
    return [
        _joined(value, path, where) if isinstance(value, list | tuple) else as_text(value, path, where)
        for path, value in values
    ]


def check_template(template: str, where: str) -> None:
    """RecipeError when `template` is broken or names an unknown filter, whatever the rows hold."""

    class _Anything(dict):
        def __missing__(self, key: str) -> str:
            return ""

        def __contains__(self, key: object) -> bool:
            return True

    heads = re.sub(r"\{([^{}|.]*)\.[^{}|]*", r"{\1", template).replace(f"|{LINES}", "")
    render(heads, _Anything(), where)


def _joined(value: Any, path: str, where: str) -> str:
    if not isinstance(value, list | tuple):
        raise DataError(
            f"Field {path!r} is not a list", where=where, remedy="Mend the row, or leave `|lines` out"
        )
    return "\n".join(as_text(entry, path, where) for entry in value)


def lookup(row: Any, path: str, where: str) -> Any:
    """What stands at `path` of a row; DataError naming the row when there is nothing."""
    value = row
    for key in path.split("."):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list | tuple) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            known = list(value) if isinstance(value, Mapping) else []
            close = difflib.get_close_matches(key, [str(k) for k in known], n=1)
            raise DataError(
                f"A row has no field {path!r}",
                where=where,
                remedy=f"Did you mean {close[0]!r}? If so, mend the task file" if close
                else f"It has {', '.join(map(str, known[:12])) or 'no fields there'}; give a file with this field",
            )  # fmt: skip
    return value


def as_text(value: Any, path: str, where: str) -> str:
    """Text of a scalar; DataError for nothing, lists and objects."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    raise DataError(
        f"Field {path!r} holds {'nothing' if value is None else 'a ' + type(value).__name__}, not text",
        where=where,
        remedy="Mend the row, or name another field in the task file",
    )


def apply_filter(text: str, name: str, where: str) -> str:
    """One filter of a task file applied to a text; RecipeError when there is no such filter."""
    return _filtered(text, name, where)


def _filtered(text: str, name: str, where: str) -> str:
    head, colon, argument = name.partition(":")
    if colon and head in ARGUMENT_FILTERS and argument:
        return ARGUMENT_FILTERS[head](text, argument)
    if not colon and name in FILTERS:
        return FILTERS[name](text)
    known = [LINES, *FILTERS, *(f"{n}:TEXT" for n in ARGUMENT_FILTERS)]
    raise RecipeError(f"There is no filter {name!r}", where=where, remedy=f"Known are {', '.join(known)}")
