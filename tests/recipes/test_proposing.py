"""The loop without a recipe, from the command line: propose, train elsewhere, propose again, decide."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import recipes.cli.fitting
import recipes.cli.proposing  # noqa: F401  they add their commands
from curation.errors import DataError, MixwrightError
from mixing.fit import fit_mixture, read_proxy_table
from mixing.fit.tables import ProxyTable
from mixing.mixture import read_mixture
from mixing.posterior import fit_posterior, read_deletions
from mixing.posterior.from_files import posterior_from
from recipes.cli import app
from tests.mixing.test_posterior import METRICS, SOURCES, deletions, gradient_evidence, law, runs
from tests.recipes.test_commands import mixwright


def _train(proposed: Path, folder: Path) -> tuple[str, ...]:
    """Append the proposed runs and their losses to the tables, as a user's trainer would."""
    with proposed.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    rng = np.random.default_rng(len(rows[0]["run_id"]))
    for name, columns in (("ratios.csv", SOURCES), ("metrics.csv", METRICS)):
        path = folder / name
        if not path.exists():
            path.write_text(",".join(["run_id", *columns]) + "\n")
        with path.open("a", encoding="utf-8") as handle:
            for row in rows:
                weights = np.array([[float(row[s]) for s in SOURCES]])
                losses = law(weights)[0] + rng.normal(0, 0.002, len(METRICS))
                values = [row[s] for s in SOURCES] if columns is SOURCES else map(repr, losses.tolist())
                handle.write(",".join([row["run_id"], *values]) + "\n")
    return "--ratios", str(folder / "ratios.csv"), "--metrics", str(folder / "metrics.csv")


def _study(path: Path, reading: str = "replaced") -> None:
    found = deletions(seeds=2)
    path.write_text(
        json.dumps(
            {
                "reading": reading,
                "seeds": [0, 1],
                "base_weights": dict(found.base),
                "effects": [
                    {
                        "source": s, "capability": c, "delta": 0.0, "low": 0.0, "high": 0.0,
                        "per_seed": {str(k): float(found.delta[k, i, j]) for k in range(2)},
                    }
                    for i, s in enumerate(found.removed)
                    for j, c in enumerate(found.capabilities)
                ],
            }
        )
    )  # fmt: skip


