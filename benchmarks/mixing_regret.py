"""Regret of every method that learns from proxy runs, on worlds whose best mixture is known.

Each method has its own default settings and its own usual runs: random mixtures (the same for all), a
leave-one-out study of as many whole seeds as the number of runs allows, or rounds of eight that the posterior
proposes. What is made cheaper changes no weights, but for RegMix's candidates: intervals are resampled twice, and
RegMix searches 20,000 mixtures for 100,000. The results of each world are written down as they come, and a file
of them continues.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.measure import table
from benchmarks.mixing_worlds import CAPABILITIES, FAMILIES, REGIMES, World, as_table, make_world
from mixing.fit import fit_mixture, regmix, surrogate
from mixing.fit.tables import ProxyTable
from mixing.posterior import Effects, first_mixtures, fit_posterior, propose
from mixing.posterior.paths import starting_points
from mixing.posterior.posterior import LossPosterior
from mixing.posterior.recommend import best_mixture

OBJECTIVE = np.full(3, 1 / 3)
SIZES = (16, 24, 48)
FIRST_WORLD = 40_000
RANDOM = ("best-of-n", "log-linear", "gaussian-process", "regmix", "posterior")
METHODS = ("uniform", "leave-one-out", *RANDOM, "posterior, its own runs")
CANDIDATES = 20_000
EVIDENCE = (
    "16 random",
    "and influence",
    "and leave-one-out",
    "and both",
    "as many random as with leave-one-out",
)
Row = dict[str, float]


def regret(worlds: int, results: Path | None = None) -> str:
    """Means, and differences by world to the posterior's own, with standard errors."""
    rows = {}
    for regime in REGIMES:
        others = _measured(regime, worlds, results, "methods", _other_methods)
        own = _measured(regime, worlds, results, "posterior", _posterior)
        rows[regime] = [{**a, **b, "cpu": a["cpu"] + b["cpu"]} for a, b in zip(others, own, strict=True)]
    body, cost = [], sum(row["cpu"] for each in rows.values() for row in each)
    for method in METHODS:
        cells = [method]
        for regime in REGIMES:
            for n in SIZES:
                key = f"{method} {n}"
                if key not in rows[regime][0]:
                    cells.append("-")
                    continue
                values = np.array([row[key] for row in rows[regime]])
                away = np.array([row[f"posterior {n}"] for row in rows[regime]]) - values
                shown = f"{values.mean():.2f}"
                if method != "posterior":
                    shown += f" ({away.mean():+.2f} ± {_error(away):.2f})"
                cells.append(shown)
        body.append(cells)
    header = ["method", *(f"{regime}, {n} runs" for regime in REGIMES for n in SIZES)]
    return (
        f"Regret in percent of the optimum's loss, mean over {worlds} worlds a regime; in brackets the posterior's "
        "regret minus the method's on the same worlds, with its standard error: negative, the posterior is better. "
        "Every method has its own default settings (intervals resampled less; RegMix: 20,000 candidates for 100,000).\n"
        '"Its own runs" are rounds of eight that the posterior proposed; leave-one-out has whole seeds of its study '
        "(17 sources: 18 runs of 24, 36 of 48); all others have the same random runs.\n\n"
        f"{table(header, body)}\n\nMeasured in {cost:.0f} CPU-seconds, resumed ones included.\n"
    )


def evidence(worlds: int, results: Path | None = None) -> str:
    """What leave-one-out and influence add to 16 runs, against as many random runs."""
    body = []
    for regime in REGIMES:
        rows = _measured(regime, worlds, results, "evidence", _one_evidence)
        for kind in EVIDENCE:
            values = np.array([row[kind] for row in rows])
            away = values - np.array([row[EVIDENCE[0]] for row in rows])
            change = "" if kind == EVIDENCE[0] else f"{away.mean():+.2f} ± {_error(away):.2f}"
            extra = REGIMES[regime] + 1
            runs = 16 + (extra if "both" in kind or "leave-one-out" in kind else 0)
            body.append([regime, kind, runs, f"{values.mean():.2f} ({np.median(values):.2f})", change])
    header = [
        "regime",
        "evidence",
        "runs trained",
        "regret, mean (median)",
        "minus 16 random, standard error",
    ]
    return (
        f"The posterior on {worlds} worlds a regime. Influence is measured at uniform and follows the truth with a "
        "correlation of about .9; leave-one-out is one seed at uniform, of which only differences are seen.\n\n"
        + table(header, body)
    )


