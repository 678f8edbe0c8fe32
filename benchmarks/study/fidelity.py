"""Does influence predict retraining? The tables, from runs and scores that are done.

    python -m benchmarks.study.fidelity --out FOLDER [--results FOLDER] [--other FOLDER]

`--other` is a study in the other shape, whose leave-one-out is compared with this one's.

Writes `fidelity.csv` (a row per scheme), `densities.csv`, `left_out.csv` and `fidelity.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import machine, table
from benchmarks.study.agreement import (
    DRAWS,
    NORMALISATIONS,
    RULES,
    Truth,
    correlation,
    evaluate_scheme,
    interval,
    read_rates,
    read_truth,
    schemes,
)
from benchmarks.study.corpora import NOISE, Corpora
from benchmarks.study.influence import load_benefits
from benchmarks.study.runs import arguments
from benchmarks.study.shape import SHAPES, StudyShape
from benchmarks.study.trivial import trivial_scores
from curation.atomic import write_text
from mixing.influence.directions import PRECONDITIONERS

Row = Mapping[str, Any]


def write_page(
    folder: Path,
    rows: Sequence[Row],
    trivial: Mapping[str, Row],
    truth: Truth,
    test: Truth,
) -> None:
    """`fidelity.md` and the CSV files."""
    parts = [
        "## Truth: what leaving a source out changes\n\n" + truth_table(truth, test),
        "## Schemes\n\n" + scheme_table(rows, truth),
        "## Choices, one at a time\n\n" + effects_table(rows),
        *(
            f"### Of the reference {name}\n\n"
            + effects_table([row for row in rows if row["scheme"].reference == name])
            for name in dict.fromkeys(row["scheme"].reference for row in rows)
        ),
        "## Without influence\n\n" + trivial_table(trivial, truth),
        f"{machine('torch', 'scipy', 'numpy')}\n",
    ]
    write_text(folder / "fidelity.md", "\n".join(parts))
    write_text(folder / "fidelity.csv", scheme_csv(rows, truth))
    write_text(folder / "left_out.csv", truth_csv(truth, test))
    write_text(folder / "densities.csv", density_csv(rows, truth))
    print("\n".join(parts))


def truth_table(truth: Truth, test: Truth) -> str:
    """Deltas in thousandths of a bit per byte, search and test split, and how far seeds and splits agree."""
    rows: list[list[object]] = []
    for j in np.argsort(-truth.delta.mean(axis=1)):
        pairs = zip(truth.delta[j], test.delta[j], strict=True)
        cells = [f"{1e3 * a:+.1f} / {1e3 * b:+.1f}" for a, b in pairs]
        rows.append([truth.sources[j], *cells, f"{1e3 * truth.delta[j].mean():+.1f}"])
    rows.append(["standard error (seeds)", *(f"{1e3 * s:.1f}" for s in truth.spread), ""])
    if len(truth.deltas) > 1:
        rows.append(["Spearman, seed against seed", *_by_column(truth.deltas[0], truth.deltas[1]), ""])
    rows.append(["Spearman, search against test text", *_by_column(truth.delta, test.delta), ""])
    return table(["left out", *truth.capabilities, "mean"], rows)


def _by_column(a: np.ndarray, b: np.ndarray) -> list[str]:
    return [f"{correlation(a[:, c], b[:, c]):.2f}" for c in range(a.shape[1])]


def scheme_table(rows: Sequence[Row], truth: Truth, most: int = 12) -> str:
    """Plain scores of every reference first, then the best of all; the rest is in the CSV."""
    ranked = sorted(rows, key=lambda row: -row["spearman"])
    plain = [row for row in rows if row["scheme"].name.endswith(", identity, step, none")]
    lines = []
    for row in [*plain, *(row for row in ranked if row not in plain)][:most]:
        low, high = interval(row["draws"])
        lines.append(
            [
                row["scheme"].name,
                " / ".join(f"{row[f'spearman/{c}']:.2f}" for c in truth.capabilities),
                f"{row['spearman']:.2f} ({low:.2f} to {high:.2f})",
                f"{row['pearson']:.2f}",
                " / ".join(f"{row[f'lds/{c}']:.2f}" for c in truth.capabilities),
                "{:.2f} ({:.2f} to {:.2f})".format(row["lds"], *interval(row["lds_draws"])),
                f"{row['lds_partial']:.2f}",
                f"{row['noise']:.3f}",
            ]
        )
    header = ["reference, preconditioner, checkpoints, normalisation"]
    header += [f"Spearman {' / '.join(truth.capabilities)}", "mean (90 %)", "Pearson"]
    header += ["mixtures, Spearman", "mean (90 %)", "own share out", f"Eq. 6 share of {NOISE}"]
    return table(header, lines)


def effects_table(rows: Sequence[Row]) -> str:
    """Each choice's mean over all other choices, and the paired difference to the first in its group."""
    choices = {
        "reference": list(dict.fromkeys(row["scheme"].reference for row in rows)),
        "preconditioner": PRECONDITIONERS,
        "rule": RULES,
        "normalise": NORMALISATIONS,
    }
    lines = []
    for key, values in choices.items():
        if len(values) < 2:
            continue
        first: list[Row] = []
        for value in values:
            mine = [row for row in rows if getattr(row["scheme"], key) == value]
            first = first or mine
            cells = [_difference(mine, first, m, d) for m, d in (("spearman", "draws"), ("lds", "lds_draws"))]
            partial, noise = (np.mean([row[m] for row in mine]) for m in ("lds_partial", "noise"))
            lines.append([key, value, *cells, f"{partial:.2f}", f"{noise:.3f}"])
    header = ["choice", "value", "leave-one-out: Spearman, against the first (90 %)"]
    header += ["mixtures: Spearman, against the first (90 %)", "own share out", f"share of {NOISE}"]
    return table(header, lines)


