"""Eq. 5: one benefit per document, over the checkpoints of a reference model and over capabilities.

    I_joint(x) = 1/C sum_c sum_t alpha_{c,t} benefit(x; theta_{c,t}),   alpha_{c,t} = step_t / sum_t step_t

The paper adds the capabilities up; we take their mean, which changes no weight. Example: benefits 1 and 4
at steps 10 and 30 make 1 * 0.25 + 4 * 0.75 = 3.25.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.errors import DataError, RecipeError
from mixing.influence.settings import CheckpointRule, Normalise

Column = tuple[str, int]  # a capability and the step of a checkpoint that was asked about it


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
            remedy="Choose step, learning_rate, uniform, last, best, or give a weight for each step",
        )
    total = sum(raw.values())
    if total <= 0 or min(raw.values()) < 0:
        raise RecipeError(
            "The weights of the checkpoints must not be negative and must not all be zero",
            where="influence.checkpoint_weights",
            remedy="A checkpoint at step 0 cannot stand alone under the rule step",
        )
    return {s: w / total for s, w in raw.items()}


def column_factors(
    columns: Sequence[Column],
    rule: CheckpointRule,
    learning_rates: Mapping[int, float] | None = None,
    probe_losses: Mapping[Column, float] | None = None,
) -> dict[Column, float]:
    """What each checkpoint of each capability counts in the joint benefit; they sum to 1.

    The mean over capabilities of `checkpoint_weights`; only "best" is different: of each capability the
    checkpoint with the least probe loss, these weighted by their steps, as AutoMixer blends its best checkpoints.

    >>> losses = {("code", 10): 2.0, ("code", 30): 3.0, ("maths", 10): 5.0, ("maths", 30): 4.0}
    >>> column_factors(list(losses), "best", probe_losses=losses)
    {('code', 10): 0.25, ('code', 30): 0.0, ('maths', 10): 0.0, ('maths', 30): 0.75}
    """
    capabilities = list(dict.fromkeys(c for c, _ in columns))
    if rule == "best":
        losses = probe_losses or {}
        missing = [c for c in columns if c not in losses]
        if missing:
            raise RecipeError(
                f"The probe loss of {missing[0][0]} at step {missing[0][1]} is not known",
                where="influence.checkpoint_weights",
                remedy="Give the losses (`probe_losses` of the tables' files), or choose another rule",
            )
        best = {
            c: min((k for k in columns if k[0] == c), key=lambda k: (losses[k], -k[1])) for c in capabilities
        }
        total = sum(step for _, step in best.values())
        if total == 0:
            raise RecipeError(
                "The best checkpoints are all at step 0, which has no weight",
                where="influence.checkpoint_weights",
                remedy="Choose another rule, or give later checkpoints",
            )
        return {k: k[1] / total if best[k[0]] == k else 0.0 for k in columns}
    found: dict[Column, float] = {}
    for capability in capabilities:
        alphas = checkpoint_weights([s for c, s in columns if c == capability], rule, learning_rates)
        found |= {(capability, s): a / len(capabilities) for s, a in alphas.items()}
    return {column: found[column] for column in columns}


@dataclass(frozen=True)
class BenefitMatrix:
    """Benefits [documents, columns] of one reference model; documents by source and id.

    keys    : source and id of each document
    tokens  : int64 [documents]
    columns : capability and step of each column
    """

    keys: list[tuple[str, str]]
    tokens: np.ndarray
    columns: list[Column]
    values: np.ndarray

    def joint(self, factors: Mapping[Column, float]) -> np.ndarray:
        """The joint benefit of each document, [documents]."""
        # Column by column, so that a sum has the same bits however many others are asked for.
        total = np.zeros(len(self.keys))
        for at, column in enumerate(self.columns):
            total += factors.get(column, 0.0) * self.values[:, at]
        return total


def benefit_matrix(
    table: pa.Table, capabilities: Sequence[str] | None = None, normalise: Normalise = "none"
) -> BenefitMatrix:
    """The rows of one reference as a matrix; arguments and errors are those of `joint_benefit`."""
    present = sorted(set(pc.unique(table["capability"]).to_pylist()))
    wanted = list(capabilities) if capabilities is not None else present
    keys: list[tuple[str, str]] = []
    known: dict[tuple[str, str], int] = {}
    tokens = np.zeros(0, np.int64)
    columns: list[Column] = []
    values: list[np.ndarray] = []
    for capability in wanted:
        part = table.filter(pc.equal(table["capability"], capability))
        if part.num_rows == 0:
            raise DataError(
                f"There are no benefits for the capability {capability!r}",
                where="influence",
                remedy=f"The table holds {', '.join(present) or 'none'}",
            )
        for step in sorted(pc.unique(part["checkpoint"]).to_pylist()):
            rows = part.filter(pc.equal(part["checkpoint"], step))
            found = list(zip(rows["source"].to_pylist(), rows["document"].to_pylist(), strict=True))
            if not keys:
                keys = sorted(set(found))
                known = {key: at for at, key in enumerate(keys)}
                tokens = np.zeros(len(keys), np.int64)
            _same_documents(found, known, where=f"{capability} at step {step}")
            benefit = rows["benefit"].to_numpy()
            if normalise == "rms":
                benefit = benefit / (float(np.sqrt(np.mean(benefit**2))) or 1.0)
            place = np.fromiter((known[key] for key in found), np.int64, len(found))
            column = np.empty(len(keys))
            column[place] = benefit
            tokens[place] = rows["tokens"].to_numpy()
            columns.append((capability, step))
            values.append(column)
    return BenefitMatrix(keys, tokens, columns, np.stack(values, axis=1))


def joint_benefit(
    table: pa.Table,
    *,
    checkpoints: CheckpointRule = "step",
    learning_rates: Mapping[int, float] | None = None,
    probe_losses: Mapping[Column, float] | None = None,
    capabilities: Sequence[str] | None = None,
    normalise: Normalise = "none",
) -> pa.Table:
    """Columns `document, source, tokens, benefit`, sorted by source and document.

    table        : rows of one reference, as `score` and `influence_at_checkpoints` make them; the
                   checkpoints may differ between capabilities (domain models), the documents may not
    capabilities : those to average over, uniformly; all of the table by default
    probe_losses : of each capability and step, for the rule "best"
    normalise    : "rms" divides the benefits at each checkpoint of each capability by their root mean
                   square over all documents, so that no probe and no checkpoint outweighs others by the
                   size of its gradients; "cosine" was done when they were scored, and changes nothing here
    Raises DataError when a document lacks a checkpoint, or has one twice.
    """
    matrix = benefit_matrix(table, capabilities, normalise)
    return joint_table(matrix, column_factors(matrix.columns, checkpoints, learning_rates, probe_losses))


def joint_table(matrix: BenefitMatrix, factors: Mapping[Column, float]) -> pa.Table:
    """The table of `joint_benefit` from a matrix and what each of its columns counts."""
    return pa.table(
        {
            "document": pa.array([k[1] for k in matrix.keys], pa.string()),
            "source": pa.array([k[0] for k in matrix.keys], pa.string()),
            "tokens": pa.array(matrix.tokens, pa.int64()),
            "benefit": pa.array(matrix.joint(factors), pa.float64()),
        }
    )


def _same_documents(keys: list[tuple[str, str]], known: Mapping[tuple[str, str], int], where: str) -> None:
    repeated = len(keys) - len(set(keys))
    if repeated:
        raise DataError(
            f"{repeated} documents are scored twice",
            where=where,
            remedy="Give the rows of one reference model, each file once",
        )
    if known.keys() != set(keys):
        odd = sorted(known.keys() ^ set(keys))[0]
        raise DataError(
            f"Document {odd[1]!r} of source {odd[0]} is not scored at every checkpoint",
            where=where,
            remedy="Score the same documents at all checkpoints and for all capabilities",
        )
