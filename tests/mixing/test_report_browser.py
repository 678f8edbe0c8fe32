"""The page in a real browser: nothing is asked of the network, nothing is complained about, nothing sticks out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mixing.report import write_report
from tests.mixing.chromium import Page, find_chromium, open_browser
from tests.mixing.report_sample import EVIL_SOURCE, make_run

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert CHROMIUM is not None
    with open_browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = make_run(tmp_path_factory.mktemp("browser") / "quickstart")
    # A name as long as names may be, without a place to break it.
    run = run.rename(run.with_name("n" * 100))
    return write_report(run).as_uri()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_the_page_loads_alone_and_fits(browser: Page, address: str, width: int, dark: bool) -> None:
    browser.open(address, width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [address]
    wide = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scroll, client = browser.evaluate(wide)
    assert scroll <= client, f"the page is {scroll} px wide in a window of {client}"
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    scroll, client = browser.evaluate(wide)
    assert scroll <= client, f"opened, the page is {scroll} px wide in a window of {client}"
    lightness = browser.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    assert (lightness < 60) == dark
    assert browser.complaints() == [] and browser.requests() == [address]


def test_nothing_of_a_corpus_becomes_an_element(browser: Page, address: str) -> None:
    browser.open(address, 1280)
    assert browser.evaluate("document.scripts.length + document.images.length") == 0
    assert browser.evaluate("document.querySelectorAll('[onerror], [onload]').length") == 0
    assert EVIL_SOURCE in browser.evaluate("document.body.innerText")
    shown = "[...document.querySelectorAll('.excerpt pre')].filter(p => p.textContent.includes('<img src=x')).length"
    # The best and the worst documents of the source, and its two, token by token, for each capability.
    assert browser.evaluate(shown) == 6 + 2 * 3
    assert browser.evaluate("document.querySelectorAll('svg text').length") > 100


def test_the_contents_stay_in_sight_on_a_desktop_and_fold_on_a_phone(browser: Page, address: str) -> None:
    browser.open(address, 1280, 800)
    browser.evaluate("window.scrollTo(0, 4000)")
    assert browser.evaluate("document.querySelector('ol.contents').getBoundingClientRect().top") < 100
    browser.open(address, 390)
    assert browser.evaluate("document.querySelector('#answer').getBoundingClientRect().top") < 600


def test_paper_shows_all_that_a_screen_opens_or_scrolls(browser: Page, address: str) -> None:
    browser.open(address, 700)  # A4 between its margins
    closed = "[...document.querySelectorAll('main details:not([open]) .inside')]"
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate(f"{closed}.length") > 5
    assert browser.evaluate(f"{closed}.filter(e => e.getBoundingClientRect().height < 10).length") == 0
    cut = (
        "[...document.querySelectorAll('.scroll, pre')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    )
    assert browser.evaluate(cut) == 0
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    browser.call("Emulation.setEmulatedMedia", media="")


def test_everything_that_opens_or_scrolls_is_reached_by_the_keyboard(browser: Page, address: str) -> None:
    browser.open(address, 390)
    reach = "e => e.tabIndex === 0 && e.checkVisibility()"
    assert browser.evaluate(f"[...document.querySelectorAll('main summary')].every({reach})")
    browser.evaluate("document.querySelectorAll('main details').forEach(d => { d.open = true })")
    scrolls = "[...document.querySelectorAll('main *')].filter(e => ['auto', 'scroll'].includes("
    scrolls += "getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth + 1)"
    assert browser.evaluate(f"{scrolls}.length") > 5
    assert browser.evaluate(f"{scrolls}.filter(e => e.tabIndex !== 0).map(e => e.className)") == []


def test_text_can_be_read_on_every_ground(browser: Page, address: str) -> None:
    """Contrast of the text in filled cells and bars, at least 4.5 (WCAG AA), in both schemes."""
    script = """(() => {
      const parse = c => c.match(/[\\d.]+/g).map(Number);
      const light = c => { const [r, g, b] = parse(c).slice(0, 3).map(v => { v /= 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b };
      const found = [];
      const read = 'table.heat td.num .value, .stack .part, .tokens mark, h1, .verdict, p.note, figcaption, .detail';
      for (const e of document.querySelectorAll(read)) {
        if (!e.textContent.trim()) continue;
        let ground = e;
        while (parse(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
        const [a, b] = [light(getComputedStyle(e).color), light(getComputedStyle(ground).backgroundColor)];
        found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.className + ': ' + ground.className]);
      }
      return found.sort((x, y) => x[0] - y[0]).slice(0, 1)[0].concat(found.length);
    })()"""
    for dark in (False, True):
        browser.open(address, 1280, dark=dark)
        least, where, checked = browser.evaluate(script)
        assert checked > 60
        assert least >= 4.5, f"{where}: contrast {least:.2f} ({'dark' if dark else 'light'})"


def test_the_browser_would_have_told(browser: Page, tmp_path: Path) -> None:
    """The checks above can fail: a page that logs, throws and asks for an image is caught at each of the three."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<script>console.error('oh'); nothing()</script><img src='http://127.0.0.1:9/x.png'>",
        encoding="utf-8",
    )
    browser.open(bad.as_uri(), 800)
    told = " ".join(browser.complaints())
    assert "console.error" in told and "exception" in told
    assert "http://127.0.0.1:9/x.png" in browser.requests()
