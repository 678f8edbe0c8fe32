"""Verdicts of a bfloat16 or int8 pass that are those of float32: what lies near the cut is scored again.

How far a format may be off is measured: a random sample of the source is scored in float32 too, and the largest
difference times `SAFETY` is the band. Every document whose verdict could change within the band is scored in the
next finer format: after int8 in bfloat16, whose own band is narrower, and what that leaves open in float32. Each of
those is one more measured difference; should one of them show that a band is too narrow, it is widened and the
search repeated. Verdicts then equal those of a float32 pass unless the error of a document outside exceeds `SAFETY`
times the largest one measured.

The sample does not grow with the source: that a document's error exceeds the largest of n drawn at random has a
chance of at most 1 / (n + 1), and the band is three times that largest.

float32 itself is not exact: a score depends on the texts that it was padded beside by about 1e-6 of its size. The
documents so near to the cut that this could decide are counted (`knife_edge`).

The finer scores are score tables of their own, `<name>_bfloat16.parquet` and `<name>_float32.parquet`: a later
threshold scores only what its own band has and the tables lack. `<name>_recheck.json` states what was measured.
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
from curation.judge_scores import Score
from curation.score_tables import score_source, share_of
from curation.scorer import Scorer

SAFETY = 3.0
SAMPLE_SHARE, SAMPLE_LEAST, SAMPLE_MOST = 0.01, 32, 64
_FLOAT32_NOISE = 1e-5


@dataclass(frozen=True)
class Recheck:
    """What was measured for one source and rule; scores are raw scores of the classifier.

    first     : format of the pass over all documents, `bfloat16` or `int8`
    documents : of the source;  sample : of them, drawn by id, scored in every format before anything else
    rechecked : scored in float32 too, the sample among them;  halfway : in bfloat16 too, after an int8 pass
    largest   : difference between the first format and the finest that a document was scored in
    deviation : standard deviation of the first format's difference from float32 over the sample
    band      : `safety` x `largest`, the half-width around the cut outside which the first format decides
    halfway_band : of bfloat16 after an int8 pass, else 0
    widened   : how often a rechecked document showed that a band had been too narrow
    knife_edge : documents whose float32 score is within float32's own noise of the cut (of `top X`, besides the
                 one at the cut)
    """

    rule: str
    first: str
    documents: int
    sample: int
    rechecked: int
    halfway: int
    largest: float
    deviation: float
    safety: float
    band: float
    halfway_band: float
    widened: int
    knife_edge: int

    def sentence(self, source: str) -> str:
        """What a report says about it."""
        between = finer = ""
        if self.first == "int8":
            between = f"{self.halfway} were scored in bfloat16 too and "
            finer = f" in bfloat16, and within {self.halfway_band:.2g}"
        return (
            f"{source}: the educational score was computed in {self.first}; of {self.documents} documents {between}"
            f"{self.rechecked}, {self.sample} of them a random sample, were scored in float32 too. The largest "
            f"difference was {self.largest:.2g}; every document within {self.band:.2g} of the cut of `{self.rule}` "
            f"({self.safety:g} times that) was decided{finer} in float32."
        )


@dataclass(frozen=True)
class Decision:
    """`passing`: `id, educational_score` of what passes, sorted by id. `scores`: the whole table with float32
    scores (or bfloat16's) where there are any, and `educational_bits`. `recheck` is None when every score was float32
    already.
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
    sample: int | None = None,
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
    safety: float = SAFETY,
    sample: int | None = None,
) -> Decision:
    """Apply `rule` to one source as a float32 pass would.

    table  : the scorer's; a float32 table is simply decided
    folder : of the source's score tables
    score  : gives the table of a scorer for the ids of a frame, as `score_files` for one source does
    sample : documents that are scored in every format; by default 1 % of the source, from 32 to 64
    """
    wanted = ["id", "educational_score"]
    decided = "educational_bits" not in table.columns or rule.kind == "all"
    if decided or not isinstance(scorer, EducationalClassifier):
        return Decision(passing(table.select(wanted), rule), table, None)
    table = table.sort("id")
    ids = table["id"].to_list()
    passes = _Passes(table, scorer, score, safety)
    drawn = _draw(ids, passes.bits < 32, sample)
    if drawn:
        passes.sample(drawn)
    while (open_ := passes.undecided(rule)).any():
        passes.refine(open_)
    scores, bits = passes.scores, passes.bits
    whole = pl.DataFrame(
        {
            "id": ids,
            "educational_score": scores.astype(np.float32),
            "educational_bits": bits.astype(np.float32),
        },
        schema_overrides={"id": pl.String},
    )
    chosen = passes.rough & (bits == 32)
    near = np.abs(scores - _cut(scores, rule)) < _FLOAT32_NOISE if chosen.any() else chosen
    edge = int((near & chosen).sum()) - (1 if rule.kind == "top" and chosen.any() else 0)
    first = scorer.bits
    report = Recheck(
        str(rule), scorer.resolved, len(ids), len(drawn), int(chosen.sum()), passes.halfway, passes.largest[first],
        passes.deviation, safety, safety * passes.largest[first],
        safety * passes.largest[16] if first == 8 else 0.0, max(passes.widened, 0), max(edge, 0),
    )  # fmt: skip
    write_json(Path(folder) / f"{scorer.name}_recheck.json", asdict(report))
    return Decision(passing(whole.select(wanted), rule), whole, report)


