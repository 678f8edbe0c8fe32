"""What a page is made of: sections of blocks, as plain records that the template turns into HTML.

Every string in these records is untrusted and is escaped by the template; only `Chart.svg` is markup, and it is made
by `mixing.report.charts` from numbers alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

PALETTE_SIZE = 9
LEVELS = 5


@dataclass(frozen=True)
class Bar:
    """A bar with an interval, on an axis from 0 to 100: left and width of the bar, ends of the whisker."""

    start: float
    width: float
    low: float | None = None
    high: float | None = None
    tone: str = "neutral"


@dataclass(frozen=True)
class Strip:
    """Seeds as dots, their mean and its interval, on an axis from 0 to 100 with the zero somewhere on it."""

    zero: float
    mean: float
    dots: tuple[float, ...]
    low: float | None = None
    high: float | None = None
    tone: str = "neutral"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    text, detail : what it says, and a smaller second line
    tone         : "p1".."p5" and "n1".."n5" colour a heat map; "good", "bad", "quiet", "sure" colour the text
    swatch       : the colour of a source (0-based)
    mark         : a ring around cells that belong together, such as self-influence
    """

    text: str = ""
    detail: str = ""
    tone: str = ""
    swatch: int | None = None
    bar: Bar | None = None
    strip: Strip | None = None
    mark: bool = False


@dataclass(frozen=True)
class Column:
    """A column; `numeric` aligns its cells to the right, `wide` keeps room for a drawing or a sentence."""

    title: str
    numeric: bool = True
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first cell of a row is its heading. `heat` draws filled cells."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    heat: bool = False
    total: bool = False
    legend: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Prose:
    """A paragraph; tone "lead", "note" or "warning"."""

    kind: ClassVar[str] = "prose"
    text: str
    tone: str = "plain"


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Commands or a file, as they are."""

    kind: ClassVar[str] = "code"
    text: str
    label: str = ""


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a colour class ("s0".. for sources, "k0".. for lines) and its name."""

    name: str
    colour: str


@dataclass(frozen=True)
class Chart:
    """A drawing with its heading and a sentence for people who do not see it."""

    title: str
    svg: Markup
    description: str
    swatch: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class Charts:
    """Small multiples that share a legend."""

    kind: ClassVar[str] = "charts"
    charts: tuple[Chart, ...]
    legend: tuple[Key, ...] = ()
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Segment:
    """A part of a stacked bar; `share` of the whole from 0 to 1."""

    name: str
    share: float
    swatch: int
    label: str


@dataclass(frozen=True)
class StackedBars:
    """Mixtures as bars, one under another, in the same colours."""

    kind: ClassVar[str] = "stacked"
    bars: tuple[tuple[str, tuple[Segment, ...]], ...]
    legend: tuple[Key, ...]
    caption: str


@dataclass(frozen=True)
class Excerpt:
    """A document: its figures, its id and the beginning of its text."""

    head: str
    identifier: str
    text: str
    tone: str


@dataclass(frozen=True)
class Excerpts:
    """Documents side by side: the best on the left, the worst on the right."""

    kind: ClassVar[str] = "excerpts"
    left_title: str
    left: tuple[Excerpt, ...]
    right_title: str
    right: tuple[Excerpt, ...]


@dataclass(frozen=True)
class Piece:
    """A stretch of a document: its text, its tone in the diverging scale (`heat`), and its value in words."""

    text: str
    tone: str = ""
    value: str = ""


@dataclass(frozen=True)
class Coloured:
    """A document token by token; `said` names the strongest tokens for people who do not see the colours."""

    head: str
    identifier: str
    source: str
    swatch: int
    pieces: tuple[Piece, ...]
    said: str
    tone: str


@dataclass(frozen=True)
class ColouredPair:
    """Documents token by token under a title."""

    kind: ClassVar[str] = "coloured"
    title: str
    documents: tuple[Coloured, ...]


@dataclass(frozen=True)
class Facts:
    """Names with values, as a definition list."""

    kind: ClassVar[str] = "facts"
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Disclosure:
    """Blocks that open on demand; tone "warning" or none."""

    kind: ClassVar[str] = "disclosure"
    summary: str
    blocks: tuple[Block, ...]
    open: bool = False
    swatch: int | None = None
    tone: str = ""


Block = Table | Prose | Bullets | Code | Charts | StackedBars | Excerpts | ColouredPair | Facts | Disclosure


@dataclass(frozen=True)
class Section:
    """A part of the page; `missing` says how to make it when its files are absent."""

    anchor: str
    title: str
    group: str
    blocks: tuple[Block, ...] = ()
    missing: str = ""
    command: str = ""


@dataclass(frozen=True)
class Palette:
    """The colour of each source: the same on the whole page, whatever a table's order."""

    order: tuple[str, ...] = ()
    index: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(names: tuple[str, ...]) -> Palette:
        """Colours in the order of the names."""
        return Palette(names, {name: at for at, name in enumerate(names)})

    def of_source(self, name: str) -> int:
        """The colour's number; names that came up late share those after the last."""
        return self.index.get(name, len(self.order)) % (2 * PALETTE_SIZE)

    def key(self, name: str) -> Key:
        """Its entry in a legend."""
        return Key(name, f"s{self.of_source(name)}")

    def numbered_key(self, name: str) -> Key:
        """Its entry in the legend of a drawing whose points are numbered."""
        return Key(f"{self.of_source(name) + 1} {name}", f"s{self.of_source(name)}")

    def name_cell(self, name: str) -> Cell:
        """Its cell at the head of a row."""
        return Cell(name, swatch=self.of_source(name))

    def sort(self, names: set[str] | frozenset[str]) -> list[str]:
        """Names in the page's order of sources, the unknown ones after them by name."""
        return sorted(names, key=lambda name: (self.index.get(name, len(self.order)), name))


# Control characters other than tab and newline, marks that turn the direction of what follows, halves of surrogates.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """A text in which every character that cannot be seen, or that hides others, is a replacement character.

    >>> visible("a\\u202eb")
    'a\ufffdb'
    """
    return _UNSEEN.sub("\ufffd", text)


def heat(value: float | None, largest: float) -> str:
    """The tone of a signed value in a diverging scale that is centred at 0: "p3", "n1", or "" for nothing.

    >>> heat(0.5, 1.0), heat(-1.0, 1.0), heat(0.0, 1.0)
    ('p3', 'n5', '')
    """
    if value is None or value != value or largest <= 0 or value == 0:
        return ""
    level = min(LEVELS, max(1, -int(-LEVELS * abs(value) / largest // 1)))
    return f"{'p' if value > 0 else 'n'}{level}"
