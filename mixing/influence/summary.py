"""`influence/summary.json`: the tables and weights of each reference model, and which one the mixture comes
from.

A linear score can pay for noise: what a reference model has never seen has large gradients (METHODS 1.6
leaves this open). So the paper's protocol is tried first, and kept only if every source that is known to be
noise ends below its uniform share; agreement with leave-one-out, where it is known, decides between those
that pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curation.errors import RecipeError
from mixing.influence.bootstrap import resampled_table, resampled_weights
from mixing.influence.joint import Column, benefit_matrix, column_factors
from mixing.influence.pilot import pearson
from mixing.influence.settings import AssemblySettings, CheckpointRule, Normalise
from mixing.influence.weights import RowsMap, SourceWeight, positive_rows, same_sources, trust_region_rows

BOUNDED = ", bounded step"
DEFAULT_STEP = 1.0


def summarise(
    tables: Mapping[str, pa.Table],
    *,
    checkpoints: CheckpointRule = "step",
    normalise: Normalise = "none",
    floor: float = 0.0,
    trust_step: float = DEFAULT_STEP,
    current: Mapping[str, float] | None = None,
    noise: Sequence[str] = (),
    effects: Sequence[Mapping[str, Any]] = (),
    pilots: Sequence[Mapping[str, Any]] = (),
    resamples: int = 1000,
    level: float = 0.9,
    seed: int = 0,
    resample_checkpoints: bool = True,
    learning_rates: Mapping[int, float] | None = None,
    probe_losses: Mapping[str, Mapping[Column, float]] | None = None,
    reduction: str = "mean",
) -> dict[str, Any]:
    """The contents of summary.json.

    tables   : benefits by name of the reference model, the preferred (the paper's) first
    current  : the mixture from which "<reference>, bounded step" moves by `trust_step`; uniform by default
    noise    : sources that must end below the uniform share
    effects  : `{"source", "capability", "delta"}` of leave-one-out, positive = the source helps; may be empty
    pilots   : agreements of the engines, passed on
    learning_rates, probe_losses : for the checkpoint rules "learning_rate" and "best"; losses by reference
    reduction: whether the loss of a document is the mean or the sum over its tokens, as it was scored; stored
    Intervals are over documents and, unless `resample_checkpoints` is false, over checkpoints. The sources that
    Eq. 6 clips are named under "clipped".
    Each reference gives two entries of equal table: Eq. 6, and the bounded step.
    """
    if not tables:
        raise RecipeError("There is no reference model", where="influence", remedy="Score at least one")
    references: dict[str, Any] = {}
    assembly = AssemblySettings(checkpoints, normalise, floor, resamples, level, resample_checkpoints, seed)
    for name, table in tables.items():
        matrix = benefit_matrix(table, normalise=normalise)
        options = (checkpoints, learning_rates, (probe_losses or {}).get(name))
        present = list(dict.fromkeys(c for c, _ in matrix.columns))
        own = {c: column_factors([k for k in matrix.columns if k[0] == c], *options) for c in present}
        factors = column_factors(matrix.columns, *options)
        sources = sorted({source for source, _ in matrix.keys})
        start = dict(current) if current else dict.fromkeys(sources, 1.0)
        same_sources(start, sources)
        rows = resampled_table(matrix, own, assembly)
        shares = np.array([start[source] for source in sources])
        maps: dict[str, RowsMap] = {
            name: lambda rho: positive_rows(rho, floor),
            name + BOUNDED: lambda rho, shares=shares: trust_region_rows(shares, rho, trust_step),  # type: ignore[misc]
        }
        for entry, to_weights in maps.items():
            weights = resampled_weights(matrix, factors, assembly, to_weights)
            references[entry] = {
                "table": rows,
                "weights": [w.record() for w in weights],
                "clipped": [w.source for w in weights if w.clipped],
                "noise_below_uniform": not loud(weights, noise),
                "agreement": loo_agreement(rows, effects),
            }
    chosen, why = choose(references, noise)
    return {
        "references": references,
        "chosen": chosen,
        "why": why,
        "pilots": list(pilots),
        # As the report and other readers need them: a mapping has its steps as text in JSON.
        "checkpoint_weights": checkpoints if isinstance(checkpoints, str) else dict(checkpoints),
        "normalise": normalise,
        "reduction": reduction,
        "level": level,
    }


def loud(weights: Sequence[SourceWeight], noise: Sequence[str]) -> list[str]:
    """Noise sources whose weight is not below the uniform share."""
    return [w.source for w in weights if w.source in noise and w.weight >= 1.0 / len(weights)]


def loo_agreement(
    rows: Sequence[Mapping[str, Any]], effects: Sequence[Mapping[str, Any]]
) -> dict[str, float] | None:
    """Pearson's correlation across sources of benefit and leave-one-out effect by capability; None without.

    Not of ranks: most sources do next to nothing for a probe, and the order among those is chance. On real text
    this goes with how well a reference predicts the losses of mixtures, rank correlation does not (docs/fidelity.md).
    """
    delta = {(e["source"], e["capability"]): e["delta"] for e in effects}
    found = {}
    for capability in sorted({row["capability"] for row in rows}):
        pairs = [
            (row["benefit"], delta[row["source"], capability])
            for row in rows
            if row["capability"] == capability and (row["source"], capability) in delta
        ]
        if len(pairs) >= 3:
            left, right = (np.asarray(values) for values in zip(*pairs, strict=True))
            found[capability] = pearson(left, right)
    return found or None


def choose(references: Mapping[str, Mapping[str, Any]], noise: Sequence[str]) -> tuple[str, str]:
    """The entry that the mixture comes from, and the reason in a sentence."""
    names = list(references)
    passing = [n for n in names if references[n]["noise_below_uniform"]]
    pool = passing or names

    def mean_agreement(name: str) -> float:
        agreement = references[name]["agreement"]
        return sum(agreement.values()) / len(agreement) if agreement else 0.0

    chosen = max(pool, key=lambda n: (round(mean_agreement(n), 9), -names.index(n)))
    reason = ""
    if noise:
        failing = [n for n in names if n not in passing]
        listed = ", ".join(sorted(noise))
        if not passing:
            reason = (
                f"every reference gives the noise ({listed}) its uniform share or more, read it with care"
            )
        elif failing:
            reason = f"it keeps the noise ({listed}) below its uniform share; {' and '.join(failing)} did not"
        else:
            reason = f"the noise ({listed}) ends below its uniform share under every reference"
    if references[chosen]["agreement"]:
        told = f"its mean correlation with leave-one-out is {mean_agreement(chosen):.2f}"
        reason = f"{reason}; {told}" if reason else told
    sentence = f"The mixture comes from the reference {chosen!r}"
    return chosen, f"{sentence}: {reason}." if reason else f"{sentence}, the first of those that were scored."
