"""What one record of a user's file turns into: a document, or a broken record that says where and why."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from curation.documents import Document, document_id
from curation.errors import DataError

BROKEN_EXAMPLES = 10
META_STRING_CHARACTERS = 1000


@dataclass(frozen=True)
class BrokenRecord:
    """A record that is not a document.

    where : file and line (or row), such as `wiki.jsonl, line 17`
    why   : what is wrong with it, a sentence without its full stop
    empty : True when the record is sound but has no text; counted apart, and not against the tolerance
    no_field : True when it does not have the field that was said to hold the text
    """

    where: str
    why: str
    empty: bool = False
    no_field: bool = False


@dataclass
class ReadCounts:
    """Counts what was read, and keeps the first broken and the first empty records as examples."""

    read: int = 0
    broken: int = 0
    empty: int = 0
    examples: list[BrokenRecord] = field(default_factory=list)

    def documents(self, records: Iterable[Document | BrokenRecord]) -> Iterator[Document]:
        """Pass the documents on and count everything."""
        for record in records:
            self.read += 1
            if isinstance(record, Document):
                yield record
                continue
            self.empty += record.empty
            self.broken += not record.empty
            if sum(known.empty == record.empty for known in self.examples) < BROKEN_EXAMPLES:
                self.examples.append(record)

    def check(self, where: str, tolerance: float, *, option: str | None = "`text_field`") -> None:
        """Raise DataError when there was nothing to read, or more than the share `tolerance` is broken.

        option : how the user chooses the field that holds the text; None where it is always `text`
        """
        if self.broken > tolerance * self.read:
            examples = "; ".join(f"{b.where}: {b.why}" for b in self.examples if not b.empty)
            rename = "Rename the field that holds the text to `text`"
            choose = rename if option is None else f"Name the field that holds the text with {option}"
            share = f"{self.broken} of {self.read} records ({self.broken / self.read:.1%})"
            raise DataError(
                f"{share} are broken, more than the {tolerance:.1%} that "
                f"`broken_tolerance` allows. The first: {examples}",
                where=where,
                remedy=choose
                if any(example.no_field for example in self.examples)
                else "Mend the file, or raise `broken_tolerance` if the loss is acceptable",
            )
        if self.read == self.broken + self.empty:
            what = "The corpus is empty" if not self.read else f"None of the {self.read} records has a text"
            raise DataError(what, where=where, remedy="Point `path` at files that hold documents")


@dataclass(frozen=True)
class RecordMaker:
    """Turns the fields of one record into a Document or a BrokenRecord."""

    label: str
    source: str | None
    stem: str
    text_field: str

    def __call__(self, place: str, fields: dict[str, Any]) -> Document | BrokenRecord:
        if self.text_field not in fields:
            known = ", ".join(map(repr, list(fields)[:8])) or "no fields"
            return replace(self.broken(place, f"no field `{self.text_field}`; it has {known}"), no_field=True)
        text = fields[self.text_field]
        if text is None:
            return self.broken(place, "the text is null", empty=True)
        if not isinstance(text, str):
            return self.broken(place, f"the text is not a string but {type(text).__name__}")
        if not text.strip(" \t\r\n\0"):
            return self.broken(place, "the text is empty", empty=True)
        if not _is_unicode(text):
            return self.broken(place, "the text holds half of a surrogate pair, which is not valid Unicode")
        source = self.source or _word(fields.get("source")) or self.stem
        own_id, url = _word(fields.get("id")), _word(fields.get("url"))
        meta = _flat_meta(fields, self.text_field)
        return Document(own_id or document_id(source, text), text, source, url, meta or None)

    def broken(self, place: str, why: str, *, empty: bool = False) -> BrokenRecord:
        return BrokenRecord(f"{self.label}, {place}" if place else self.label, why, empty)


def _flat_meta(fields: dict[str, Any], text_field: str) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    for name, value in fields.items():
        if name in (text_field, "id", "source", "url"):
            continue
        if name in ("meta", "metadata"):
            inner = _object(value)
            meta.update({k: v for k, v in inner.items() if _is_scalar(k) and _is_scalar(v)})
        elif _is_scalar(name) and _is_scalar(value):
            meta[name] = value
    return meta


def _object(value: Any) -> dict[str, Any]:
    """`value` if it is an object, or the object that a JSON string holds; else nothing."""
    if isinstance(value, str):
        try:
            value = json.loads(value, parse_constant=lambda name: None)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= META_STRING_CHARACTERS and _is_unicode(value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63)


def _word(value: Any) -> str | None:
    """A non-empty string or an integer, as a string; else None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 2**63 else None
    return value if isinstance(value, str) and value.strip() and _is_unicode(value) else None


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
