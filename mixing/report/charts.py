"""Curves, histograms and scatter plots as small SVG drawings that follow the page's colours, light or dark.

matplotlib draws them with stand-in colours, which become CSS variables afterwards. No text of the run enters a drawing
(names of sources may hold anything, and would be read as formulas besides): titles and legends are HTML.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID, POSITIVE, NEGATIVE = "#010101", "#010102", "#010103", "#010104", "#010105"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", POSITIVE: "positive", NEGATIVE: "negative"}
LINES = 6
SOURCES = 9
MOST_POINTS = 160
LARGEST = 1e30
DASHES: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0, ()),
    (0, (5, 1.6)),
    (0, (1.4, 1.3)),
    (0, (6, 1.5, 1.4, 1.5)),
    (0, (3, 1)),
    (0, (8, 2)),
)

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mixwright",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "path.simplify": True,
    "font.size": 8.5,
    "font.family": "DejaVu Sans",
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "text.color": MUTED,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "xtick.major.width": 0.6,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
}

# The defaults first, so that a user's own matplotlibrc changes nothing; the backend is not touched.
_ALL: Any = {
    **{k: v for k, v in mpl.rcParamsDefault.items() if k not in ("backend", "backend_fallback")},
    **_SETTINGS,
}


@dataclass(frozen=True)
class Line:
    """A curve: x and y of equal length; `colour` is that of the line's key, `faint` for one of many."""

    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    faint: bool = False


def line_colour(index: int) -> str:
    """The stand-in of a line's colour, `--k<index>` on the page."""
    return f"#0200{index % LINES:02x}"


def source_colour(index: int) -> str:
    """The stand-in of a source's colour, `--s<index>` on the page."""
    return f"#0300{index % SOURCES:02x}"


def lines(
    series: Sequence[Line],
    name: str,
    *,
    x_label: str,
    y_label: str = "",
    zero: bool = False,
    y_range: tuple[float, float] | None = None,
    wide: bool = False,
) -> Markup:
    """Curves over a common x; `name` makes the drawing's ids unique on the page."""
    with _panel(wide) as (figure, axes):
        if zero:
            axes.axhline(0, color=MUTED, linewidth=0.8)
        for line in series:
            x, y = thinned(drawable(line.x), drawable(line.y))
            style = DASHES[line.colour % len(DASHES)]
            width, alpha = (0.7, 0.55) if line.faint else (1.5, 1.0)
            marker = "o" if len(x) <= 12 and not line.faint else None
            axes.plot(
                x,
                y,
                color=line_colour(line.colour),
                linestyle="-" if line.faint else style,
                linewidth=width,
                alpha=alpha,
                marker=marker,
                markersize=2.6,
            )
        if y_range is not None and y_range[0] < y_range[1]:
            axes.set_ylim(*drawable(y_range))
        _label(axes, x_label, y_label)
        return _inline(figure, name)


def histogram(
    values: np.ndarray, name: str, *, limits: tuple[float, float], x_label: str, bins: int = 24
) -> Markup:
    """Counts in bins of which one edge is zero, in the colours of help and harm; the outer bins hold the rest."""
    low, high = limits
    width = (high - low) / bins or 1.0
    edges = np.arange(np.floor(low / width), np.ceil(high / width) + 1) * width
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    with _panel() as (figure, axes):
        colours = [POSITIVE if left >= -width / 2 else NEGATIVE for left in edges[:-1]]
        axes.bar(edges[:-1], counts, width=width * 0.92, align="edge", color=colours, linewidth=0)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlim(edges[0], edges[-1])
        _label(axes, x_label, "documents")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        return _inline(figure, name)


def outlines(edges: Sequence[float], counts: Sequence[Sequence[float]], name: str, *, x_label: str) -> Markup:
    """Histograms over common bins laid over each other, as shares of all; the outer bins hold what lies beyond."""
    with _panel() as (figure, axes):
        axes.axvline(0, color=INK, linewidth=0.8)
        for at, row in enumerate(counts):
            values = np.asarray(row, float)
            share = 100 * values / (values.sum() or 1.0)
            axes.stairs(
                share,
                drawable(edges),
                color=line_colour(at),
                linestyle=DASHES[at % len(DASHES)],
                linewidth=1.3,
            )
        _label(axes, x_label, "% of documents")
        return _inline(figure, name)


