"""All training runs of the study, in an order in which stopping early leaves whole pairs.

    python -m benchmarks.study.runs --corpora FOLDER --out FOLDER [--until PHASE]

    trunk/      where the shape has one: the model that all other runs start from
    reference/  uniform (search seeds) and one domain model per capability, with checkpoints
    proxies/    leave-one-out (replaced tokens) and random mixtures
    influence/  see benchmarks.study.influence
    mixtures.json, target/  what each method proposes, and its runs with the target seeds
    truth/      more leave-one-out, for the fidelity of influence alone
    longer/     some of the mixtures for three times the budget at which they were found

A finished run is not repeated; a killed one continues. All runs of a seed start from the same weights and read
each source in the same order. `runs.csv` has a row per finished run.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.measure import CORPORA
from benchmarks.study.corpora import CAPABILITIES, SPLITS, Corpora, made_up_sources, prepare, real_sources
from benchmarks.study.shape import SHAPES, StudyShape
from curation.atomic import write_text
from mixing.leave_one_out import plan_leave_one_out
from mixing.proxy import ProxyRun, ProxySettings
from mixing.runs import ProxyResult, read_result, run_proxies
from training.settings import TrainSettings

GROUPS = ("reference", "proxies", "target", "truth", "longer")
TRUNK_SEED = 100
LONGER = ("uniform", "gaussian-process", "influence-paper", "influence-uniform")
LONGER_STEPS, LONGER_SEEDS = 3, 4
PHASES = ("reference", "proxies", "influence", "target", "truth", "longer")


def study_settings(
    corpora: Corpora, shape: StudyShape, *, checkpoints: bool, start: Path | None = None
) -> ProxySettings:
    """What the runs share; with `checkpoints`, those of the reference models."""
    train = TrainSettings(
        sequence_tokens=shape.sequence,
        batch_sequences=shape.batch,
        steps=shape.steps,
        learning_rate=shape.learning_rate,
        warmup_steps=shape.steps // 20,
        schedule="linear_to_zero",
        precision=shape.precision,  # type: ignore[arg-type]
        device="cpu",
        checkpoint_steps=shape.checkpoint_steps if checkpoints else (),
    )
    return ProxySettings(
        shape.model,
        train,
        corpora.tokens(),
        corpora.probes(),
        corpora.tokenizer,
        block=120,
        context=shape.sequence,
        stride=shape.sequence,
        keep="all" if checkpoints else "none",
        init_from=start,
    )


def make_trunk(out: Path, corpora: Corpora, shape: StudyShape) -> Path | None:
    """Train the trunk, if there is to be one; its last checkpoint."""
    if not shape.trunk_steps:
        return None
    settings = study_settings(corpora, shape, checkpoints=False)
    train = replace(
        settings.train, steps=shape.trunk_steps, schedule="constant", warmup_steps=1 + shape.trunk_steps // 50
    )
    run = ProxyRun("trunk", uniform(corpora.sources), TRUNK_SEED)
    run_proxies([run], replace(settings, train=train, keep="weights"), out / "trunk", workers=0)
    return out / "trunk" / "trunk" / "train" / "checkpoints" / f"step-{shape.trunk_steps}"


def uniform(sources: Iterable[str]) -> dict[str, float]:
    names = sorted(sources)
    return dict.fromkeys(names, 1 / len(names))


def reference_runs(corpora: Corpora, shape: StudyShape) -> list[ProxyRun]:
    """The uniform mixture with each search seed, and the paper's three domain models."""
    names, seed = corpora.sources, shape.search_seeds[0]
    runs = [ProxyRun(f"uniform-seed{s}", uniform(names), s) for s in shape.search_seeds]
    for capability, members in CAPABILITIES.items():
        weights = {name: 1 / len(members) if name in members else 0.0 for name in names}
        runs.append(ProxyRun(f"domain-{capability}-seed{seed}", weights, seed))
    return runs


def proxy_runs(corpora: Corpora, shape: StudyShape) -> list[ProxyRun]:
    """Leave-one-out by seeds, then random mixtures; the random mixtures are a function of their number."""
    plan = plan_leave_one_out(corpora.sources, None, shape.search_seeds)
    left_out = [run for (source, _), run in plan.runs.items() if source is not None]
    left_out.sort(key=lambda run: run.seed)
    drawn = []
    for number in range(shape.random):
        shares = np.random.default_rng([0xD1, number]).dirichlet(np.ones(len(corpora.sources)))
        weights = dict(zip(corpora.sources, shares.tolist(), strict=True))
        drawn.append(ProxyRun(f"random-{number:02}", weights, shape.search_seeds[0]))
    return left_out + drawn


def truth_runs(corpora: Corpora, shape: StudyShape) -> list[ProxyRun]:
    """Leave-one-out with further seeds, the full mixture of each among them under the name of the reference runs."""
    plan = plan_leave_one_out(corpora.sources, None, shape.truth_seeds) if shape.truth_seeds else None
    runs = plan.runs.values() if plan else ()
    named = [replace(r, run_id=r.run_id.replace("loo-all", "uniform")) for r in runs]
    return sorted(named, key=lambda run: (run.seed, run.run_id))


