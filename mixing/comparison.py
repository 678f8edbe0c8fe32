"""Are two mixtures really different? Paired seeds, equal tokens, held-out text, and a verdict that may be no.

A difference is (mixture) - (reference) in bits per byte with the same seed; negative means fewer bits,
better. The interval is Student's t over the seeds, beside it stands the exact sign-flip p. "better" or
"worse" is said when the paired t test, corrected by Holm over the mixtures compared, falls below 1 - level;
otherwise "not separable", with the smallest difference that this many seeds would have found. Documents are
never counted as replicates of training. Two one-sided tests say whether the two are equivalent within a
margin; where likelihoods of documents are given, a bootstrap over seeds and documents gives a second p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.atomic import write_json
from curation.errors import DataError, RecipeError
from mixing.leave_one_out import safe_name
from mixing.mixture import check_weights
from mixing.paired import (
    crossed_bootstrap,
    equivalence_test,
    holm,
    sign_flip_test,
    smallest_detectable,
    t_interval,
    t_test,
)
from mixing.runs import ProxyRun, ProxySettings, evaluation_steps, read_evaluation, run_proxies
from probes.intervals import align, bits_per_byte

LEVEL = 0.9
MEAN = "mean"
MARGIN = 0.005
"""Differences below this share of the reference are no difference in practice."""

Tables = Mapping[str, Mapping[int, Mapping[str, pa.Table]]]
"""{mixture: {seed: {capability: likelihood table}}}"""

Scores = Mapping[str, Mapping[int, Mapping[str, float]]]
"""{mixture: {seed: {capability: bits per byte}}}"""


def plan_comparison(
    mixtures: Mapping[str, Mapping[str, float]], seeds: Sequence[int]
) -> dict[tuple[str, int], ProxyRun]:
    """One run for each mixture and seed; runs of a seed share initial weights and the order of documents.

    Raises RecipeError on weights that are no mixture, sources that differ, or fewer than two mixtures.
    """
    if len(mixtures) < 2 or not seeds:
        raise RecipeError(
            "A comparison needs two mixtures and a seed", where="comparison", remedy="Add what is missing"
        )
    names = {frozenset(weights) for weights in mixtures.values()}
    if len(names) != 1:
        raise RecipeError(
            "The mixtures to compare name different sources",
            where="comparison",
            remedy="Give sources that a mixture leaves out the weight 0",
        )
    runs = {}
    for name in sorted(mixtures):
        check_weights(mixtures[name], where=f"mixture {name!r}")
        for seed in dict.fromkeys(seeds):
            runs[name, seed] = ProxyRun(f"compare-{safe_name(name)}-seed{seed}", dict(mixtures[name]), seed)
    return runs


def run_comparison(
    mixtures: Mapping[str, Mapping[str, float]],
    seeds: Sequence[int],
    settings: ProxySettings,
    folder: Path,
    *,
    workers: int = 1,
    against: str = "uniform",
    level: float = LEVEL,
) -> dict[str, Any]:
    """Train the mixtures and write `comparison.json` beside the runs; returns its content.

    The probes in `settings` must hold text that neither training nor the search for the mixtures has seen.
    """
    runs = plan_comparison(mixtures, seeds)
    run_proxies(list(runs.values()), settings, folder, workers=workers, description="comparing mixtures")
    tables: dict[str, dict[int, dict[str, pa.Table]]] = {}
    for (name, seed), run in runs.items():
        step = evaluation_steps(folder, run.run_id)[-1]
        tables.setdefault(name, {})[seed] = read_evaluation(folder, run.run_id, step)
    result = compare_tables(tables, mixtures=mixtures, against=against, level=level)
    write_json(Path(folder) / "comparison.json", result)
    return result


def compare_tables(
    tables: Tables,
    *,
    mixtures: Mapping[str, Mapping[str, float]] | None = None,
    against: str = "uniform",
    level: float = LEVEL,
    margin: float = MARGIN,
) -> dict[str, Any]:
    """As `compare`, from likelihoods of documents: a bootstrap over seeds and documents gives another p."""
    scores = {
        name: {s: {c: bits_per_byte(t) for c, t in sorted(of.items())} for s, of in seeds.items()}
        for name, seeds in tables.items()
    }
    result = compare(scores, mixtures=mixtures, against=against, level=level, margin=margin)
    rows = result["differences"]
    capabilities = [c for c in dict.fromkeys(row["capability"] for row in rows) if c != MEAN]
    for capability in capabilities:
        family = [row for row in rows if row["capability"] == capability]
        known = [_bootstrap_p(tables, row["mixture"], against, capability) for row in family]
        for row, p, adjusted in zip(family, known, holm(known), strict=True):
            row |= {"p_bootstrap": p, "p_bootstrap_holm": adjusted}
    return result


def _bootstrap_p(tables: Tables, name: str, against: str, capability: str) -> float:
    differences = []
    size = np.empty(0)
    for seed in sorted(tables[name]):
        nats, size, _ = align([tables[name][seed][capability], tables[against][seed][capability]])
        differences.append(nats[0] - nats[1])
    return crossed_bootstrap(np.stack(differences), size)[1]


def compare(
    scores: Scores,
    *,
    mixtures: Mapping[str, Mapping[str, float]] | None = None,
    against: str = "uniform",
    level: float = LEVEL,
    margin: float = MARGIN,
) -> dict[str, Any]:
    """The content of `comparison.json` from scores of trained models.

    margin : share of the reference within which two mixtures count as equivalent

    Only seeds that every mixture has are paired; a mixture without one of them is an error, not a gap.
    Raises DataError when seeds or capabilities differ, RecipeError when `against` is not among the mixtures.
    """
    seeds, capabilities = _check_scores(scores, against)
    names = [name for name in sorted(scores) if name != against]
    differences: list[dict[str, Any]] = []
    for capability in (*capabilities, MEAN):
        family = [
            _difference(scores, name, against, capability, capabilities, seeds, level, margin)
            for name in names
        ]
        known = [row["p_t"] if row["p_t"] is not None else 1.0 for row in family]
        for row, adjusted in zip(family, holm(known), strict=True):
            row["p_holm"] = adjusted if row["p_t"] is not None else None
            row["verdict"] = _verdict(row, level)
            row["text"] = _sentence(row, len(seeds), len(names), level)
        differences.extend(family)
    return {
        "schema": 1,
        "unit": "bits per byte",
        "sign": "negative: fewer bits than the reference, better",
        "level": level,
        "rule": "better or worse when the paired t test over seeds, Holm-corrected over "
        f"{len(names)} mixtures, has p <= {1 - level:.2g}; probe documents are not replicates of training",
        "mixtures": {name: dict(weights) for name, weights in (mixtures or {}).items()},
        "seeds": list(seeds),
        "runs": [
            {"mixture": name, "seed": seed, "capability": c, "bits_per_byte": scores[name][seed][c]}
            for name in sorted(scores)
            for seed in seeds
            for c in capabilities
        ],
        "differences": differences,
    }


def _difference(
    scores: Scores,
    name: str,
    against: str,
    capability: str,
    capabilities: Sequence[str],
    seeds: Sequence[int],
    level: float,
    margin: float,
) -> dict[str, Any]:
    members = list(capabilities) if capability == MEAN else [capability]
    ours = np.array([[scores[name][seed][c] for c in members] for seed in seeds])
    theirs = np.array([[scores[against][seed][c] for c in members] for seed in seeds])
    per_seed = (ours - theirs).mean(axis=1)
    interval = t_interval(per_seed, level)
    reference = float(theirs.mean())
    detectable = smallest_detectable(per_seed)
    p_equivalence = equivalence_test(per_seed, margin * reference)
    return {
        "mixture": name,
        "against": against,
        "capability": capability,
        "difference": float(per_seed.mean()),
        "relative": float(((ours - theirs).mean(axis=0) / theirs.mean(axis=0)).mean()),
        "low": None if interval is None else interval[0],
        "high": None if interval is None else interval[1],
        "p_t": t_test(per_seed),
        "p_sign_flip": sign_flip_test(per_seed),
        "least_p_sign_flip": min(1.0, 2.0 / 2 ** len(seeds)),
        "margin": margin * reference,
        "p_equivalence": p_equivalence,
        # Two one-sided tests at half the error of the two-sided one: the interval lies within the margin.
        "equivalent": p_equivalence is not None and p_equivalence <= (1 - level) / 2,
        "per_seed": per_seed.tolist(),
        "smallest_detectable": detectable,
        "smallest_detectable_relative": None if detectable is None else detectable / reference,
    }


def _verdict(row: Mapping[str, Any], level: float) -> str:
    if row["p_holm"] is None or row["p_holm"] > 1 - level + 1e-12 or row["difference"] == 0:
        return "not separable"
    return "better" if row["difference"] < 0 else "worse"


def _sentence(row: Mapping[str, Any], seeds: int, mixtures: int, level: float) -> str:
    where = "on the mean of the capabilities" if row["capability"] == MEAN else f"on {row['capability']}"
    pairs = f"{seeds} paired seed{'s' if seeds != 1 else ''}"
    head = (
        f"{row['mixture']} against {row['against']} {where}: {row['difference']:+.4f} bits "
        f"per byte ({row['relative']:+.2%})"
    )
    if row["low"] is None:
        return f"{head}; one seed says nothing about chance, so the two are not separable"
    interval = f"{level:.0%} interval {row['low']:+.4f} to {row['high']:+.4f}, {pairs}"
    if row["verdict"] != "not separable":
        return f"{head}; {row['verdict']} ({interval}; sign-flip p {row['p_sign_flip']:.3g})"
    if row["equivalent"]:
        return f"{head}; equivalent within {row['margin']:.4f} ({interval}; p {row['p_equivalence']:.3g})"
    corrected = " after correction for the number of mixtures" if mixtures > 1 else ""
    return (
        f"{head}; not separable from noise{corrected} ({interval}; the smallest difference that "
        f"{pairs} would find is {row['smallest_detectable']:.4f})"
    )


def _check_scores(scores: Scores, against: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    if against not in scores or len(scores) < 2:
        raise RecipeError(
            f"There is no mixture {against!r} to compare with"
            if against not in scores
            else "There is one mixture only",
            where="comparison",
            remedy=f"Mixtures: {', '.join(sorted(scores))}",
        )
    seeds = tuple(sorted(scores[against]))
    capabilities = tuple(sorted(scores[against][seeds[0]])) if seeds else ()
    if MEAN in capabilities:
        raise DataError(
            "No capability may be called 'mean': that is the row of their mean", where="comparison"
        )
    for name in sorted(scores):
        if tuple(sorted(scores[name])) != seeds:
            raise DataError(
                f"Mixture {name!r} has the seeds {sorted(scores[name])}, {against!r} has {list(seeds)}",
                where="comparison",
                remedy="Train every mixture with the same seeds",
            )
        for seed in seeds:
            if tuple(sorted(scores[name][seed])) != capabilities or not capabilities:
                raise DataError(
                    f"Mixture {name!r}, seed {seed}, was measured on other capabilities than the rest",
                    where="comparison",
                    remedy="Evaluate all runs on the same probes",
                )
            for capability, value in scores[name][seed].items():
                if not np.isfinite(value) or value <= 0:
                    raise DataError(
                        f"Mixture {name!r}, seed {seed}, has {value} bits per byte on {capability}",
                        where="comparison",
                        remedy="Its training has probably diverged: lower the learning rate",
                    )
    return seeds, capabilities