class _Passes:
    """The best score that each document has so far, and how far each format has been seen to be off."""

    def __init__(
        self, table: pl.DataFrame, scorer: EducationalClassifier, score: Score, safety: float
    ) -> None:
        self.table, self.score, self.safety = table, score, safety
        self.finer: dict[int, tuple[int, EducationalClassifier]] = {16: (32, scorer.in_float32())}
        if scorer.bits == 8:
            self.finer[8] = (16, scorer.in_bfloat16())
        self.scores = table["educational_score"].to_numpy().astype(np.float64)
        self.bits = table["educational_bits"].to_numpy().astype(np.int64)
        self.rough = self.bits < 32
        self.by_format = {bits: np.where(self.bits == bits, self.scores, np.nan) for bits in (8, 16)}
        self.largest, self.widened, self.deviation, self.halfway = {8: 0.0, 16: 0.0}, 0, 0.0, 0

    def sample(self, rows: Sequence[int]) -> None:
        """Score the sample's rows in every finer format."""
        chosen, first = np.zeros(len(self.bits), dtype=bool), self.scores.copy()
        chosen[list(rows)] = True
        while (rough := chosen & (self.bits < 32)).any():
            self.refine(rough)
        self.deviation = float(np.sqrt(np.mean((self.scores - first)[chosen] ** 2)))
        self.widened = 0

    def refine(self, chosen: np.ndarray) -> None:
        """Score each of the `chosen` in the next finer format than it has, and look how far the others were off."""
        now = self.bits.copy()
        for bits, (finer, scorer) in self.finer.items():
            rows = chosen & (now == bits)
            if not rows.any():
                continue
            found = self.score(scorer, self.table.filter(pl.Series(rows)).select("id"))
            self.scores[rows], self.bits[rows] = found["educational_score"].to_numpy(), finer
            if finer == 16:
                self.by_format[16][rows] = self.scores[rows]
                self.halfway += int(rows.sum())
        before = dict(self.largest)
        for bits, values in self.by_format.items():
            differences = np.abs(values - self.scores)[(self.bits > bits) & np.isfinite(values)]
            if len(differences):
                self.largest[bits] = max(self.largest[bits], float(differences.max()))
        self.widened += any(self.largest[bits] > before[bits] for bits in before)

    def undecided(self, rule: EducationalRule) -> np.ndarray:
        """Documents whose verdict could change within the band of the format that they have; boolean [n]."""
        bands = np.select(
            [self.bits == bits for bits in self.largest],
            [self.safety * off for off in self.largest.values()],
            0.0,
        )
        return undecided(self.scores, self.bits < 32, rule, bands)


def undecided(
    scores: np.ndarray, rough: np.ndarray, rule: EducationalRule, band: float | np.ndarray
) -> np.ndarray:
    """Which of the `rough` scores could pass or fail when each is off by at most its `band`; boolean [n].

    For `top`, the cut lies between the k-th largest of all lower ends and the k-th largest of all upper ends;
    a rough score whose interval lies beyond that range is decided.
    """
    if not len(scores) or rule.kind == "all":
        return np.zeros(len(scores), dtype=bool)
    if rule.kind != "top":
        return rough & (np.abs(scores - _cut(scores, rule)) <= band)
    width = np.where(rough, band, 0.0)
    kept = share_of(rule.value, len(scores))
    lowest, highest = _largest(scores - width, kept), _largest(scores + width, kept)
    return rough & (scores + band >= lowest) & (scores - band <= highest)


def _cut(scores: np.ndarray, rule: EducationalRule) -> float:
    """The raw score at which the verdict changes; infinite where it never does."""
    if rule.kind == "raw":
        return rule.value
    if rule.kind == "top":
        return _largest(scores, share_of(rule.value, len(scores)))
    least = math.ceil(rule.value)  # int_score is a whole number from 0 to 5
    return least - 0.5 if 1 <= least <= 5 else math.inf


def _largest(values: np.ndarray, rank: int) -> float:
    return float(np.partition(values, len(values) - rank)[len(values) - rank])


def _draw(ids: Sequence[str], rough: np.ndarray, sample: int | None) -> list[int]:
    """Rows of a random sample that depends on nothing but the ids."""
    rows = [int(i) for i in np.flatnonzero(rough)]
    if sample is None:
        sample = min(max(SAMPLE_LEAST, round(SAMPLE_SHARE * len(rows))), SAMPLE_MOST)
    return sorted(rows, key=lambda i: hashlib.sha256(b"recheck\0" + ids[i].encode()).digest())[:sample]