def _measured(regime: str, worlds: int, results: Path | None, kind: str, work) -> list[Row]:  # type: ignore[no-untyped-def]
    known: dict[tuple[str, str, int], Row] = {}
    if results is not None and results.exists():
        for line in results.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            known[record["kind"], record["regime"], record["number"]] = record["regret"]
    found = []
    for number in range(worlds):
        row = known.get((kind, regime, number))
        if row is None:
            began = time.process_time()
            row = work(make_world(FAMILIES[number % 3], regime, FIRST_WORLD + number))
            row["cpu"] = time.process_time() - began
            line = json.dumps({"kind": kind, "regime": regime, "number": number, "regret": row})
            print(line, file=sys.stderr, flush=True)
            if results is not None:
                with results.open("a", encoding="utf-8") as handle:
                    handle.write(line + "\n")
        found.append(row)
    return found


def _other_methods(world: World) -> Row:
    row: Row = {}
    m = len(world.sources)
    uniform = world.regret(np.full(m, 1 / m))
    for n in SIZES:
        row[f"uniform {n}"] = uniform
        runs = world.table(n, 0)
        for method in RANDOM[:-1]:
            row[f"{method} {n}"] = world.regret(_weights(world, runs, method))
        if n >= m + 1:
            row[f"leave-one-out {n}"] = world.regret(
                _weights(world, _study(world, n // (m + 1)), "leave-one-out")
            )
    return row


def _posterior(world: World) -> Row:
    row = {f"posterior {n}": world.regret(best_of(fit_posterior(world.table(n, 0)), world)) for n in SIZES}
    return row | {f"posterior, its own runs {n}": value for n, value in _rounds(world).items()}


def _one_evidence(world: World) -> Row:
    runs, influence = world.table(16, 0), world.influence("informative", 0)
    study = _study(world, 1)
    m = len(world.sources)
    effects = Effects(
        dict.fromkeys(world.sources, 1 / m),
        world.sources,
        CAPABILITIES,
        (study.losses[1:] - study.losses[0])[None],
    )
    found = {
        EVIDENCE[0]: fit_posterior(runs),
        EVIDENCE[1]: fit_posterior(runs, influence=influence),
        EVIDENCE[2]: fit_posterior(runs, effects),
        EVIDENCE[3]: fit_posterior(runs, effects, influence),
        EVIDENCE[4]: fit_posterior(world.table(16 + m + 1, 0)),
    }
    return {kind: world.regret(best_of(posterior, world)) for kind, posterior in found.items()}


def _weights(world: World, runs: ProxyTable, method: str) -> np.ndarray:
    with patch.object(regmix, "RESAMPLES", 2), patch.object(surrogate, "RESAMPLES", 2):
        mixture = fit_mixture(runs=runs, method=method, regmix_candidates=CANDIDATES)
    return np.array([mixture.weights[source] for source in world.sources])


def _study(world: World, seeds: int) -> ProxyTable:
    """Whole seeds of a leave-one-out study at uniform: the base, then without each source in turn."""
    m = len(world.sources)
    points = np.vstack([np.full((1, m), 1 / m), (np.ones((m, m)) - np.eye(m)) / (m - 1)])
    weights = np.vstack([points] * seeds)
    runs = as_table(world.sources, weights, world.run(weights, 9))
    numbers = tuple(int(s) for s in np.repeat(np.arange(seeds), m + 1))
    return ProxyTable(runs.run_ids, runs.sources, runs.weights, runs.metrics, runs.losses, numbers)


def _rounds(world: World, size: int = 8) -> dict[int, float]:
    """Regret after rounds that the posterior proposes, wherever one of SIZES is reached."""
    weights = first_mixtures(world.simplex(), size)
    losses, found = world.run(weights, 1), {}
    for number in range(2, SIZES[-1] // size + 1):
        posterior = fit_posterior(as_table(world.sources, weights, losses), seed=number)
        chosen = propose(posterior, world.simplex(), size, objective=OBJECTIVE, seed=number)
        weights, losses = np.vstack([weights, chosen]), np.vstack([losses, world.run(chosen, number)])
        if len(weights) in SIZES:
            last = fit_posterior(as_table(world.sources, weights, losses))
            found[len(weights)] = world.regret(best_of(last, world))
    return found


def best_of(posterior: LossPosterior, world: World) -> np.ndarray:
    """The mixture of least posterior mean."""
    simplex = world.simplex()
    return best_mixture(posterior, OBJECTIVE, simplex, starting_points(posterior, OBJECTIVE, simplex, 0))


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
