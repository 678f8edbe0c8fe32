"""The mixtures that the methods propose from the search runs, and what each search cost.

`mixtures.json`: by method its weights, the FLOPs of its search, and notes. A method that is there is kept as it
is, so that target runs already made stay valid; methods that the package has gained since are added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.study.corpora import CAPABILITIES, Corpora
from benchmarks.study.influence import Benefits, load_benefits
from benchmarks.study.joined import posterior_weights
from benchmarks.study.runs import finished, probe_losses, uniform
from benchmarks.study.shape import StudyShape
from curation.atomic import read_json, write_json, write_text
from curation.errors import MixwrightError
from mixing.fit import METHODS, fit_mixture, read_proxy_table
from mixing.fit.gaussian_process import fit_process
from mixing.fit.log_linear import fit_log_linear
from mixing.influence import joint_benefit, positive_weights, trust_region_weights
from mixing.influence.score import BENEFIT_SCHEMA
from mixing.influence.weights import densities
from mixing.leave_one_out import loo_weights

TRUST_STEP = 1.0
SURROGATES = ("best-of-n", "log-linear", "gaussian-process", "regmix")

Weights = dict[str, float]


def propose_mixtures(out: Path, corpora: Corpora, shape: StudyShape) -> dict[str, Weights]:
    """Weights by method, uniform among them."""
    file = out / "mixtures.json"
    known: dict[str, Any] = read_json(file) if file.exists() else {}
    for name, (propose, flops) in _methods(out, corpora, shape).items():
        if name in known:
            continue
        try:
            weights = propose()
        except MixwrightError as error:
            print(f"{name} gives no mixture: {error}")
            continue
        known[name] = {"weights": weights, "search_flops": flops}
    write_json(file, known)
    return {name: entry["weights"] for name, entry in known.items()}


def _methods(
    out: Path, corpora: Corpora, shape: StudyShape
) -> dict[str, tuple[Callable[[], Weights], float]]:
    """By name: what proposes the weights, and the FLOPs of the runs and scores that it needs."""
    proxies, references = finished(out, "proxies"), finished(out, "reference")
    seed = shape.search_seeds[0]
    cost = {name: r.flops + r.evaluation_flops for name, r in (references | proxies).items()}
    total = {
        kind: sum(v for k, v in cost.items() if k.startswith(kind)) for kind in ("uniform", "loo", "random")
    }
    total["domain"] = sum(v for k, v in cost.items() if k.startswith("domain"))
    one_uniform = cost[f"uniform-seed{seed}"]
    scored = load_benefits(out)
    forward = 2.0 * shape.model.parameters()
    spent = {
        kind: forward * sum(b.forward_tokens for b in scored if b.reference.startswith(kind)) / 4
        for kind in ("domain", f"uniform-seed{seed}")
    }  # a quarter: four preconditioners were scored together, and a mixture uses one
    domain, own = "domain", f"uniform-seed{seed}"
    found: dict[str, tuple[Callable[[], Weights], float]] = {
        "uniform": (lambda: uniform(corpora.sources), 0.0),
        "proportional": (lambda: _proportional(corpora), 0.0),
        "leave-one-out": (lambda: _left_out(out, shape), total["uniform"] + total["loo"]),
        "influence-paper": (lambda: influence_weights(scored, domain), total["domain"] + spent[domain]),
        "influence-uniform": (lambda: influence_weights(scored, own), one_uniform + spent[own]),
        "influence-uniform-step": (
            lambda: influence_weights(scored, own, bounded=True),
            one_uniform + spent[own],
        ),
        # Added when the search had shown that EK-FAC and the cosine agree best with it: not chosen in advance.
        "influence-paper-ekfac": (
            lambda: influence_weights(scored, domain, preconditioner="ekfac"),
            total["domain"] + spent[domain],
        ),
        "influence-uniform-ekfac-cosine": (
            lambda: influence_weights(scored, own, preconditioner="ekfac", cosine=True),
            one_uniform + spent[own],
        ),
    }
    for name in SURROGATES:
        if name in METHODS:
            found[name] = (partial(_fitted, write_swarm(out, shape), name), total["random"] + one_uniform)
    everything = partial(_fitted, write_swarm(out, shape, left_out=True), "gaussian-process")
    all_runs = total["random"] + total["uniform"] + total["loo"]
    found["gaussian-process-all-runs"] = everything, all_runs
    found["posterior"] = lambda: _joined(out, shape, scored, own), all_runs + spent[own]
    return found


def _joined(out: Path, shape: StudyShape, scored: list[Benefits], reference: str) -> Weights:
    """Everything in one posterior; influence at the uniform proxy, plain."""
    rows = [b for b in scored if b.reference == reference]
    benefits = {
        c: densities(joint_benefit(pa.concat_tables([benefit_rows(b, c, "identity", False) for b in rows])))
        for c in CAPABILITIES
    }
    return posterior_weights(write_swarm(out, shape), left_out_effects(out, shape), benefits)


def _proportional(corpora: Corpora) -> Weights:
    whole = sum(corpora.sizes.values())
    return {name: size / whole for name, size in corpora.sizes.items()}


def left_out_effects(
    out: Path, shape: StudyShape, split: str = "search", *, truth: bool = False
) -> list[dict[str, Any]]:
    """Rows `source, capability, seed, delta`: loss without the source minus loss with all, paired by seed.

    truth : with the seeds that no method sees
    """
    proxies, references = finished(out, "proxies"), finished(out, "reference")
    later = finished(out, "truth") if truth else {}
    proxies, references = proxies | later, references | later
    seeds = sorted({r.run.seed for name, r in references.items() if name.startswith("uniform")})
    rows = []
    for seed in seeds if truth else shape.search_seeds:
        full = probe_losses(references[f"uniform-seed{seed}"])
        for name, result in proxies.items():
            if name.startswith("loo-without-") and result.run.seed == seed:
                (source,) = (s for s, w in result.run.weights.items() if w == 0)
                losses = probe_losses(result)
                rows += [
                    {"source": source, "capability": c, "seed": seed, "delta": losses[key] - full[key]}
                    for c in CAPABILITIES
                    for key in [f"{split}/{c}"]
                ]
    return rows


def _left_out(out: Path, shape: StudyShape) -> Weights:
    rows = left_out_effects(out, shape)
    keys = sorted({(row["source"], row["capability"]) for row in rows})
    means = [
        {
            "source": s,
            "capability": c,
            "delta": float(np.mean([r["delta"] for r in rows if (r["source"], r["capability"]) == (s, c)])),
        }
        for s, c in keys
    ]
    return loo_weights(means)


def influence_weights(
    scored: list[Benefits],
    reference: str,
    *,
    preconditioner: str = "identity",
    cosine: bool = False,
    bounded: bool = False,
) -> Weights:
    """Eqs. 5 and 6 as the package makes them: checkpoints by step, capabilities alike; or the bounded step."""
    tables = []
    for b in scored:
        if not b.reference.startswith(reference):
            continue
        own = b.reference.split("-")[1]
        for capability in [own] if own in CAPABILITIES else CAPABILITIES:
            tables.append(benefit_rows(b, capability, preconditioner, cosine))
    rho = densities(joint_benefit(pa.concat_tables(tables), checkpoints="step"))
    if bounded:
        return trust_region_weights(uniform(rho), rho, TRUST_STEP)
    return positive_weights(rho)


def benefit_rows(b: Benefits, capability: str, preconditioner: str, cosine: bool) -> pa.Table:
    """The rows of one checkpoint and capability, as `mixing.influence.score` gives them."""
    count = len(b.sources)
    return pa.table(
        [
            [str(i) for i in range(count)],
            b.sources.tolist(),
            [capability] * count,
            [b.reference.split("-")[0]] * count,
            [b.step] * count,
            b.tokens,
            b.of(preconditioner, capability, cosine=cosine),
        ],
        schema=BENEFIT_SCHEMA,
    )


def write_swarm(out: Path, shape: StudyShape, *, left_out: bool = False) -> tuple[Path, Path]:
    """Runs as tables for `mixing.fit`, capabilities as metrics.

    The random mixtures and the uniform one of the same seed; with `left_out` also those without a source, and
    all seeds.
    """
    kinds = ("random", "loo") if left_out else ("random",)
    runs = {name: run for name, run in finished(out, "proxies").items() if name.startswith(kinds)}
    seeds = shape.search_seeds if left_out else shape.search_seeds[:1]
    uniforms = finished(out, "reference")
    runs |= {f"uniform-seed{seed}": uniforms[f"uniform-seed{seed}"] for seed in seeds}
    sources = sorted(next(iter(runs.values())).run.weights)
    ratios = ["run_id,seed," + ",".join(sources)]
    metrics = ["run_id," + ",".join(CAPABILITIES)]
    for name, result in sorted(runs.items()):
        losses, weights = probe_losses(result), result.run.weights
        ratios.append(f"{name},{result.run.seed}," + ",".join(repr(weights.get(s, 0.0)) for s in sources))
        metrics.append(f"{name}," + ",".join(repr(losses[f"search/{c}"]) for c in CAPABILITIES))
    folder = out / ("swarm-all" if left_out else "swarm")
    files = folder / "ratios.csv", folder / "metrics.csv"
    for file, lines in zip(files, (ratios, metrics), strict=True):
        write_text(file, "\n".join(lines) + "\n")
    return files


def _fitted(tables: tuple[Path, Path], method: str) -> Weights:
    return fit_mixture(*tables, method).weights


def surrogate_gains(out: Path, mixtures: Mapping[str, Weights], method: str) -> dict[str, float]:
    """Loss of uniform minus that of each mixture, mean over capabilities, as laws fitted to the swarm say it."""
    fit = {"gaussian-process": fit_process, "log-linear": fit_log_linear}[method]
    table = read_proxy_table(out / "swarm" / "ratios.csv", out / "swarm" / "metrics.csv")
    points = np.array([[mixture[s] for s in table.sources] for mixture in mixtures.values()])
    points = np.vstack([points, np.full(len(table.sources), 1 / len(table.sources))])
    predicted = np.mean([fit(table.weights, column).predict(points) for column in table.losses.T], axis=0)
    return dict(zip(mixtures, (predicted[-1] - predicted[:-1]).tolist(), strict=True))


def first_order_gain(out: Path, weights: Mapping[str, float], shape: StudyShape) -> float:
    """The same by the tangent that leave-one-out measures at the uniform mixture.

    Leaving source j out moves its weight by -1/m and the others' by 1 / (m (m - 1)), so with slopes that sum
    to zero delta_j = -slope_j / (m - 1).
    """
    rows = left_out_effects(out, shape)
    sources = sorted(weights)
    mean = {s: float(np.mean([row["delta"] for row in rows if row["source"] == s])) for s in sources}
    centred = np.array([mean[s] for s in sources]) - np.mean(list(mean.values()))
    change = np.array([weights[s] - 1 / len(sources) for s in sources])
    return float((len(sources) - 1) * (change @ centred))
