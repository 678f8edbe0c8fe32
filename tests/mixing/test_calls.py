"""`mixing.fit(...)` and its siblings: usable on a user's own tables, with numpy, scipy and polars alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

import mixing
from mixing.mixture import write_mixture
from tests.mixing.fit_tables import SOURCES, design, law, make_table

ROOT = Path(__file__).parents[2]

BARE = """
import sys
import mixing
runs = (sys.argv[1] + "/ratios.csv", sys.argv[1] + "/metrics.csv")
print(mixing.fit(runs, method="gaussian-process").evidence.verdict)
print(mixing.leave_one_out(runs).method)
print(mixing.influence_mixture(sys.argv[1] + "/benefits.csv").weights)
heavy = "datasets datatrove faiss lightgbm pandas pyarrow pydantic rich sklearn torch transformers typer yaml"
print(sorted(set(heavy.split()) & {name.split(".")[0] for name in sys.modules}))
"""


def _write(folder: Path) -> None:
    weights = np.vstack([np.full((1, 4), 0.25), (np.ones((4, 4)) - np.eye(4)) / 3, design(15)])
    rows = [",".join([f"r{i}", *map(repr, w)]) for i, w in enumerate(weights.tolist())]
    (folder / "ratios.csv").write_text("\n".join([",".join(["run", *SOURCES]), *rows]) + "\n")
    rows = [",".join([f"r{i}", *map(repr, y)]) for i, y in enumerate(law(weights).tolist())]
    (folder / "metrics.csv").write_text("\n".join(["run,m0,m1", *rows]) + "\n")
    (folder / "benefits.csv").write_text("source,document,tokens,benefit\na,x,10,3\nb,y,10,1\n")


def test_the_fitting_core_needs_no_torch(tmp_path) -> None:
    _write(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    verdict, method, weights, heavy = result.stdout.splitlines()
    assert heavy == "[]"
    assert verdict.startswith("Better than uniform") and method == "leave-one-out"
    assert weights == "{'a': 0.75, 'b': 0.25}"


def test_a_name_is_a_package_and_a_call(tmp_path) -> None:
    from mixing.fit import fit_mixture
    from mixing.leave_one_out import loo_weights

    _write(tmp_path)
    mixture = mixing.fit(tmp_path, method="best-of-n")
    assert mixture == fit_mixture(tmp_path / "ratios.csv", tmp_path / "metrics.csv", "best-of-n")
    assert callable(loo_weights) and mixing.leave_one_out(tmp_path, shrink=0.0).method == "leave-one-out"


def test_the_page_of_a_mixture_escapes_names(tmp_path) -> None:
    names = ("<script>alert(1)</script>", "code", "web", "wiki")
    mixture = mixing.fit(make_table(design(12), law(design(12)), sources=names), method="best-of-n")
    write_mixture(tmp_path / "mixture.json", mixture)
    page = mixing.report(tmp_path / "mixture.json").read_text()
    assert page == mixing.report(mixture, tmp_path / "other.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "Better than uniform" in page and "P(best)" in page and "What to use?" in page
