"""The study of fidelity and of mixtures: its splits, its statistics, and all of it once in small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.study.agreement import (
    Truth,
    correlation,
    left_out_agreement,
    mixture_agreement,
    partial_correlation,
    source_densities,
)
from benchmarks.study.corpora import NOISE, CorpusShape, cut, noise_files, prepare, split_source, word_grams
from benchmarks.study.fidelity import write_fidelity
from benchmarks.study.head_to_head import compare_all, write_comparison
from benchmarks.study.influence import load_benefits
from benchmarks.study.mixtures import first_order_gain, influence_weights
from benchmarks.study.runs import finished, make_trunk, run_study, study_settings
from benchmarks.study.shape import SHAPES
from curation.documents import read_documents
from mixing.influence import choose_samples, probe_directions, score
from probes.likelihood import tokenize_documents
from training.checkpoint import load_checkpoint_model
from training.tokenizer import load_tokenizer
from training.tokens import TokenSource

SMALL = replace(
    SHAPES["tiny-branch"],
    search_seeds=(0,),
    truth_seeds=(2,),
    target_seeds=(10,),
    random=2,
    checkpoints=2,
    documents=2,
    steps=2,
)


def test_pieces_are_the_text() -> None:
    text = "".join(f"line {i} of the text\n" for i in range(200))
    pieces = list(cut(text, 100))
    assert "".join(pieces) == text[: len("".join(pieces))] and len(text) - len("".join(pieces)) < 100
    assert all(50 <= len(piece) <= 100 and piece.endswith("\n") for piece in pieces)
    assert [len(piece) for piece in cut("x" * 250, 100)] == [100, 100, 50]


def test_a_file_stands_on_one_side_and_held_out_words_are_not_trained_on(tmp_path: Path) -> None:
    copied = " ".join(f"word{i}" for i in range(40))
    files = [(f"f{i}", f"text {i} " * 30 + (copied if i % 2 else "")) for i in range(40)]
    shape = CorpusShape(vocabulary=300, piece=200, share=1.0, probe_bytes=10_000, tokenizer_bytes=5000)
    split = split_source("python", files, shape)
    sides = [{d.id.split(":")[0] for d in split[part]} for part in ("train", "search", "test")]
    assert sum(map(len, sides)) == 40 == len(set.union(*sides)) and min(map(len, sides)) >= 2
    corpora = prepare(tmp_path, {"python": files, NOISE: noise_files(30_000, 0)}, shape)
    held = [
        d for p in ("search", "test") for d in read_documents(tmp_path / "probes" / f"{p}-python.parquet")
    ]
    grams = {g for d in held for g in word_grams(d.text)}
    assert grams
    kept = set(TokenSource.open(corpora.tokens()["python"]).ids)
    trained = [d for d in split["train"] if d.id in kept]
    assert trained and not grams & {g for d in trained for g in word_grams(d.text)}
    assert len(trained) < len(split["train"])


def test_noise_is_made_by_its_seed() -> None:
    made = [list(noise_files(20_000, seed)) for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
    assert 20_000 <= sum(len(text) for _, text in made[0]) < 40_000


def test_mixtures_are_compared_seed_by_seed() -> None:
    seeds = range(9)
    base = {s: {"code": 2.0 + s, "mathematics": 4.0, "knowledge": 1.0} for s in seeds}
    better = {s: {k: v * (0.99 - 0.001 * s) for k, v in row.items()} for s, row in base.items()}
    same = {s: {k: v * (1 + 1e-4 * (-1) ** s) for k, v in row.items()} for s, row in base.items()}
    rows = compare_all({"uniform": base, "a": better, "b": same | {99: base[0]}}, "uniform")
    assert [row.name for row in rows] == ["a", "b"]
    assert rows[0].mean == pytest.approx([-0.01 - 0.001 * s for s in seeds])
    assert rows[0].p_flip == 2 / 2**9 and rows[0].p_holm == 4 / 2**9
    assert (rows[0].verdict, rows[1].verdict) == ("better", "within 0.5 %")


def _truth(seed: int = 0) -> Truth:
    rng = np.random.default_rng(seed)
    slopes = rng.normal(size=(6, 1))
    shares = rng.dirichlet(np.ones(6), size=12)
    changes = -(shares - 1 / 6) @ slopes
    return Truth(tuple("abcdef"), ("code",), np.stack([slopes, slopes + 0.01]), changes, shares)


def test_true_slopes_are_found_to_agree() -> None:
    truth = _truth()
    rho = np.repeat(truth.deltas[:1, :, 0], 51, axis=0)
    left = left_out_agreement(rho, truth, 0)
    mixed = mixture_agreement(rho[0], truth, 0, np.eye(6)[0])
    assert left["spearman"] == mixed["lds"] == pytest.approx(1.0)
    assert mixture_agreement(-rho[0], truth, 0, np.eye(6)[0])["lds"] == pytest.approx(-1.0)
    assert truth.spread == pytest.approx([0.01 / 2])


def test_partial_correlation_takes_the_given_out() -> None:
    rng = np.random.default_rng(1)
    given = np.arange(200.0)
    a, b = given + 3 * rng.normal(size=200), given + 3 * rng.normal(size=200)
    assert correlation(a, b) > 0.95 and abs(partial_correlation(a, b, given)) < 0.25


def test_densities_weigh_documents_by_their_tokens() -> None:
    names = np.array(["a", "a", "b"])
    found = source_densities(np.array([2.0, 1.0, -1.0]), names, np.array([1, 3, 5]), ("a", "b"), draws=20)
    assert found[0] == pytest.approx([1.25, -1.0]) and found.shape == (21, 2)
    assert set(np.round(found[1:, 0], 6)) <= {2.0, 1.25, 1.0} and (found[1:, 1] == -1).all()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    run_study(out, SMALL, None)
    return out


def test_the_whole_study_in_small(study: Path, tmp_path: Path) -> None:
    write_fidelity(study, SMALL, tmp_path, draws=20, other=study)
    write_comparison(study, SMALL, tmp_path)
    schemes = (tmp_path / "fidelity.csv").read_text().splitlines()
    assert len(schemes) == 1 + 2 * 4 * 4 * 2, "two references, four preconditioners, four rules, two norms"
    page = (tmp_path / "fidelity.md").read_text() + (tmp_path / "head_to_head.md").read_text()
    runs = finished(study, "proxies") | finished(study, "reference")
    spent = [r.flops + r.evaluation_flops for name, r in runs.items() if name.startswith(("loo", "uniform"))]
    assert len(spent) == 11
    cost = sum(spent) / next(iter(finished(study, "target").values())).flops
    assert f"| leave-one-out | {cost:.1f} |" in page
    rows = (study / "runs.csv").read_text().splitlines()
    before = {p: p.stat().st_mtime_ns for p in study.glob("*/*/result.json")}
    assert len(rows) == 1 + len(before) - 1, "a row for every run but the trunk"
    run_study(study, SMALL, None)
    assert {p: p.stat().st_mtime_ns for p in study.glob("*/*/result.json")} == before


def test_scores_are_those_of_the_package(study: Path) -> None:
    result = finished(study, "reference")["uniform-seed0"]
    model = load_checkpoint_model(result.folder / "train" / "checkpoints" / "step-2", averaged=False)
    corpora = study_settings_of(study)
    samples = choose_samples([TokenSource.open(f) for f in corpora.tokens.values()], SMALL.documents, seed=0)
    text = read_documents(corpora.probes["search-wiki"])
    probe = tokenize_documents(text, load_tokenizer(corpora.tokenizer))
    directions = probe_directions(model, {"wiki": probe}, context=SMALL.sequence)
    expected = score(model, samples, directions, engine="explicit", context=SMALL.sequence, windows="all")
    (own,) = (b for b in load_benefits(study) if (b.reference, b.step) == ("uniform-seed0", 2))
    scale = directions["wiki"].probe_tokens / sum(d.bytes for d in probe) / np.log(2)
    assert own.of("identity", "wiki") == pytest.approx(scale * expected.benefit[:, 0], rel=1e-4)
    assert own.tokens.tolist() == expected.tokens.tolist()
    weights = influence_weights(load_benefits(study), "uniform-seed0")
    assert sum(weights.values()) == pytest.approx(1.0) and len(weights) == 10


def study_settings_of(out: Path):
    from benchmarks.study.corpora import Corpora

    return study_settings(Corpora(out / "corpora"), SMALL, checkpoints=False)


def test_branches_start_from_the_trunk(study: Path) -> None:
    from benchmarks.study.corpora import Corpora

    start = make_trunk(study, Corpora(study / "corpora"), SMALL)
    assert start is not None and start.name == "step-4" and (start / "model.safetensors").exists()
    begun = (study / "reference" / "uniform-seed0" / "train" / "training.json").read_text()
    assert '"start"' in begun or "init" in begun


def test_first_order_gain_is_exact_for_linear_losses(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slopes = {"a": 0.3, "b": -0.1, "c": -0.2}

    def effects(*_: object) -> list[dict[str, object]]:
        uniform = 0.0  # loss of a mixture w: sum_j slopes_j w_j; the slopes sum to zero
        return [
            {"source": s, "delta": sum(v / 2 for k, v in slopes.items() if k != s) - uniform} for s in slopes
        ]

    monkeypatch.setattr("benchmarks.study.mixtures.left_out_effects", effects)
    weights = {"a": 0.1, "b": 0.2, "c": 0.7}
    assert first_order_gain(study, weights, SMALL) == pytest.approx(
        -sum(slopes[s] * w for s, w in weights.items())
    )
