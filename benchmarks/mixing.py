"""Methods that choose mixtures, on worlds whose best mixture is known: coverage, false claims, regret, speed.

    python -m benchmarks.mixing [SECTION ...] [--worlds N] [--results FILE] [--write]

Sections: coverage, equal, regret, adaptive, influence, evidence, speed, swarms; all when none is named. `regret`
and `evidence` (`benchmarks.mixing_regret`) tell each world's result on the standard error, and continue with
--results. `swarms` reads RegMix's public results (MIT) from the folder
$MIXWRIGHT_SWARMS and is skipped without it. Regret is in percent of the optimum's loss; tables say how many
worlds they rest on.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.measure import machine, publish, table
from benchmarks.mixing_regret import best_of, evidence, regret
from benchmarks.mixing_worlds import FAMILIES, REGIMES, World, as_table, make_world
from mixing.fit.gaussian_process import fit_process
from mixing.fit.log_linear import fit_log_linear
from mixing.fit.tables import ProxyTable, read_proxy_table
from mixing.posterior import chance, first_mixtures, fit_posterior, influence_scales, propose, recommend
from mixing.posterior.kernel import features
from mixing.posterior.recommend import NO_EFFECT

OBJECTIVE = np.full(3, 1 / 3)
Cells = dict[str, list[float]]


def coverage(worlds: int) -> str:
    """How often 90 % intervals hold the truth, at random mixtures, at the recommended one, and for the weights."""
    rows = []
    for regime, n in (("interior", 24), ("interior", 48), ("sparse", 48)):
        cells: Cells = {}
        for number in range(worlds // 3):
            world = make_world(FAMILIES[number % 3], regime, 1000 + number)
            posterior = fit_posterior(world.table(n, 0))
            found = recommend(posterior, OBJECTIVE, world.simplex(), seed=number)
            points = world.design(20, 7)
            truth, samples = world.losses(points), posterior.samples(points, 400, 1)
            _add(cells, "capability", _held(samples, truth))
            _add(cells, "objective", _held(samples @ OBJECTIVE, truth @ OBJECTIVE))
            gain = float(world.objective(_uniform(world))[0] - world.objective(found.weights)[0])
            promised, low, high = found.gain_over["uniform"]
            _add(cells, "gain", float(low <= gain <= high))
            _add(cells, "true gain", gain)
            _add(cells, "promised", promised)
            optimum = np.where(world.optimum < 1e-3, 0.0, world.optimum)
            inside = (found.intervals[:, 0] - 1e-3 <= optimum) & (optimum <= found.intervals[:, 1] + 1e-3)
            _add(cells, "weights", float(inside.mean()))
            if (optimum > 0).any():
                _add(cells, "positive weights", float(inside[optimum > 0].mean()))
            _add(cells, "width", float(np.ptp(found.intervals, axis=1).mean()))
        rows.append([regime, n, worlds // 3, *(f"{100 * np.mean(cells[k]):.0f} %" for k in
                     ("capability", "objective", "gain", "weights", "positive weights")),
                     f"{np.mean(cells['width']):.2f}",
                     f"{np.mean(cells['promised']) / np.mean(cells['true gain']):.2f}"])  # fmt: skip
    header = [
        "regime", "runs", "worlds", "loss of a capability", "objective", "gain over uniform of the recommended",
        "weights of the optimum", "those that are not 0", "mean width of weights",
        "mean gain promised, of the true one",
    ]  # fmt: skip
    return "Share of 90 % intervals that hold the truth (goal: 85 to 95 %).\n\n" + table(header, rows)


def equal(worlds: int) -> str:
    """How often a win over uniform is claimed where all mixtures are equal; worlds that no rule was tuned on.

    A claim needs the test by permutation, which needs no fit, so the posterior is fitted only where it passes.
    """
    rows = []
    for regime, n in (("interior", 24), ("sparse", 24)):
        passed, claims, count = 0, 0, worlds // 2
        for number in range(count):
            world = make_world("equal", regime, 20_000 + number)
            runs = world.table(n, 0)
            at = features(runs.weights, chance.EPSILON)
            if chance.permutation_p(at, runs.losses @ OBJECTIVE, np.full(n, -1), number) > NO_EFFECT:
                continue
            passed += 1
            found = recommend(fit_posterior(runs), OBJECTIVE, world.simplex(), draws=2, seed=number)
            claims += found.separable
        share = claims / count
        error = np.sqrt(share * (1 - share) / count)
        rows.append([regime, n, count, passed, f"{claims} ({100 * share:.1f} ± {100 * error:.1f} %)"])
    header = [
        "regime",
        "runs",
        "worlds",
        f"test by permutation at most {NO_EFFECT}",
        "claims, standard error",
    ]
    return (
        "Worlds in which all mixtures have the same losses: claims of a win over uniform (goal: at most 5 %).\n\n"
        + table(header, rows)
    )


def adaptive(worlds: int) -> str:
    """Three rounds of eight runs, chosen by the posterior, against random runs."""
    rows = []
    for regime in REGIMES:
        cells: Cells = {}
        for number in range(worlds):
            world = make_world(FAMILIES[number % 3], regime, 4000 + number)
            for n in (24, 48):
                _add(cells, f"{n} random", world.regret(best_of(fit_posterior(world.table(n, 0)), world)))
            _add(cells, "24 adaptive", world.regret(adaptive_swarm(world)))
        difference = np.array(cells["24 adaptive"]) - np.array(cells["48 random"])
        rows.append(
            [regime, worlds, *(f"{np.mean(v):.2f} ({np.median(v):.2f})" for v in cells.values()),
             f"{difference.mean():+.2f} +- {difference.std(ddof=1) / np.sqrt(worlds):.2f}"]
        )  # fmt: skip
    header = [
        "regime",
        "worlds",
        "24 random",
        "48 random",
        "3 rounds of 8",
        "8 x 3 minus 48 random, standard error",
    ]
    return "Regret of the posterior's mixture in percent, mean (median).\n\n" + table(header, rows)


def adaptive_swarm(world: World, rounds: int = 3, size: int = 8) -> np.ndarray:
    """The mixture after `rounds` rounds of `size` runs."""
    weights = first_mixtures(world.simplex(), size)
    losses = world.run(weights, 1)
    for number in range(2, rounds + 1):
        posterior = fit_posterior(as_table(world.sources, weights, losses), seed=number)
        chosen = propose(posterior, world.simplex(), size, objective=OBJECTIVE, seed=number)
        weights = np.vstack([weights, chosen])
        losses = np.vstack([losses, world.run(chosen, number)])
    return best_of(fit_posterior(as_table(world.sources, weights, losses)), world)


def influence(worlds: int) -> str:
    """Regret of 16 runs with and without influence at uniform, and what its learned scale says."""
    kinds = ("none", "informative", "biased", "useless")
    rows = []
    for regime in REGIMES:
        regrets: Cells = {}
        scales: Cells = {}
        worth: Cells = {}
        for number in range(worlds):
            world = make_world(FAMILIES[number % 3], regime, 5000 + number)
            runs = world.table(16, 0)
            for kind in kinds:
                posterior = fit_posterior(runs, influence=() if kind == "none" else world.influence(kind, 0))
                _add(regrets, kind, world.regret(best_of(posterior, world)))
                for scale in influence_scales(posterior):
                    _add(scales, kind, scale.scale)
                    _add(worth, kind, float(scale.worth))
        for kind in kinds:
            shown = (
                ["", ""]
                if kind == "none"
                else [f"{np.mean(scales[kind]):.2f}", f"{100 * np.mean(worth[kind]):.0f} %"]
            )
            rows.append(
                [
                    regime,
                    kind,
                    worlds,
                    f"{np.mean(regrets[kind]):.2f} ({np.median(regrets[kind]):.2f})",
                    *shown,
                ]
            )
    header = [
        "regime",
        "influence",
        "worlds",
        "regret, mean (median)",
        "mean scale",
        "scale above 0 with probability .95",
    ]
    return "16 random runs, and influence at the uniform mixture.\n\n" + table(header, rows)


def speed(_: int) -> str:
    """CPU seconds to fit and recommend."""
    rows = []
    for m, n in ((7, 24), (7, 48), (14, 100)):
        rng = np.random.default_rng(m)
        weights = rng.dirichlet(np.full(m, 1.0), size=n)
        slopes = -np.abs(rng.normal(0, 0.5, (3, m)))
        losses = 2 + np.exp(weights @ slopes.T) + rng.normal(0, 0.01, (n, 3))
        runs = as_table(tuple(f"s{j:02d}" for j in range(m)), weights, losses)
        world = make_world("law", "interior", 0)
        simplex = type(world.simplex())(runs.sources, np.zeros(m), np.ones(m))
        began = time.process_time()
        posterior = fit_posterior(runs)
        fitted = time.process_time()
        recommend(posterior, OBJECTIVE, simplex)
        decided = time.process_time()
        propose(posterior, simplex, 8, objective=OBJECTIVE)
        rows.append(
            [m, n, f"{fitted - began:.2f}", f"{decided - fitted:.2f}", f"{time.process_time() - decided:.2f}"]
        )
    return "CPU seconds, three capabilities, one thread.\n\n" + table(
        ["sources", "runs", "fit", "recommend, with intervals", "propose 8 runs"], rows
    )


def swarms(worlds: int) -> str:
    """Real proxies: which of 256 held-out mixtures of RegMix's 1M swarm each surrogate would pick."""
    folder = os.environ.get("MIXWRIGHT_SWARMS")
    if not folder or not (Path(folder) / "train_mixture_1m.csv").exists():
        return "Public swarms: skipped, MIXWRIGHT_SWARMS names no folder with RegMix's CSV files."
    train = read_proxy_table(Path(folder) / "train_mixture_1m.csv", Path(folder) / "train_pile_loss_1m.csv")
    test = read_proxy_table(Path(folder) / "test_mixture_1m.csv", Path(folder) / "test_pile_loss_1m.csv")
    truth = test.losses.mean(axis=1)
    subsets = max(2, worlds // 3)
    rows = []
    for n in (24, 48):
        cells: Cells = {}
        held = []
        for subset in range(subsets):
            pick = np.sort(np.random.default_rng([subset, n]).choice(len(train.run_ids), n, replace=False))
            part = ProxyTable(
                tuple(train.run_ids[i] for i in pick),
                train.sources, train.weights[pick], train.metrics, train.losses[pick],
            )  # fmt: skip
            posterior = fit_posterior(part)
            samples = posterior.samples(test.weights, 200).mean(axis=2)
            held.append(_held(samples, truth))
            predictions = {
                "posterior": posterior.mean(test.weights).mean(axis=1),
                "gaussian-process": np.mean(
                    [
                        fit_process(part.weights, y, epsilon=0.002).predict(test.weights)
                        for y in part.losses.T
                    ],
                    axis=0,
                ),
                "log-linear": np.mean(
                    [fit_log_linear(part.weights, y).predict(test.weights) for y in part.losses.T], axis=0
                ),
            }
            for name, predicted in predictions.items():
                _add(cells, name + " regret", float(truth[np.argmin(predicted)] - truth.min()))
                _add(cells, name + " rank", float(np.corrcoef(_ranks(predicted), _ranks(truth))[0, 1]))
            _add(cells, "best seen", float(part.losses.mean(axis=1).min() - truth.min()))
        for name in ("posterior", "gaussian-process", "log-linear"):
            rank, loss = np.mean(cells[name + " rank"]), np.mean(cells[name + " regret"])
            shown = f"{100 * np.mean(held):.0f} %" if name == "posterior" else ""
            rows.append([n, name, subsets, f"{rank:.2f}", f"{loss:.3f}", shown])
        rows.append([n, "best of the runs themselves", subsets, "", f"{np.mean(cells['best seen']):.3f}", ""])
    header = [
        "runs",
        "surrogate",
        "subsets",
        "rank correlation",
        "regret, nats",
        "90 % intervals that hold",
    ]
    return (
        "RegMix's public swarm, 1M parameters, 17 sources, mean of its 13 losses, 256 held-out mixtures.\n"
        "(Held-out losses carry the noise of one run, which the intervals do not.)\n\n" + table(header, rows)
    )


def _uniform(world: World) -> np.ndarray:
    return np.full(len(world.sources), 1 / len(world.sources))


def _held(samples: np.ndarray, truth: np.ndarray) -> float:
    low, high = np.quantile(samples, [0.05, 0.95], axis=0)
    return float(((low <= truth) & (truth <= high)).mean())


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values))


def _add(cells: Cells, name: str, value: float) -> None:
    cells.setdefault(name, []).append(value)


SECTIONS: dict[str, tuple[Callable[..., str], int]] = {
    "coverage": (coverage, 180),
    "equal": (equal, 2000),
    "regret": (regret, 12),
    "adaptive": (adaptive, 12),
    "influence": (influence, 6),
    "evidence": (evidence, 10),
    "speed": (speed, 1),
    "swarms": (swarms, 6),
}
"""Each section with its usual number of worlds."""


def main() -> None:
    """Measure and print; --write puts each section into docs/benchmarks.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[])
    parser.add_argument("--worlds", type=int)
    parser.add_argument("--results", type=Path, help="regret, evidence: file of worlds done, which continues")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    for name in options.sections or SECTIONS:
        work, usual = SECTIONS[name]
        began = time.process_time()
        more = (options.results,) if name in ("regret", "evidence") else ()
        body = work(options.worlds or usual, *more)
        cost = f"{time.process_time() - began:.0f} CPU-seconds. {machine('numpy', 'scipy')}"
        publish(f"mixing {name}", f"## Mixtures: {name}\n\n{body}\n{cost}", write=options.write)


if __name__ == "__main__":
    main()
