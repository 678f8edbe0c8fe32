"""The page of evaluations side by side: complete, escaped, the same bytes, readable in a browser at two widths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from curation.atomic import read_json, write_json
from mixing.report.comparison import write_comparison
from probes.checkpoint_series import Evaluated, evaluate_series
from probes.diagnostics import diagnose
from probes.evaluate import evaluate
from probes.task_scoring import Loaded
from tests.mixing.chromium import Page, find_chromium, open_browser
from tests.probes.tiny_evaluation import ARC, model_folder, write_rows

EVIL = "<script>alert(1)</script>"
CHROMIUM = find_chromium()


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three evaluations: with contamination, of a series, and with diagnostics and speed; names from the devil."""
    place = tmp_path_factory.mktemp("comparison")
    models = [model_folder(place / str(seed), seed=seed) for seed in (1, 2)]
    rows = [{**row, "id": f"{row['id']}{EVIL}"} for row in ARC]
    data = {"arc_easy": write_rows(place / "arc.jsonl", rows)}
    sums = [{"q": f"{EVIL}{i}", "a": str(i)} for i in range(6)]
    task = place / "sums.yaml"
    write_rows(place / "sums.jsonl", sums)
    task.write_text(
        f"name: sums\nscoring: generation\nsource: '{EVIL}'\ndata: sums.jsonl\nprompt: 'Q {{q}} A'\ngold: '{{a}}'\n"
        "generation: {max_tokens: 4, samples: 2, temperature: 1.0, reward: exact, budgets: [2]}\n"
    )
    seen = write_rows(place / "seen.jsonl", [{"text": "a text of the training set"}])
    first, second, third = (place / f"{name}{'<b>' if name == 'b' else ''}" for name in "abc")
    evaluate(models[0], ["arc_easy", task], data=data, out=first, against=[seen])
    evaluate(models[1], ["arc_easy", task], data=data, out=second)
    series = [Evaluated("step-1", models[1], 1), Evaluated("step-2", models[0], 2)]
    evaluate_series(series, ["arc_easy"], third, data=data)
    for folder, model in ((first, models[0]), (second, models[1])):
        loaded = Loaded.of(model)
        write_json(folder / "diagnostics.json", diagnose(loaded.model, [list(range(3, 20))]).described())
    cell = {
        "context": 1024, "decode": {"median": 10.0, "low": 9.0, "high": 11.0}, "cpu_seconds_per_token": 0.1,
        "prefill": {"tokens_per_second": 100.0, "tokens": 1000}, "kv_cache_bytes": 4096, "peak_bytes": None,
    }  # fmt: skip
    precision = {"name": "int8", "weight_bytes": 10, "packed_bytes": 9,
                 "cells": [cell, {"context": 2048, "kv_cache_bytes": 8192, "skipped": f"full {EVIL}"}]}  # fmt: skip
    moved = {"value": 1.0, "difference": 0.1, "low": 0.05, "high": 0.2}
    write_json(second / "speed.json", {"device": "cpu", "threads": 1, "precisions": [
        precision | {"bits_per_byte": moved}, {"name": "8da4w", "cells": [], "skipped": f"no {EVIL}"}]})  # fmt: skip
    return [first, second, third]


@pytest.fixture(scope="module")
def page(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(folders, tmp_path_factory.mktemp("page") / "page.html")


def test_everything_is_on_the_page_and_nothing_of_it_is_an_element(page: Path, folders: list[Path]) -> None:
    text = page.read_text(encoding="utf-8")
    found = _Elements()
    found.feed(text)
    assert not {"script", "img", "b", "iframe"} & set(found.names)
    assert not [name for name in found.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "b&lt;b&gt;" in text
    anchors = re.findall(r'<section id="([a-z]+)"', text)
    assert anchors == [
        "answer", "scores", "differences", "questions", "contamination", "lengths", "checkpoints", "inside",
        "speed", "asked",
    ]  # fmt: skip
    value = read_json(folders[0] / "arc_easy" / "results.json")["metrics"]["cloze"]["accuracy_per_char"]
    assert f"{value['value']:.3f}" in text and f"{value['low']:.3f} to {value['high']:.3f}" in text
    assert str(folders[0].parent) not in text  # no path of this machine
    assert "http:" not in re.sub(r'xmlns(:xlink)?="http://www.w3.org/[^"]*"', "", text)


def test_the_same_files_give_the_same_bytes_and_another_baseline_another_page(
    page: Path, folders: list[Path], tmp_path: Path
) -> None:
    again = write_comparison(folders, tmp_path / "again.html")
    assert again.read_bytes() == page.read_bytes()
    other = write_comparison(folders, tmp_path / "other.html", baseline=folders[1]).read_text()
    assert "Differences to b&lt;b&gt;" in other
    alone = write_comparison(folders[2:], tmp_path / "alone.html").read_text()
    assert "One evaluation" in alone and 'id="differences"' not in alone


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with open_browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_fits_a_window_loads_alone_and_works_by_keyboard(
    browser: Page, page: Path, width: int, dark: bool
) -> None:
    browser.open(page.as_uri(), width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    scroll, client = browser.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert scroll <= client, f"the page is {scroll} px wide in a window of {client}"
    assert browser.complaints() == [] and browser.requests() == [page.as_uri()]
    assert browser.evaluate("document.scripts.length + document.images.length") == 0
    assert EVIL in browser.evaluate("document.body.innerText")
    # Whatever scrolls sideways or opens can be reached with the tab key, and has a name.
    named = "e.tabIndex < 0 || !e.getAttribute('aria-label')"
    stuck = f"[...document.querySelectorAll('.scroll')].filter(e => {named}).length"
    assert browser.evaluate(stuck) == 0
    assert browser.evaluate("[...document.querySelectorAll('summary')].every(e => e.tabIndex >= 0)")
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.call("Emulation.setEmulatedMedia", media="")
