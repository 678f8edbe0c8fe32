"""Generated tables: text with hardly anything to learn, for a corpus that a good mixture should leave out.

Each table is drawn from a generator seeded by `(seed, index)` alone, so it is the same on every machine.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

_LEVELS = ("DEBUG", "INFO", "INFO", "INFO", "WARN", "ERROR")
_PARTS = ("auth", "cache", "db", "edge", "gateway", "mailer", "queue", "scheduler", "storage", "worker")
_EVENTS = (
    "accepted",
    "closed",
    "evicted",
    "flushed",
    "retried",
    "refused",
    "rotated",
    "started",
    "timed out",
)


@dataclass(frozen=True)
class Table:
    """One generated table: its `kind`, such as `hex_dump`, and its `text` of 1000 to 4000 characters."""

    kind: str
    text: str


def table(seed: int, index: int) -> Table:
    """The table number `index` of the stream `seed`."""
    random = Random(f"table:{seed}:{index}")
    kind = random.choice(sorted(_MAKERS))
    rows = random.randint(20, 45)
    return Table(kind, "\n".join(_MAKERS[kind](random, rows)) + "\n")


def _digits(random: Random, rows: int) -> list[str]:
    return [" ".join(f"{random.randrange(10**5):05d}" for _ in range(10)) for _ in range(rows)]


def _base64(random: Random, rows: int) -> list[str]:
    return [base64.b64encode(random.randbytes(54)).decode() for _ in range(rows)]


def _hex_dump(random: Random, rows: int) -> list[str]:
    start = random.randrange(2**24) * 16
    return [f"{start + 16 * i:08x}  {random.randbytes(16).hex(' ', 1)}" for i in range(rows)]


def _identifiers(random: Random, rows: int) -> list[str]:
    return [f"{random.getrandbits(128):032x},{random.randrange(10**6)}" for _ in range(rows)]


def _log(random: Random, rows: int) -> list[str]:
    second = random.randrange(86400)
    lines = []
    for _ in range(rows):
        second = (second + random.randrange(40)) % 86400
        clock = f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}.{random.randrange(1000):03d}"
        what = f"{random.choice(_PARTS)}[{random.randrange(65536)}] {random.choice(_EVENTS)}"
        lines.append(f"{clock} {random.choice(_LEVELS)} {what} id={random.getrandbits(48):012x}")
    return lines


def _csv(random: Random, rows: int) -> list[str]:
    columns = random.randint(4, 8)
    head = ",".join(f"c{random.randrange(1000)}" for _ in range(columns))
    return [
        head,
        *(",".join(f"{random.uniform(-1e3, 1e3):.4f}" for _ in range(columns)) for _ in range(rows)),
    ]


def _coordinates(random: Random, rows: int) -> list[str]:
    return [f"{random.uniform(-90, 90):+.6f}\t{random.uniform(-180, 180):+.6f}" for _ in range(2 * rows)]


_MAKERS: dict[str, Callable[[Random, int], list[str]]] = {
    "base64": _base64,
    "coordinates": _coordinates,
    "csv": _csv,
    "digits": _digits,
    "hex_dump": _hex_dump,
    "identifiers": _identifiers,
    "log": _log,
}
