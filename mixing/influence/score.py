"""Benefit of every document for every probe: `score(model, documents, directions)`.

An engine is chosen by precision and number of directions and must first agree with the exact reference on a
pilot; where it does not, the next one is taken, down to one backward pass for each document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from curation.errors import RecipeError
from curation.memory import keep_freed_memory
from curation.progress import progress
from mixing.influence.adapters import adapt, scoring
from mixing.influence.decoder_pass import DecoderPass
from mixing.influence.directions import Direction
from mixing.influence.documents import (
    BatchPlan,
    Reduction,
    Tokenized,
    Windows,
    check_vocabulary,
)
from mixing.influence.finite_difference import FiniteDifference
from mixing.influence.scorers import Vectors, check_directions, score_plan
from mixing.influence.texts import Samples, as_documents, document_keys
from mixing.influence.trial import Trial

Engine = Literal[
    "auto",
    "forward",
    "ghost",
    "ghost_low_rank",
    "finite_difference",
    "finite_difference_one_sided",
    "explicit",
]
ENGINES: tuple[str, ...] = Engine.__args__  # type: ignore[attr-defined]
PILOT_DOCUMENTS = 32
Precision = Literal["model", "bfloat16"]

BENEFIT_SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("source", pa.string()),
        ("capability", pa.string()),
        ("reference", pa.string()),
        ("checkpoint", pa.int64()),
        ("tokens", pa.int64()),
        ("benefit", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Scores:
    """Benefits [n, k] of n documents for k probes; positive lowers the probe's loss.

    tokens : scored targets of each document, the s_x of Eq. 6
    record : engine, reduction, precision, context, directions, pilot agreement and cost, for the JSON
             beside a table
    """

    documents: tuple[str, ...]
    sources: tuple[str, ...]
    probes: tuple[str, ...]
    tokens: np.ndarray
    benefit: np.ndarray
    record: dict[str, Any] = field(default_factory=dict)

    def table(self, probe: str | None = None, *, reference: str = "", checkpoint: int = 0) -> pa.Table:
        """One row per document for one probe (or, one after the other, for all), columns of `BENEFIT_SCHEMA`."""
        if probe is None:
            return pa.concat_tables(
                [self.table(p, reference=reference, checkpoint=checkpoint) for p in self.probes]
            )
        count = len(self.documents)
        columns = [
            list(self.documents),
            list(self.sources),
            [probe] * count,
            [reference] * count,
            [checkpoint] * count,
            self.tokens,
            self.benefit[:, self.probes.index(probe)],
        ]
        return pa.table(
            [pa.array(c, t) for c, t in zip(columns, BENEFIT_SCHEMA.types, strict=True)],
            schema=BENEFIT_SCHEMA,
        )


def score(
    model: nn.Module,
    documents: Samples,
    directions: Mapping[str, Direction | Vectors],
    *,
    engine: Engine = "auto",
    reduction: Reduction = "mean",
    context: int = 1024,
    windows: Windows = "first",
    batch_tokens: int = 4096,
    pilot_documents: int = PILOT_DOCUMENTS,
    label: str | None = None,
    precision: Precision = "model",
    pack: bool = False,
    tokenizer: Any = None,
) -> Scores:
    """benefit(x) = grad L(x)' v for each document x and direction v.

    documents : as token ids, or texts (with the model's `tokenizer`), or records `{"text", "id"?, "source"?}`

    reduction : L(x) is the "mean" over the document's targets (the paper's Eq. 6 then multiplies by their
                number) or their "sum"
    context   : rows of at most this many tokens; `windows` "first" scores the first row of a document only,
                "all" scores all of it, later rows without what came before; how many documents are cut is in
                the record. Never more than the model has positions for.
    engine    : "auto" tries engines from the cheapest on until one agrees with the exact reference on a
                pilot: in float32 and for one direction that is a central finite difference (2 F), for several
                or in bfloat16 ghost products with directions of low rank, whose rank is raised until they
                agree. A named engine is used whatever the pilot says; the agreement is stored.
    precision : of the engine's matrix products: the "model"'s own, or "bfloat16", which on processors that
                multiply it faster makes a pass cheaper than a float32 one; the reference stays float32
    pack      : several documents in one row, kept apart by the attention mask, where engine and model can
                (else a note says so). Worth it for short documents on a GPU; on a CPU sorting by length, which
                is done anyway, leaves little padding to save.
    label     : shows progress under this name
    Raises DataError for token ids outside the vocabulary, a direction that is zero, and losses that are not
    finite.
    """
    if engine not in ENGINES:
        raise RecipeError(f"There is no engine {engine!r}", remedy=f"Choose one of {', '.join(ENGINES)}")
    if precision not in ("model", "bfloat16"):
        raise RecipeError(f"There is no precision {precision!r}", remedy="Choose model or bfloat16")
    dtype = torch.bfloat16 if precision == "bfloat16" else None
    adapter = adapt(model)
    if adapter.device.type == "cpu":
        keep_freed_memory()
    asked, context = context, adapter.context(context)
    documents = as_documents(documents, tokenizer, adapter.vocabulary, with_end=True, what="samples")
    check_vocabulary(documents, adapter.vocabulary)
    vectors = [d.vectors if isinstance(d, Direction) else d for d in directions.values()]
    check_directions(vectors)

    def plan_of(chosen: Sequence[Tokenized], packed: bool = False) -> BatchPlan:
        return BatchPlan(
            chosen,
            context=context,
            windows=windows,
            reduction=reduction,
            batch_tokens=batch_tokens,
            device=adapter.device,
            pack=packed,
        )

    plan = plan_of(documents)
    with scoring(adapter):
        trial = Trial(adapter, vectors, documents, plan_of, pilot_documents, plan.longest, dtype)
        scorer, agreed, notes = trial.choose(engine)
        notes += _shared(documents, directions)
        if context < asked:
            notes.append(f"The model has positions for {context} tokens: rows are of so many, not of {asked}")
        if pack and scorer.packs:
            plan = plan_of(documents, True)
        elif pack:
            notes.append(
                f"The {scorer.name} engine reads one document in a row of this model: nothing is packed"
            )
        with _progress(label, plan) as advance:
            benefit = score_plan(scorer, plan, len(vectors), advance)
    forward_tokens = trial.forward_tokens + scorer.forwards * plan.read_tokens
    record = {
        "engine": scorer.name,
        "forwards_per_token": scorer.forwards,
        "step": scorer.step if isinstance(scorer, FiniteDifference) else None,
        "reduction": reduction,
        "dtype": str(dtype or adapter.dtype).removeprefix("torch."),
        "pass": "decoder" if isinstance(scorer, DecoderPass) else "model",
        "packed": pack and scorer.packs,
        "context": context,
        "windows": windows,
        "documents": len(documents),
        "documents_cut": len(plan.cut),
        "directions": {n: d.record() for n, d in directions.items() if isinstance(d, Direction)},
        "pilot": agreed.record() if agreed else None,
        "forward_tokens": forward_tokens,
        "flops": 2.0 * sum(p.numel() for p in adapter.parameters()) * forward_tokens,
        "notes": notes,
    }
    return Scores(
        tuple(d.id for d in documents),
        tuple(d.source for d in documents),
        tuple(directions),
        plan.counts,
        benefit,
        record,
    )


def _shared(documents: Sequence[Tokenized], directions: Mapping[str, Direction | Vectors]) -> list[str]:
    """A note for each probe that has documents among the samples: they praise themselves."""
    keys = {n: d.probe_keys for n, d in directions.items() if isinstance(d, Direction) and d.probe_keys}
    found: dict[str, list[str]] = {name: [] for name in keys}
    for document in documents if keys else ():
        own = document_keys(document)
        for name, of_probe in keys.items():
            if not of_probe.isdisjoint(own):
                found[name].append(document.id)
    return [
        f"{len(ids)} samples are documents of the probe {name} too, among them {ids[0]}"
        for name, ids in found.items()
        if ids
    ]


@contextmanager
def _progress(label: str | None, plan: BatchPlan) -> Iterator[Callable[[float], None] | None]:
    if label is None:
        yield None
        return
    with progress(label, total=plan.read_tokens, unit="tokens") as task:
        yield task.advance
