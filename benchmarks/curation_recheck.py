"""How many verdicts a recheck leaves changed, and what it takes, when the errors' law is known: a simulation.

Exact scores are uniform from 2.8 to 5.2, which is as dense at the cut of 4 as those of the section `classifier`; rough
ones are 0.03 higher, steeper by 0.02, and off by 0.022 times a number of the named law. What `recheck.decide` does
with them is all its own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from benchmarks.measure import publish, table
from curation.educational import EducationalClassifier, EducationalRule, passing
from curation.recheck import RISK, Recheck, decide

SCALE = 0.022
REPEATS = {1000: 200, 10_000: 40}
"""Documents -> how many sources of so many."""

Noise = Callable[[np.random.Generator, int], np.ndarray]


def _larger(share: float, times: float) -> Noise:
    return lambda chance, n: chance.standard_normal(n) * np.where(chance.random(n) < share, times, 1.0)


LAWS: dict[str, Noise] = {
    "normal": lambda chance, n: chance.standard_normal(n),
    "uniform": lambda chance, n: chance.uniform(-(3**0.5), 3**0.5, n),
    "Laplace": lambda chance, n: chance.laplace(size=n) / 2**0.5,
    "Student's t, 5": lambda chance, n: chance.standard_t(5, n),
    "Student's t, 3": lambda chance, n: chance.standard_t(3, n),
    "Student's t, 2": lambda chance, n: chance.standard_t(2, n),
    "5 % 4 times as large": _larger(0.05, 4),
    "1 % 5 times as large": _larger(0.01, 5),
    "0.2 % 10 times as large": _larger(0.002, 10),
    "exponential (one-sided)": lambda chance, n: chance.exponential(size=n) - 1,
    "log-normal (one-sided)": lambda chance, n: np.exp(0.7 * chance.standard_normal(n)) - np.exp(0.245),
}
"""Errors in units of `SCALE`; the uniform and the one-sided ones are none of the laws that a recheck thinks of."""


def recheck(*, write: bool, scratch: Path | None = None) -> None:
    """The table of all laws and sizes; lines that are in `scratch` are not made again."""
    header = [
        "errors",
        "documents",
        "sources",
        "in float32 too",
        "rounds",
        "changed alone",
        "changed",
        "with any",
    ]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if scratch is None else scratch
        place.mkdir(parents=True, exist_ok=True)
        for documents, repeats in REPEATS.items():
            for number, law in enumerate(LAWS):
                path = place / f"{documents}_{number}.json"
                if not path.exists():
                    path.write_text(json.dumps(_line(law, documents, repeats)))
                rows.append([law, f"{documents:,}", repeats, *json.loads(path.read_text())])
    heading = (
        "## Verdicts that a recheck leaves changed, simulated\n\n"
        "Sources of made-up scores, 42 % of which lie within 0.5 of the cut `raw > 4`, with errors of a scale of "
        f"{SCALE} and of the named law, and a systematic part. The recheck's goal is {RISK} changed verdicts for "
        "each source. Changed verdicts are means over the sources; alone is without a recheck; the last column is "
        "the share of sources with any.\n\n"
    )
    publish("curation: recheck", heading + table(header, rows), write=write)


def _line(law: str, documents: int, repeats: int) -> list[str]:
    counts = []
    for seed in range(repeats):
        chance = np.random.default_rng(seed)
        exact = chance.uniform(2.8, 5.2, documents)
        rough = exact + 0.03 + 0.02 * (exact - 4) + SCALE * LAWS[law](chance, documents)
        report, changed = rechecked(EducationalRule("raw", 4), exact, rough, "int8")
        alone = int(((exact > 4) != (rough > 4)).sum())
        counts.append((report.rechecked / documents, report.rounds, alone, changed, changed > 0))
    share, rounds, alone_, changed_, any_ = np.mean(counts, axis=0)
    return [
        f"{100 * share:.1f} %",
        f"{rounds:.1f}",
        f"{alone_:.1f}",
        f"{changed_:.3f}",
        f"{100 * any_:.1f} %",
    ]


def rechecked(
    rule: EducationalRule, exact: np.ndarray, rough: np.ndarray, precision: Literal["bfloat16", "int8"]
) -> tuple[Recheck, int]:
    """What a recheck of `rough` scores did, and how many verdicts differ from those of `exact` ones."""
    ids = [f"{i:06d}" for i in range(len(exact))]
    values = exact.astype(np.float32)
    truth = pl.DataFrame({"id": ids, "educational_score": values})
    bits = {"bfloat16": 16.0, "int8": 8.0}[precision]
    frame = truth.with_columns(
        educational_score=pl.Series(rough.astype(np.float32)), educational_bits=pl.lit(bits, pl.Float32)
    )

    def known(other: Any, wanted: pl.DataFrame) -> pl.DataFrame:
        rows = wanted["id"].cast(pl.Int64).to_numpy()
        return wanted.select("id").with_columns(educational_score=pl.Series(values[rows]))

    with tempfile.TemporaryDirectory() as folder:
        scorer = EducationalClassifier("none is loaded", precision=precision)
        decision = decide(frame, rule, scorer, folder, known)
    assert decision.recheck is not None
    passed, true = (set(found["id"].to_list()) for found in (decision.passing, passing(truth, rule)))
    return decision.recheck, len(passed ^ true)
