"""Eq. 5: one benefit per document, over the checkpoints of a reference model and over capabilities.

    I_joint(x) = 1/C sum_c sum_t alpha_{c,t} benefit(x; theta_{c,t}),   alpha_{c,t} = step_t / sum_t step_t

The paper adds the capabilities up; we take their mean, which changes no weight. Example: benefits 1 and 4
at steps 10 and 30 make 1 * 0.25 + 4 * 0.75 = 3.25.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.errors import DataError, RecipeError

CheckpointRule = Literal["step", "learning_rate", "uniform", "last"] | Mapping[int, float]
Normalise = Literal["none", "rms"]


def checkpoint_weights(
    steps: Sequence[int], rule: CheckpointRule, learning_rates: Mapping[int, float] | None = None
) -> dict[int, float]:
    """alpha of each step; they sum to 1.

    "step" is the paper's rule, "learning_rate" is TracIn's (give the rate at each step), "last" keeps the
    last checkpoint, a mapping gives the weights itself.

    >>> checkpoint_weights([10, 30], "step")
    {10: 0.25, 30: 0.75}
    """
    steps = sorted(set(steps))
    if rule == "step":
        raw = {s: float(s) for s in steps}
    elif rule == "uniform":
        raw = dict.fromkeys(steps, 1.0)
    elif rule == "last":
        raw = {s: float(s == steps[-1]) for s in steps}
    elif rule == "learning_rate" or isinstance(rule, Mapping):
        given = rule if isinstance(rule, Mapping) else (learning_rates or {})
        missing = [s for s in steps if s not in given]
        if missing:
            raise RecipeError(
                f"Step {missing[0]} has no {'weight' if isinstance(rule, Mapping) else 'learning rate'}",
                where="influence.checkpoint_weights",
                remedy="Give one for every checkpoint, or choose step or uniform",
            )
        raw = {s: float(given[s]) for s in steps}
    else:
        raise RecipeError(
            f"There is no rule {rule!r} for weighting checkpoints",
            where="influence.checkpoint_weights",
            remedy="Choose step, learning_rate, uniform, last, or give a weight for each step",
        )
    total = sum(raw.values())
    if total <= 0 or min(raw.values()) < 0:
        raise RecipeError(
            "The weights of the checkpoints must not be negative and must not all be zero",
            where="influence.checkpoint_weights",
            remedy="A checkpoint at step 0 cannot stand alone under the rule step",
        )
    return {s: w / total for s, w in raw.items()}


def joint_benefit(
    table: pa.Table,
    *,
    checkpoints: CheckpointRule = "step",
    learning_rates: Mapping[int, float] | None = None,
    capabilities: Sequence[str] | None = None,
    normalise: Normalise = "none",
) -> pa.Table:
    """Columns `document, source, tokens, benefit`, sorted by source and document.

    table        : rows of one reference, as `score` and `influence_at_checkpoints` make them; the
                   checkpoints may differ between capabilities (domain models), the documents may not
    capabilities : those to average over, uniformly; all of the table by default
    normalise    : "rms" divides the benefits at each checkpoint of each capability by their root mean
                   square over all documents, so that no probe and no checkpoint outweighs others by the
                   size of its gradients
    Raises DataError when a document lacks a checkpoint, or has one twice.
    """
    present = sorted(set(table["capability"].to_pylist()))
    wanted = list(capabilities) if capabilities is not None else present
    total: dict[tuple[str, str], float] = {}
    tokens: dict[tuple[str, str], int] = {}
    for capability in wanted:
        part = table.filter(pc.equal(table["capability"], capability))
        if part.num_rows == 0:
            raise DataError(
                f"There are no benefits for the capability {capability!r}",
                where="influence",
                remedy=f"The table holds {', '.join(present) or 'none'}",
            )
        steps = sorted(set(part["checkpoint"].to_pylist()))
        alphas = checkpoint_weights(steps, checkpoints, learning_rates)
        for step in steps:
            rows = part.filter(pc.equal(part["checkpoint"], step))
            keys = list(zip(rows["source"].to_pylist(), rows["document"].to_pylist(), strict=True))
            benefit = rows["benefit"].to_numpy()
            if normalise == "rms":
                benefit = benefit / (float(np.sqrt(np.mean(benefit**2))) or 1.0)
            _same_documents(keys, total, where=f"{capability} at step {step}")
            factor = alphas[step] / len(wanted)
            for key, value, count in zip(keys, benefit.tolist(), rows["tokens"].to_pylist(), strict=True):
                total[key] = total.get(key, 0.0) + factor * value
                tokens[key] = count
    keys = sorted(total)
    return pa.table(
        {
            "document": pa.array([k[1] for k in keys], pa.string()),
            "source": pa.array([k[0] for k in keys], pa.string()),
            "tokens": pa.array([tokens[k] for k in keys], pa.int64()),
            "benefit": pa.array([total[k] for k in keys], pa.float64()),
        }
    )


def _same_documents(keys: list[tuple[str, str]], seen: Mapping[tuple[str, str], float], where: str) -> None:
    repeated = len(keys) - len(set(keys))
    if repeated:
        raise DataError(
            f"{repeated} documents are scored twice",
            where=where,
            remedy="Give the rows of one reference model, each file once",
        )
    if seen and set(seen) != set(keys):
        odd = sorted(set(seen) ^ set(keys))[0]
        raise DataError(
            f"Document {odd[1]!r} of source {odd[0]} is not scored at every checkpoint",
            where=where,
            remedy="Score the same documents at all checkpoints and for all capabilities",
        )