def scatter(
    x: Sequence[float], y: Sequence[float], colours: Sequence[int], name: str, *, x_label: str, y_label: str
) -> Markup:
    """One point for each source, with both zeros drawn. Points carry their number, since nine colours are many."""
    with _panel() as (figure, axes):
        axes.axhline(0, color=MUTED, linewidth=0.7)
        axes.axvline(0, color=MUTED, linewidth=0.7)
        for a, b, colour in zip(x, y, colours, strict=True):
            axes.plot([a], [b], marker="o", markersize=7, color=source_colour(colour), linewidth=0)
            axes.annotate(str(colour + 1), (a, b), xytext=(5, 4), textcoords="offset points", color=INK)
        axes.margins(0.18)
        _label(axes, x_label, y_label)
        return _inline(figure, name)


@dataclass(frozen=True)
class Dot:
    """A point with what is known of its interval across and up; `strong` ones are larger, in front and outlined."""

    x: float
    y: float
    across: tuple[float, float] | None = None
    up: tuple[float, float] | None = None
    colour: int = 0
    strong: bool = False


MARKERS = ("o", "s", "^", "D", "v", "P")


def dots(
    points: Sequence[Dot],
    name: str,
    *,
    x_label: str,
    y_label: str,
    diagonal: bool = False,
    zero: bool = False,
) -> Markup:
    """Points with intervals in both directions; `diagonal` draws where y equals x, `zero` both zeros."""
    with _panel() as (figure, axes):
        if zero:
            axes.axhline(0, color=MUTED, linewidth=0.7)
            axes.axvline(0, color=MUTED, linewidth=0.7)
        for point in points:
            x, y = drawable([point.x, point.y])
            colour = line_colour(point.colour)
            for ends, flat in ((point.across, True), (point.up, False)):
                if ends is not None:
                    low, high = drawable(ends)
                    draw = axes.hlines if flat else axes.vlines
                    draw([y if flat else x], [low], [high], color=colour, linewidth=0.8, alpha=0.55)
            axes.plot(
                [x],
                [y],
                marker="D" if point.strong else MARKERS[point.colour % len(MARKERS)],
                markersize=6.5 if point.strong else 4,
                color=colour,
                markeredgecolor=INK,
                markeredgewidth=0.9 if point.strong else 0.0,
                linewidth=0,
                zorder=4 if point.strong else 3,
            )
        axes.margins(0.12)
        if diagonal:
            low = max(axes.get_xlim()[0], axes.get_ylim()[0])
            high = min(axes.get_xlim()[1], axes.get_ylim()[1])
            if low < high:
                axes.plot([low, high], [low, high], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.grid(axis="x")
        _label(axes, x_label, y_label)
        return _inline(figure, name)


def drawable(values: Sequence[float]) -> np.ndarray:
    """Values that matplotlib can lay an axis over: those near the ends of float64 overflow its arithmetic."""
    return np.clip(np.asarray(values, float), -LARGEST, LARGEST)


def thinned(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal stretches when there are more points than a small drawing can show; the last point is kept."""
    if len(x) <= most:
        return x, y
    cuts = np.linspace(0, len(x) - 1, most).astype(int)
    means = [np.add.reduceat(values[:-1], cuts[:-1]) / np.diff(cuts) for values in (x, y)]
    return np.append(means[0], x[-1]), np.append(means[1], y[-1])


@contextmanager
def _panel(wide: bool = False) -> Iterator[tuple[Figure, Axes]]:
    """An empty drawing; without pyplot, which keeps figures of the whole process."""
    with mpl.rc_context(_ALL):
        figure = Figure(figsize=(6.4, 2.5) if wide else (3.2, 2.05), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        yield figure, axes


def _label(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer="step" in x_label))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _inline(figure: Figure, name: str) -> Markup:
    """The drawing as an `svg` element for the inside of a page: no prolog, no metadata, no style sheet, own ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    view = re.search(r'viewBox="([^"]+)"', svg)
    opening = (
        f'<svg viewBox="{view.group(1) if view else "0 0 230 148"}" aria-hidden="true" focusable="false">'
    )
    svg = opening + svg[svg.index(">") + 1 :]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m.group(1)}"' if m.group(1) in used else "", svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)([^")]+)', lambda m: f"{m.group(1)}{name}-{m.group(2)}", svg)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r"#0[123]00[0-9a-f]{2}|#01010[1-5]", lambda m: _variable(m.group(0)), svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*; ?|<g/>| transform=\"rotate\(-0 [^\"]*\"", "", svg)
    # Of coordinates two decimals do; the numbers on the axes are text, and are not touched.
    svg = re.sub(r"<[^>]*>", lambda m: re.sub(r"(\d\.\d\d)\d+", r"\1", m.group(0)), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return Markup(svg.strip())


def _variable(stand_in: str) -> str:
    if stand_in in _VARIABLES:
        return f"var(--{_VARIABLES[stand_in]})"
    return f"var(--{'k' if stand_in[2] == '2' else 's'}{int(stand_in[5:], 16)})"
