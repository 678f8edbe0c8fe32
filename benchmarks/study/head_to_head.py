"""Does any method's mixture beat uniform? Paired target runs on text that the search has not seen.

    python -m benchmarks.study.head_to_head --out FOLDER [--results FOLDER]

The measure, fixed before the runs: the mean over capabilities of the relative change in bits per byte against the
uniform mixture with the same seed, on the test split. Tests over seeds: exact sign flips, Holm's correction over
the methods, and two one-sided t tests for "within half a percent of uniform". Cost is FLOPs of the search and of one
target run. Writes `head_to_head.csv`, `mixtures.csv` and `head_to_head.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import machine, table
from benchmarks.study.corpora import CAPABILITIES, NOISE, Corpora
from benchmarks.study.mixtures import first_order_gain, surrogate_gains
from benchmarks.study.runs import LONGER_STEPS, arguments, finished, probe_losses
from benchmarks.study.shape import SHAPES, StudyShape
from curation.atomic import read_json, write_text
from curation.errors import DataError
from mixing.paired import equivalence_test, holm, sign_flip_test, smallest_detectable, t_interval

MARGIN = 0.005
LEVEL = 0.9


@dataclass(frozen=True)
class Compared:
    """One mixture against uniform: relative differences by seed, negative = fewer bits, better.

    mean : [seeds], over the capabilities; by_capability : [seeds, capabilities]
    """

    name: str
    mean: np.ndarray
    by_capability: np.ndarray
    p_flip: float
    p_holm: float
    p_equivalent: float | None

    @property
    def verdict(self) -> str:
        """What may be said at level .1, after Holm's correction."""
        if self.p_holm <= 1 - LEVEL:
            return "better" if self.mean.mean() < 0 else "worse"
        return (
            "within 0.5 %" if self.p_equivalent is not None and self.p_equivalent <= 0.05 else "not separable"
        )


def read_scores(out: Path, split: str, group: str = "target") -> dict[str, dict[int, dict[str, float]]]:
    """Bits per byte by mixture, seed and capability of the target runs, or of the longer ones."""
    scores: dict[str, dict[int, dict[str, float]]] = {}
    for name, result in finished(out, group).items():
        losses = probe_losses(result)
        mixture = name.rsplit("-seed", 1)[0]
        scores.setdefault(mixture, {})[result.run.seed] = {c: losses[f"{split}/{c}"] for c in CAPABILITIES}
    return scores


def compare_all(scores: Mapping[str, Mapping[int, Mapping[str, float]]], against: str) -> list[Compared]:
    """Every mixture against one, on the seeds that all have, the best first."""
    seeds = sorted(set.intersection(*(set(found) for found in scores.values())))
    if not seeds:
        raise DataError(
            "No seed has been run with every mixture",
            where="target runs",
            remedy="Let benchmarks.study.runs finish a seed",
        )
    values = {
        name: np.array([[found[s][c] for c in CAPABILITIES] for s in seeds]) for name, found in scores.items()
    }
    base = values.pop(against)
    relative = {name: value / base - 1 for name, value in values.items()}
    means = {name: value.mean(axis=1) for name, value in relative.items()}
    flips = [sign_flip_test(means[name].tolist()) for name in means]
    rows = [
        Compared(
            name, means[name], relative[name], flip, adjusted, equivalence_test(means[name].tolist(), MARGIN)
        )
        for name, flip, adjusted in zip(means, flips, holm(flips), strict=True)
    ]
    return sorted(rows, key=lambda row: row.mean.mean())


