"""Verdicts of a bfloat16 or int8 pass that are those of float32: what could change is scored again.

A random sample of the source is scored in float32 too. From the differences a law of the format's errors is learnt
(`error_law`): a systematic part, which is taken away, and what is left. The documents nearest to the cut are scored in
float32 until, by that law, at most `RISK` of the others are expected on the wrong side of the cut. Each of them is one
more measured difference, and the law is learnt anew after every round: differences that contradict it make the
search wider, hundreds that agree make it narrower.

The promise: for a source of any size, the expected number of documents on the wrong side is at most `RISK`, and so the
chance that there is any. (Under `top X` one that comes in pushes another out, which makes two changed verdicts.) This
is an average over the laws that what was measured leaves possible. It holds as far as the errors of the documents
beyond are like those of the measured ones, most of which are the nearest to them, and follow laws of the family. A
kind of error that is rarer than one in all that were measured, and larger than heavy tails explain, is not seen.
docs/benchmarks.md has simulations: 0 to 0.09 changed verdicts in sources of 1,000 documents, 0 to 0.18 in those of
10,000, by the law; none with normal errors.

float32 itself is not exact: a score depends on the texts that it was padded beside by about 1e-6 of its size. The
documents so near to the cut that this could decide are counted (`knife_edge`).

The float32 scores are a score table of their own, `<name>_float32.parquet`: a later threshold scores only what it
needs and the table lacks. `<name>_recheck.json` states what was measured. Nothing depends on the order of the
documents or on who scored them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from curation.atomic import write_json
from curation.documents import Document
from curation.educational import EducationalClassifier, EducationalRule, passing
from curation.error_law import ErrorLaw, error_law
from curation.judge_scores import Score
from curation.score_tables import score_source, share_of
from curation.scorer import Scorer

RISK = 0.05
SAMPLE = 32
_FLOAT32_NOISE = 1e-5
_MANY, _STEPS = 200_000, np.geomspace(1e-3, 1e7, 4000)
"""Beyond so many documents their distances are counted in these steps, in units of the law's scale."""


@dataclass(frozen=True)
class Recheck:
    """What was measured for one source and rule; scores are raw scores of the classifier.

    first     : format of the pass over all documents, `bfloat16` or `int8`
    documents : of the source;  sample : of them, drawn by id, scored in float32 before anything else
    rechecked : scored in float32 too, the sample among them;  rounds : in how many steps after the sample
    systematic : the format's error at the cut that was taken away;  deviation : scale of what is left
    largest   : of the measured differences, without the systematic part
    law       : of the differences, the most likely one;  risk : expected number of verdicts that differ from float32's
    band      : distance from the cut of the nearest document that was not scored again, 0 if all were
    knife_edge : documents whose float32 score is within float32's own noise of the cut (of `top X`, besides the
                 one at the cut)
    """

    rule: str
    first: str
    documents: int
    sample: int
    rechecked: int
    rounds: int
    systematic: float
    deviation: float
    largest: float
    law: str
    risk: float
    band: float
    knife_edge: int

    def sentence(self, source: str) -> str:
        """What a report says about it."""
        told = (
            f"{source}: the educational score was computed in {self.first}; of {self.documents} documents "
            f"{self.rechecked}, {self.sample} of them a random sample, were scored in float32 too. "
        )
        if self.rechecked == self.documents:
            return told.strip()
        if self.band > 1e300:
            return f"{told}No score can change a verdict of `{self.rule}`."
        return told + (
            f"The others lie at least {self.band:.2g} from the cut of `{self.rule}`. Differences were "
            f"{self.systematic:.2g}, which was taken away, and up to {self.largest:.2g} around that, with a scale of "
            f"{self.deviation:.2g} ({self.law}); from their law, {self.risk:.2g} verdicts are expected to differ from "
            "float32's."
        )


@dataclass(frozen=True)
class Decision:
    """`passing`: `id, educational_score` of what passes, sorted by id. `scores`: the whole table with float32
    scores where there are any, rough ones without their systematic error where not, and `educational_bits`. `recheck`
    is None when every score was float32 already.
    """

    passing: pl.DataFrame
    scores: pl.DataFrame
    recheck: Recheck | None


def decide_documents(
    documents: Sequence[Document],
    table: pl.DataFrame,
    rule: EducationalRule,
    scorer: Scorer,
    folder: Path | str,
    *,
    sample: int = SAMPLE,
) -> Decision:
    """`decide` for documents in memory; `table` is what `score_source(documents, scorer, folder)` returned."""
    by_id = {document.id: document for document in documents}

    def score(other: Scorer, wanted: pl.DataFrame) -> pl.DataFrame:
        return score_source([by_id[name] for name in wanted["id"].to_list()], other, folder)

    return decide(table, rule, scorer, folder, score, sample=sample)


def decide(
    table: pl.DataFrame,
    rule: EducationalRule,
    scorer: Scorer,
    folder: Path | str,
    score: Score,
    *,
    risk: float = RISK,
    sample: int = SAMPLE,
) -> Decision:
    """Apply `rule` to one source as a float32 pass would.

    table  : the scorer's; a float32 table is simply decided
    folder : of the source's score tables
    score  : gives the table of a scorer for the ids of a frame, as `score_files` for one source does
    risk   : expected number of verdicts that may differ from float32's, above 0
    sample : documents that are scored in float32 whatever their scores
    """
    wanted = ["id", "educational_score"]
    decided = "educational_bits" not in table.columns or rule.kind == "all"
    if decided or not isinstance(scorer, EducationalClassifier):
        return Decision(passing(table.select(wanted), rule), table, None)
    table = table.sort("id")
    search = _Search(table, scorer.in_float32(), score)
    drawn = _draw(table["id"].to_list(), search.open, sample)
    search.measure(drawn)
    while len(rows := search.needed(rule, risk)):
        search.measure(rows)
        search.rounds += 1
    whole = table.select("id").with_columns(
        educational_score=pl.Series(search.best.astype(np.float32)),
        educational_bits=pl.Series(
            np.where(search.measured, 32, table["educational_bits"]).astype(np.float32)
        ),
    )
    report = search.report(rule, scorer.resolved, len(drawn))
    write_json(Path(folder) / f"{scorer.name}_recheck.json", asdict(report))
    return Decision(passing(whole.select(wanted), rule), whole, report)


