"""Verdicts of a bfloat16 pass that are those of float32: what lies near the cut is scored again.

How far bfloat16 may be off is measured: a random sample of the source is scored in both formats, and the largest
difference times `SAFETY` is the band. Every document whose verdict could change within the band is scored in
float32. Each of those is one more measured difference; should one of them show that the band is too narrow, it is
widened and the search repeated. Verdicts then equal those of a float32 pass unless the error of a document outside
exceeds `SAFETY` times the largest one measured.

float32 itself is not exact: a score depends on the texts that it was padded beside by about 1e-6 of its size. The
documents so near to the cut that this could decide are counted (`knife_edge`).

The float32 scores are a score table of their own, `<name>_float32.parquet`: a later threshold scores only what
its own band has and the table lacks. `<name>_recheck.json` states what was measured.
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
SAMPLE_SHARE, SAMPLE_LEAST, SAMPLE_MOST = 0.01, 32, 512
_FLOAT32_NOISE = 1e-5


@dataclass(frozen=True)
class Recheck:
    """What was measured for one source and rule; scores are raw scores of the classifier.

    documents : of the source;  sample : of them, drawn by id, scored in both formats before anything else
    largest   : difference between the formats over all `rechecked` documents (the sample among them)
    deviation : standard deviation of the difference over the sample
    band      : `safety` x `largest`, the half-width around the cut inside which float32 decides
    widened   : how often a rechecked document showed that the band had been too narrow
    knife_edge : documents whose float32 score is within float32's own noise of the cut (of `top X`, besides the
                 one at the cut)
    """

    rule: str
    documents: int
    sample: int
    rechecked: int
    largest: float
    deviation: float
    safety: float
    band: float
    widened: int
    knife_edge: int

    def sentence(self, source: str) -> str:
        """What a report says about it."""
        return (
            f"{source}: the educational score was computed in bfloat16; {self.rechecked} of {self.documents} "
            f"documents, {self.sample} of them a random sample, were scored in float32 too. The largest difference "
            f"was {self.largest:.2g}; every document within {self.band:.2g} of the cut of `{self.rule}` "
            f"({self.safety:g} times that) was decided in float32."
        )


@dataclass(frozen=True)
class Decision:
    """`passing`: `id, educational_score` of what passes, sorted by id. `scores`: the whole table with float32
    scores where there are any, and `educational_bits`. `recheck` is None when every score was float32 already.
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
    sample : documents that are scored in both formats; by default 1 % of the source, from 32 to 512
    """
    wanted = ["id", "educational_score"]
    decided = "educational_bits" not in table.columns or rule.kind == "all"
    if decided or not isinstance(scorer, EducationalClassifier):
        return Decision(passing(table.select(wanted), rule), table, None)
    table = table.sort("id")
    bits = table["educational_bits"].to_numpy()
    first = table["educational_score"].to_numpy().astype(np.float64)
    rough = bits < 32
    ids = table["id"].to_list()
    drawn = _draw(ids, rough, sample)
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[drawn] = True
    scores, largest, widened, deviation = first.copy(), 0.0, -1, 0.0
    while chosen.any():
        exact = score(scorer.in_float32(), table.filter(pl.Series(chosen)).select("id"))
        scores[chosen] = exact["educational_score"].to_numpy()
        errors = np.abs(scores - first)[chosen]
        if widened < 0:
            deviation = float(np.sqrt(np.mean(errors**2)))
        if errors.max() > largest:
            largest, widened = float(errors.max()), widened + 1
        more = undecided(scores, rough & ~chosen, rule, safety * largest)
        if not more.any():
            break
        chosen |= more
    bits = np.where(chosen, 32, bits).astype(np.float32)
    whole = pl.DataFrame(
        {"id": ids, "educational_score": scores.astype(np.float32), "educational_bits": bits},
        schema_overrides={"id": pl.String},
    )
    near = np.abs(scores - _cut(scores, rule)) < _FLOAT32_NOISE if chosen.any() else chosen
    edge = int((near & chosen).sum()) - (1 if rule.kind == "top" and chosen.any() else 0)
    report = Recheck(
        str(rule), len(ids), len(drawn), int(chosen.sum()), largest, deviation, safety, safety * largest,
        max(widened, 0), max(edge, 0),
    )  # fmt: skip
    write_json(Path(folder) / f"{scorer.name}_recheck.json", asdict(report))
    return Decision(passing(whole.select(wanted), rule), whole, report)


def undecided(scores: np.ndarray, rough: np.ndarray, rule: EducationalRule, band: float) -> np.ndarray:
    """Which of the `rough` scores could pass or fail when each is off by at most `band`; boolean [n].

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