def _difference(mine: Sequence[Row], first: Sequence[Row], measure: str, draws: str) -> str:
    """Mean of the measure, and its difference to that of `first` with the interval of the paired draws."""
    mean, base = (float(np.mean([row[measure] for row in group])) for group in (mine, first))
    if mine is first:
        return f"{mean:.2f}"
    drawn, other = (np.mean([row[draws] for row in group], axis=0) for group in (mine, first))
    low, high = interval(drawn - other)
    return f"{mean:.2f}, {mean - base:+.2f} ({low:+.2f} to {high:+.2f})"


def trivial_table(trivial: Mapping[str, Row], truth: Truth) -> str:
    lines = []
    for name, row in trivial.items():
        left = [row.get(f"spearman/{c}") for c in truth.capabilities]
        lds = [row.get(f"lds/{c}") for c in truth.capabilities]
        partial = [row.get(f"lds_partial/{c}") for c in truth.capabilities]
        lines.append([name, *(_cells(values) for values in (left, lds, partial))])
    return table(["predictor", "leave-one-out, Spearman", "mixtures, Spearman", "own share out"], lines)


def _cells(values: Sequence[float | None]) -> str:
    if any(v is None for v in values):
        return ""
    numbers = [float(v) for v in values if v is not None]
    return " / ".join(f"{v:.2f}" for v in numbers) + f" = {np.mean(numbers):.2f}"


def scheme_csv(rows: Sequence[Row], truth: Truth) -> str:
    keys = [f"{m}/{c}" for m in ("spearman", "pearson", "lds", "lds_partial") for c in truth.capabilities]
    lines = [
        "reference,preconditioner,checkpoints,normalisation,"
        + ",".join(keys)
        + ",spearman,low,high,lds,noise_share"
    ]
    for row in rows:
        s = row["scheme"]
        low, high = interval(row["draws"])
        numbers = [*(row[k] for k in keys), row["spearman"], low, high, row["lds"], row["noise"]]
        lines.append(
            ",".join([s.reference, s.preconditioner, s.rule, s.normalise, *(f"{v:.4f}" for v in numbers)])
        )
    return "\n".join(lines) + "\n"


def density_csv(rows: Sequence[Row], truth: Truth) -> str:
    """Densities by scheme and capability, divided by their root mean square over the sources."""
    lines = ["reference,preconditioner,checkpoints,normalisation,capability," + ",".join(truth.sources)]
    for row in rows:
        s = row["scheme"]
        for c, values in zip(truth.capabilities, row["densities"], strict=True):
            scaled = values / np.sqrt(np.mean(values**2))
            lines.append(
                ",".join(
                    [s.reference, s.preconditioner, s.rule, s.normalise, c, *(f"{v:.3f}" for v in scaled)]
                )
            )
    return "\n".join(lines) + "\n"


def truth_csv(truth: Truth, test: Truth) -> str:
    lines = ["split,seed,source," + ",".join(truth.capabilities)]
    for split, found in (("search", truth), ("test", test)):
        for seed, deltas in enumerate(found.deltas):
            for j, source in enumerate(found.sources):
                lines.append(f"{split},{seed},{source}," + ",".join(f"{v:.6f}" for v in deltas[j]))
    return "\n".join(lines) + "\n"


def arms_table(truth: Truth, other: Truth) -> str:
    """Leave-one-out of two studies of the same sources: noise of each, and how far they agree."""
    lines = []
    for c, capability in enumerate(truth.capabilities):
        a, b = truth.delta[:, c], other.delta[:, c]
        noise = [f"{1e3 * t.spread_between[c]:.1f}" for t in (truth, other)]
        seeds = [_by_column(t.deltas[0], t.deltas[1])[c] if len(t.deltas) > 1 else "" for t in (truth, other)]
        agreement = [f"{correlation(a, b):.2f}", f"{correlation(a, b, ranks=False):.2f}"]
        lines.append([capability, *noise, *seeds, *agreement])
    header = ["capability", "standard error here, 1e-3", "there", "Spearman of two seeds here", "there"]
    return table([*header, "Spearman of here and there", "Pearson"], lines)


def write_fidelity(
    out: Path, shape: StudyShape, results: Path, *, draws: int = DRAWS, other: Path | None = None
) -> None:
    """All tables of a study that is done, with scores of all reference models that have been scored."""
    corpora, scored = Corpora(out / "corpora"), load_benefits(out)
    truth = read_truth(out, corpora, shape)
    test = read_truth(out, corpora, shape, "test")
    rates = read_rates(corpora, shape)
    kinds = sorted({b.reference for b in scored if not b.reference.startswith("domain")})
    rows = [evaluate_scheme(s, scored, truth, rates, draws) for s in schemes(["domain", *kinds])]
    write_page(results, rows, trivial_scores(out, corpora, shape, scored, truth), truth, test)
    if other is not None:
        print("## The other study\n\n" + arms_table(truth, read_truth(other, corpora, shape)))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--draws", type=int, default=DRAWS)
    options = parser.parse_args()
    results = options.results or options.out
    write_fidelity(options.out, SHAPES[options.shape], results, draws=options.draws, other=options.other)


if __name__ == "__main__":
    main()