def target_runs(mixtures: Mapping[str, Mapping[str, float]], seeds: Iterable[int]) -> list[ProxyRun]:
    """Every mixture with one seed before any with the next; a method that returns uniform itself needs no run."""
    base = mixtures["uniform"]
    chosen = [n for n in sorted(mixtures) if n == "uniform" or not _same(mixtures[n], base)]
    return [ProxyRun(f"{name}-seed{seed}", dict(mixtures[name]), seed) for seed in seeds for name in chosen]


def _same(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    return max(abs(a[name] - b[name]) for name in b) < 1e-9


def run_study(out: Path, shape: StudyShape, corpora_folder: Path | None, until: str = "longer") -> None:
    """Make everything up to the phase `until`; without a folder of corpora, on made-up text."""
    from benchmarks.study.influence import score_references
    from benchmarks.study.mixtures import propose_mixtures

    sources = made_up_sources() if corpora_folder is None else real_sources(corpora_folder)
    corpora = prepare(out / "corpora", sources, shape.corpora)
    wanted = PHASES[: PHASES.index(until) + 1]
    make(out, "reference", reference_runs(corpora, shape), corpora, shape)
    if "proxies" in wanted:
        make(out, "proxies", proxy_runs(corpora, shape), corpora, shape)
    if "influence" in wanted:
        score_references(out, corpora, shape, shape.search_seeds[:1])
    if "target" in wanted:
        for seed in shape.target_seeds:  # methods that have come since are added to what is there
            mixtures = propose_mixtures(out, corpora, shape)
            make(out, "target", target_runs(mixtures, [seed]), corpora, shape)
    if "truth" in wanted:
        make(out, "truth", truth_runs(corpora, shape), corpora, shape)
        score_references(out, corpora, shape, shape.search_seeds[1:])
    if "longer" in wanted:
        mixtures = propose_mixtures(out, corpora, shape)
        chosen = {name: mixtures[name] for name in LONGER if name in mixtures}
        for seed in shape.target_seeds[:LONGER_SEEDS]:
            long = replace(shape, steps=LONGER_STEPS * shape.steps)
            make(out, "longer", target_runs(chosen, [seed]), corpora, long)


def make(out: Path, group: str, runs: list[ProxyRun], corpora: Corpora, shape: StudyShape) -> None:
    start = make_trunk(out, corpora, shape)
    settings = study_settings(corpora, shape, checkpoints=group == "reference", start=start)
    run_proxies(runs, settings, out / group, workers=0, description=f"{group} runs")
    write_runs(out, corpora)


def finished(out: Path, group: str) -> dict[str, ProxyResult]:
    """Finished runs of a group by run id."""
    found = sorted((out / group).glob("*/result.json"))
    return {path.parent.name: read_result(out / group, path.parent.name) for path in found}


def probe_losses(result: ProxyResult) -> dict[str, float]:
    """Bits per byte at the end by probe, and their means by split and capability: `search/code`."""
    last = max(row["step"] for row in result.metrics)
    losses = {row["probe"]: row["bits_per_byte"] for row in result.metrics if row["step"] == last}
    return losses | {
        f"{split}/{capability}": float(np.mean([losses[f"{split}-{s}"] for s in members]))
        for split in SPLITS
        for capability, members in CAPABILITIES.items()
    }


def write_runs(out: Path, corpora: Corpora) -> None:
    """`runs.csv`: group, id, seed, cost, shares (`w:source`) and losses of every finished run."""
    rows, probes = [], list(corpora.probes())
    for group in GROUPS:
        for name, result in finished(out, group).items():
            losses = probe_losses(result)
            costs = [result.tokens, f"{result.flops:.4g}", f"{result.evaluation_flops:.4g}"]
            shares = [f"{result.run.weights.get(s, 0.0):.6g}" for s in corpora.sources]
            seconds = f"{result.cpu_seconds:.1f}"
            rows.append(
                [
                    group,
                    name,
                    result.run.seed,
                    *costs,
                    seconds,
                    *shares,
                    *(f"{losses[p]:.6f}" for p in probes),
                ]
            )
    header = ["group", "run", "seed", "tokens", "flops", "evaluation_flops", "cpu_seconds"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*header, *(f"w:{s}" for s in corpora.sources), *probes])
    writer.writerows(rows)
    write_text(out / "runs.csv", text.getvalue())


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="scratch")
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--corpora", type=Path, default=CORPORA)
    parser.add_argument("--until", choices=PHASES, default="longer")
    parser.add_argument("--target-seeds", type=int, help="how many of the target seeds to run")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.target_seeds is not None:
        shape = replace(shape, target_seeds=shape.target_seeds[: options.target_seeds])
    run_study(
        options.out, shape, None if options.shape.startswith("tiny") else options.corpora, options.until
    )


if __name__ == "__main__":
    main()