def comparison_table(rows: Sequence[Compared], proposed: Mapping[str, Any], run_flops: float) -> str:
    lines = []
    for row in rows:
        low, high = t_interval(row.mean.tolist(), LEVEL) or (float("nan"), float("nan"))
        by_capability = 100 * row.by_capability.mean(axis=0)
        entry = proposed.get(row.name, {"weights": {}, "search_flops": 0.0})
        lines.append(
            [
                row.name,
                f"{entry['search_flops'] / run_flops:.1f}",
                f"{100 * row.mean.mean():+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
                " / ".join(f"{v:+.2f}" for v in by_capability),
                f"{row.p_flip:.3f}",
                f"{row.p_holm:.3f}",
                "" if row.p_equivalent is None else f"{row.p_equivalent:.3f}",
                f"{100 * (smallest_detectable(row.mean.tolist()) or float('nan')):.2f}",
                row.verdict,
                f"{entry['weights'].get(NOISE, float('nan')):.3f}",
            ]
        )
    header = ["mixture", "search, in target runs", "change of the mean, % (90 %)"]
    header += [" / ".join(CAPABILITIES), "p", "p, Holm", "p, not within 0.5 %", "detectable, %"]
    return table([*header, "verdict", f"share of {NOISE}"], lines)


def prediction_table(
    out: Path, shape: StudyShape, rows: Sequence[Compared], proposed: Mapping[str, Any], base: float
) -> str:
    """What the search promised, in percent of the uniform loss, beside what came of it."""
    mixtures = {row.name: proposed[row.name]["weights"] for row in rows if row.name in proposed}
    promised = {
        "first order, leave-one-out": {n: first_order_gain(out, w, shape) for n, w in mixtures.items()},
        "Gaussian process": surrogate_gains(out, mixtures, "gaussian-process"),
        "log-linear": surrogate_gains(out, mixtures, "log-linear"),
    }
    realised = {row.name: f"{100 * row.mean.mean():+.2f}" for row in rows}
    lines = [
        [name, *(f"{-100 * gains[name] / base:+.2f}" for gains in promised.values()), realised[name]]
        for name in mixtures
    ]
    return table(["mixture", *promised, "realised"], lines)


def weight_table(proposed: Mapping[str, Any], sources: Sequence[str]) -> str:
    lines = [
        [name, *(f"{entry['weights'].get(s, 0.0):.3f}" for s in sources)]
        for name, entry in sorted(proposed.items())
    ]
    return table(["mixture", *sources], lines)


def score_csv(scores: Mapping[str, Mapping[int, Mapping[str, float]]], split: str) -> str:
    lines = ["split,mixture,seed," + ",".join(CAPABILITIES)]
    for name in sorted(scores):
        for seed in sorted(scores[name]):
            lines.append(
                f"{split},{name},{seed}," + ",".join(f"{v:.6f}" for v in scores[name][seed].values())
            )
    return "\n".join(lines) + "\n"


def write_comparison(out: Path, shape: StudyShape, results: Path) -> None:
    """All tables of the target runs, on the seeds that every mixture has."""
    corpora, proposed = Corpora(out / "corpora"), read_json(out / "mixtures.json")
    scores = {split: read_scores(out, split) for split in ("test", "search")}
    longer = read_scores(out, "test", "longer")
    rows = compare_all(scores["test"], "uniform")
    run_flops = next(iter(finished(out, "target").values())).flops
    base = float(np.mean([list(found.values()) for found in scores["test"]["uniform"].values()]))
    text = "\n".join(
        [
            f"## Against uniform, {len(rows[0].mean)} paired seeds, text that the search has not seen\n",
            comparison_table(rows, proposed, run_flops),
            "## The same on the text of the search\n",
            comparison_table(compare_all(scores["search"], "uniform"), proposed, run_flops),
            f"## {LONGER_STEPS} times the budget, text that the search has not seen\n",
            comparison_table(compare_all(longer, "uniform"), proposed, LONGER_STEPS * run_flops)
            if longer
            else "Not run.\n",
            "## Promised and realised change of the mean loss, %\n",
            prediction_table(out, shape, rows, proposed, base),
            "## The mixtures\n",
            weight_table(proposed, corpora.sources),
            f"A target run: {run_flops:.3g} FLOPs. {machine('torch', 'scipy')}\n",
        ]
    )
    write_text(results / "head_to_head.md", text)
    rows_of_longer = score_csv(longer, "test longer").split("\n", 1)[1] if longer else ""
    write_text(results / "head_to_head.csv", score_csv(scores["test"], "test") + rows_of_longer)
    print(text)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    write_comparison(options.out, SHAPES[options.shape], options.results or options.out)


if __name__ == "__main__":
    main()
