"""The sections of the benchmarks: that each is there, and how they lie in the page."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from benchmarks.curation import SECTIONS
from benchmarks.measure import DOCUMENT, publish


@pytest.mark.parametrize("place", SECTIONS.values(), ids=SECTIONS)
def test_a_section_can_be_asked_for(place: str) -> None:
    module, function = place.split(":")
    needed = inspect.signature(getattr(importlib.import_module(module), function)).parameters.values()
    assert [p.name for p in needed if p.default is p.empty] == ["write"]


def test_a_section_is_replaced_where_it_lies(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for name in ("a", "b", "c"):
        publish(name, f"## {name}\n\nold\n", write=True, document=page)
    publish("b", "## b\n\nnew", write=True, document=page)
    blocks = [
        f"<!-- begin {n} -->\n## {n}\n\n{t}\n<!-- end {n} -->"
        for n, t in zip("abc", ("old", "new", "old"), strict=True)
    ]
    assert page.read_text() == "\n\n".join(["# Benchmarks", *blocks]) + "\n"


def test_every_published_section_has_a_heading() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    begun = re.findall(r"<!-- begin (.*) -->\n(.*)\n", text)
    assert begun and all(first.startswith("## ") for _, first in begun)
    assert [name for name, _ in begun] == re.findall(r"<!-- end (.*) -->\n(?:\n(?!\n)|\Z)", text)