class _Search:
    """The best score that each document has so far, and the law of the rough ones' errors."""

    def __init__(self, table: pl.DataFrame, exact: EducationalClassifier, score: Score) -> None:
        self.table, self.exact, self.score = table, exact, score
        self.rough = table["educational_score"].to_numpy().astype(np.float64)
        self.best = self.rough.copy()
        self.open = table["educational_bits"].to_numpy() < 32
        self.measured = np.zeros(len(self.open), dtype=bool)
        self.law: ErrorLaw | None = None
        self.rounds, self.risk, self.band = 0, 0.0, 0.0

    def measure(self, rows: np.ndarray) -> None:
        """Score `rows` in float32."""
        if len(rows):
            found = self.score(self.exact, self.table[np.sort(rows)].select("id"))
            self.best[np.sort(rows)] = found["educational_score"].to_numpy()
            self.measured[rows], self.open[rows] = True, False

    def needed(self, rule: EducationalRule, risk: float) -> np.ndarray:
        """The rows to be scored next, nearest to the cut first: at most half as many as were measured so far, since a
        law that was learnt from few differences asks for more than one that was learnt from many.
        """
        rows = np.flatnonzero(self.open)
        self.risk = self.band = 0.0
        if not len(rows) or not self.measured.any():
            return rows
        cut = _cut(self.best, rule)
        self.law = law = error_law(self.rough[self.measured], self.best[self.measured], cut)
        self.best[rows] = law.corrected(self.rough[rows])
        cut = _cut(self.best, rule)
        distance = np.abs(self.best - cut)
        open_ = distance[rows]
        checked = self.open | self.measured  # scores that were reused have no error
        band = _band(distance[checked], law, risk)
        inside = rows[np.argsort(open_, kind="stable")][: int((open_ <= band).sum())]
        if not len(inside):
            self.band = float(min(open_.min(), np.finfo(np.float64).max))
            self.risk = float(law.chance(distance[checked] + self.band).sum())
        return np.asarray(inside[: max(SAMPLE, int(self.measured.sum()) // 2)])

    def report(self, rule: EducationalRule, first: str, sample: int) -> Recheck:
        """What was measured."""
        rough, best = self.rough[self.measured], self.best[self.measured]
        cut, edge, law = _cut(self.best, rule), 0, self.law
        if self.measured.any():
            edge = int((np.abs(best - cut) < _FLOAT32_NOISE).sum()) - (rule.kind == "top" and rule.value < 1)
        return Recheck(
            str(rule), first, len(self.best), sample, int(self.measured.sum()), self.rounds,
            0.0 if law is None else float(law.shift(cut if np.isfinite(cut) else law.centre)),
            0.0 if law is None else law.scale,
            float(np.abs(rough - best - (0.0 if law is None else law.shift(rough))).max(initial=0.0)),
            "" if law is None else law.name, self.risk, self.band, max(edge, 0),
        )  # fmt: skip


def _band(distance: np.ndarray, law: ErrorLaw, risk: float) -> float:
    """The smallest half-width around a cut outside which `risk` documents are expected on the wrong side.

    A document that belongs at `distance` on one side and is seen beyond the band on the other is off by more than
    distance + band. So the sum of these chances over all documents counts those that are seen where they do not
    belong, however differently dense the scores are on both sides.
    """
    count: np.ndarray = np.ones(len(distance))
    narrow, wide = 0.0, float(distance[np.isfinite(distance)].max(initial=0.0))
    if len(distance) > _MANY:  # a little nearer than they are, all of one step together
        steps = np.append(0.0, law.scale * _STEPS)
        count = np.bincount(np.searchsorted(steps, distance, side="right") - 1, minlength=len(steps))
        distance = steps

    def beyond(band: float) -> float:
        return float(np.sum(count * law.chance(distance + band)))

    if beyond(0.0) <= risk:
        return -1.0
    if beyond(wide) > risk:
        return wide
    for _ in range(40):
        middle = (narrow + wide) / 2
        narrow, wide = (narrow, middle) if beyond(middle) <= risk else (middle, wide)
    return wide


def _cut(scores: np.ndarray, rule: EducationalRule) -> float:
    """The raw score at which the verdict changes; infinite where it never does."""
    if rule.kind == "raw":
        return rule.value
    if rule.kind == "top":
        kept = share_of(rule.value, len(scores))
        return _largest(scores, kept) if kept < len(scores) else -math.inf
    least = math.ceil(rule.value)  # int_score is a whole number from 0 to 5
    return least - 0.5 if 1 <= least <= 5 else math.inf


def _largest(values: np.ndarray, rank: int) -> float:
    return float(np.partition(values, len(values) - rank)[len(values) - rank])


def _draw(ids: Sequence[str], rough: np.ndarray, sample: int) -> np.ndarray:
    """Rows of a random sample that depends on nothing but the ids."""
    rows = np.flatnonzero(rough).tolist()
    drawn = sorted(rows, key=lambda i: hashlib.sha256(b"recheck\0" + ids[i].encode()).digest())[:sample]
    return np.array(sorted(drawn), dtype=np.int64)