def test_propose_train_propose_and_decide_by_all_evidence(tmp_path: Path) -> None:
    names = [part for s in SOURCES for part in ("--source", s)]
    first = mixwright("propose", *names, "--runs", "6", "--out", str(tmp_path / "first.csv"))
    assert first.returncode == 0, first.stderr
    files = _train(tmp_path / "first.csv", tmp_path)
    _study(tmp_path / "loo.json")
    evidence = gradient_evidence(0.1)
    rows = ["source,capability,benefit"] + [
        f"{s},{c},{float(evidence.benefit[i, j])!r}"
        for i, s in enumerate(evidence.sources)
        for j, c in enumerate(evidence.capabilities)
    ]
    (tmp_path / "benefits.csv").write_text("\n".join(rows) + "\n")
    more = ("--leave-one-out", str(tmp_path / "loo.json"), "--influence", str(tmp_path / "benefits.csv"))
    second = mixwright(
        "propose", *files, *more, "--maximum", f"{SOURCES[0]}=0.3", "--runs", "4",
        "--out", str(tmp_path / "next.csv"), "--json",
    )  # fmt: skip
    assert second.returncode == 0, second.stderr
    asked = json.loads(second.stdout)
    assert [row["run_id"] for row in asked] == [f"run-{i:04d}" for i in range(7, 11)]
    assert all(row[SOURCES[0]] <= 0.3 + 1e-9 for row in asked)
    assert all(abs(sum(row[s] for s in SOURCES) - 1) < 1e-9 for row in asked)
    _train(tmp_path / "next.csv", tmp_path)

    done = mixwright(
        "fit", *files, *more, "--method", "posterior", "--pareto", str(tmp_path / "front.json"),
        "--out", str(tmp_path / "mixture.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    mixture = read_mixture(tmp_path / "mixture.json")
    assert mixture.evidence is not None and mixture.evidence.runs == 10
    assert mixture.evidence.basis == "one posterior of runs, leave-one-out, influence"
    assert set(mixture.inputs) == {"ratios.csv", "metrics.csv", "loo.json", "benefits.csv"}
    assert sum(note.startswith("Influence on ") for note in mixture.notes) == len(METRICS)
    # One posterior: what the evidence says of the mixture is what the posterior of the proposal says.
    table = read_proxy_table(tmp_path / "ratios.csv", tmp_path / "metrics.csv")
    posterior = posterior_from(
        table, leave_one_out=tmp_path / "loo.json", influence=tmp_path / "benefits.csv"
    )
    weights = np.array([[mixture.weights[s] for s in table.sources]])
    assert mixture.evidence.objective is not None
    assert mixture.evidence.objective.value == pytest.approx(float(posterior.mean(weights).mean()), rel=2e-3)
    again = fit_mixture(
        runs=table,
        method="posterior",
        leave_one_out=tmp_path / "loo.json",
        influence=tmp_path / "benefits.csv",
    )
    assert again.evidence == mixture.evidence and again.weights == mixture.weights
    # The balanced point of the front is the mixture itself.
    front = json.loads((tmp_path / "front.json").read_text())
    assert len(front["points"]) > 3 and len(front["prices"]) == len(METRICS) * (len(METRICS) - 1)
    for s in SOURCES:
        assert front["balanced"]["weights"][s] == pytest.approx(mixture.weights[s], abs=0.02)


def test_files_of_evidence_are_the_evidence_itself(tmp_path: Path) -> None:
    table, points = runs(12, noise=0.02), np.random.default_rng(0).dirichlet(np.ones(4), 5)
    _study(tmp_path / "loo.json")
    effects, found = deletions(seeds=2), read_deletions(tmp_path / "loo.json")
    np.testing.assert_array_equal(found.delta, effects.delta)
    np.testing.assert_allclose(
        posterior_from(table, leave_one_out=tmp_path / "loo.json").mean(points),
        fit_posterior(table, effects).mean(points),
        rtol=1e-12,
    )
    # Scores of documents: their token-weighted means by source and capability.
    evidence = gradient_evidence(0.1)
    rows = ["source,document,tokens,capability,benefit"]
    for i, s in enumerate(evidence.sources):
        for j, c in enumerate(evidence.capabilities):
            mean = float(evidence.benefit[i, j])
            rows += [f"{s},a,30,{c},{mean + 1!r}", f"{s},b,10,{c},{mean - 3!r}"]
    (tmp_path / "scores.csv").write_text("\n".join(rows) + "\n")
    np.testing.assert_allclose(
        posterior_from(table, influence=[tmp_path / "scores.csv"], measured_at=evidence.weights).mean(points),
        fit_posterior(table, influence=evidence).mean(points),
        rtol=1e-5,
    )


def test_requests_that_cannot_be(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "x.json"))
    (tmp_path / "bad.json").write_text("{}")
    _study(tmp_path / "missing.json", reading="missing")
    (tmp_path / "plain.csv").write_text("source,benefit\n" + "".join(f"{s},1\n" for s in SOURCES))
    names = [part for s in SOURCES for part in ("--source", s)]
    app(args=["propose", *names, "--runs", "6", "--out", str(tmp_path / "first.csv")], standalone_mode=False)
    files = _train(tmp_path / "first.csv", tmp_path)
    for arguments, sentence in (
        (("fit", *files, "--pareto", "f.json", *out), "--method posterior"),
        (("fit", *files, "--leave-one-out", str(tmp_path / "bad.json"), *out), "'posterior'"),
        (("fit", *files, "--method", "posterior", "--leave-one-out", str(tmp_path / "bad.json"), *out), "not a leave"),
        (("propose", *files, "--leave-one-out", str(tmp_path / "missing.json"), *out), "did not replace"),
        (("propose", *files, "--influence", str(tmp_path / "plain.csv"), *out), "does not say which"),
        (("propose", "--source", "a", *out), "two sources"),
        (("propose", *files[:2], *out), "one is missing"),
        (("propose", *files, "--runs", "0", *out), "1 to 1000"),
    ):  # fmt: skip
        with pytest.raises(MixwrightError, match=sentence):
            app(args=list(arguments), standalone_mode=False)
    assert not (tmp_path / "x.json").exists()


def test_a_study_whose_runs_are_in_the_table_would_count_twice(tmp_path: Path) -> None:
    base = np.full(4, 0.25)
    points = np.vstack([base, (np.ones((4, 4)) - np.eye(4)) / 3])
    table = ProxyTable(tuple("abcde"), SOURCES, points, METRICS, law(points))
    with pytest.raises(DataError, match="twice"):
        posterior_from(table, leave_one_out=deletions(seeds=2))
