"""How much of each task stands in the training text, and the scores of what does and does not.

The rule is that of `curation.decontaminate`: a question is *dirty* when the corpus, in whatever documents, holds at
least half of the runs of 13 words of its text (question alone, question with choices, or reference answer, whichever
is found most). One of which no text has 8 words cannot be told from common phrases, and is counted and scored apart.
A dirty score above the clean one is a hint and no proof: questions that are copied often may be easier ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curation.documents import Document
from curation.overlap_index import SHORTEST_REFERENCE, WORDS, ReferenceIndex
from curation.progress import status_line
from probes.choice_scores import wilson_interval
from probes.intervals import RESAMPLES, percentile_interval, ratio_draws
from probes.metric_values import metric_values, rows_by_question
from probes.split_by_overlap import HALF
from probes.task_record import Item

CONTAMINATION_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("side", pa.string(), nullable=False),
        pa.field("share", pa.float64()),
    ]
)
"""A row a question: clean, dirty or too_short, and the share of its runs of words that the corpus holds."""
SIDES = ("clean", "dirty", "too_short")


@dataclass(frozen=True)
class Overlap:
    """What the corpus holds of the questions of one task: `shares` by id, None for those that are too short."""

    shares: Mapping[str, float | None]
    documents: int

    def side(self, name: str) -> str:
        share = self.shares[name]
        return "too_short" if share is None else "dirty" if share >= HALF else "clean"

    def table(self) -> pa.Table:
        rows = [{"id": name, "side": self.side(name), "share": share} for name, share in self.shares.items()]
        return pa.Table.from_pylist(rows, CONTAMINATION_SCHEMA)

    def counts(self) -> dict[str, int]:
        """Questions of each side; of `touched` ones any run occurs, the dirty ones included."""
        sides = [self.side(name) for name in self.shares]
        found = {side: sides.count(side) for side in SIDES}
        return found | {"touched": sum(bool(share) for share in self.shares.values())}


def find_overlaps(
    tasks: Mapping[str, Sequence[Item]], training: Iterable[Document], *, words: int = WORDS
) -> dict[str, Overlap]:
    """One pass over `training` for the questions of all tasks; memory is that of the questions."""
    texts: dict[tuple[str, str], list[str]] = {}
    references = []
    for task, items in tasks.items():
        for item in items:
            for number, text in enumerate(dict.fromkeys(item.searched)):
                key = f"{number}/{item.id}"
                references.append(Document(key, text, task))
                texts.setdefault((task, item.id), []).append(key)
    index = ReferenceIndex(references, words=words, shortest=min(SHORTEST_REFERENCE, words))
    documents = 0
    with status_line() as line:
        for document in training:
            documents += 1
            index.overlaps(document)  # the index remembers which runs it has seen
            line.show(lambda read=documents: f"looking for the questions: {read:,} documents read")  # type: ignore[misc]
    found = {(source, key): share for source, key, share in index.item_shares()}
    result = {}
    for task, items in tasks.items():
        shares: dict[str, float | None] = {}
        for item in items:
            known = [found[task, key] for key in texts.get((task, item.id), []) if (task, key) in found]
            shares[item.id] = max(known, default=None)
        result[task] = Overlap(shares, documents)
    return result


def split_scores(
    records: pa.Table, forms: Iterable[str], overlap: Overlap, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, dict[str, dict[str, float] | None]]]:
    """By form, metric and side ("all", "clean", "dirty", "too_short"): value, low, high (95 %) and questions.

    Shares of right answers have Wilson's interval, everything else a bootstrap over questions, which one question does
    not have. None where a side has no question.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for form in forms:
        rows = rows_by_question(records, form)
        sides = {"all": list(rows)} | {
            side: [name for name in rows if overlap.side(name) == side] for side in SIDES
        }
        result[form] = {}
        for side, names in sides.items():
            values = metric_values([rows[name] for name in names]) if names else {}
            for metric, (upper, weight) in values.items():
                result[form].setdefault(metric, dict.fromkeys(sides))
                result[form][metric][side] = _mean(upper, weight, seed, resamples)
    return result


def _mean(upper: np.ndarray, weight: np.ndarray, seed: int, resamples: int) -> dict[str, float]:
    found = {"value": float(upper.sum() / weight.sum()), "questions": len(upper)}
    if (weight == 1).all() and np.isin(upper, (0.0, 1.0)).all():
        found["low"], found["high"] = wilson_interval(int(upper.sum()), len(upper))
    elif len(upper) > 1:
        draws = ratio_draws(upper[None], weight, seed=seed, resamples=resamples)[:, 0]
        found["low"], found["high"] = percentile_interval(draws, 0.95)
    return found
