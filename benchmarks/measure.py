"""Fair timing on a noisy machine: opponents take turns, and what counts is the ratio within a round."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
CORPORA = Path(os.environ.get("MIXWRIGHT_CORPORA", Path(__file__).parents[2] / "shared" / "corpora"))
"""The real corpora that benchmarks read: $MIXWRIGHT_CORPORA, or `shared/corpora` beside the checkout."""


@dataclass(frozen=True)
class Timing:
    """CPU and wall seconds of each round of one contestant; CPU time is of this process, all threads."""

    cpu: tuple[float, ...]
    wall: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Median CPU seconds of a round."""
        return statistics.median(self.cpu)

    def ratio(self, other: Timing) -> float:
        """Median over rounds of other / self: above 1 when this one is faster."""
        return statistics.median(b / a for a, b in zip(self.cpu, other.cpu, strict=True))


def paired(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int = 5, warmup: int = 1
) -> dict[str, Timing]:
    """Run the contestants in turn, `warmup` rounds uncounted and then `rounds` counted ones."""
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(warmup + rounds):
        for name, work in contestants.items():
            began_cpu, began_wall = time.process_time(), time.perf_counter()
            work()
            if round_number >= warmup:
                cpu[name].append(time.process_time() - began_cpu)
                wall[name].append(time.perf_counter() - began_wall)
    return {name: Timing(tuple(cpu[name]), tuple(wall[name])) for name in contestants}


def machine(*packages: str) -> str:
    """One line: processor, cores, system load, Python, and the versions of `packages`."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    versions = [f"{name} {_version(name)}" for name in packages]
    load = f"load {os.getloadavg()[0]:.1f}"
    return ", ".join(
        [f"{model}, {os.cpu_count()} cores", load, f"Python {platform.python_version()}", *versions]
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def publish(section: str, text: str, *, write: bool, document: Path = DOCUMENT) -> None:
    """Print `text`; with `write`, also put it into docs/benchmarks.md in place of the section of that name."""
    print(text)
    if not write:
        return
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    block = f"{begin}\n{text.strip()}\n{end}\n"
    page = document.read_text(encoding="utf-8") if document.exists() else "# Benchmarks\n"
    if begin in page and end in page:
        before, rest = page.split(begin, 1)
        after = rest.split(end, 1)[1].lstrip("\n")
        page = before.rstrip("\n") + "\n\n" + block + ("\n" + after if after else "")
    else:
        page = page.rstrip("\n") + "\n\n" + block
    document.write_text(page, encoding="utf-8")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
