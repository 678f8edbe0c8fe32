"""Tasks at every checkpoint of a run: found, resumed, written as a table; devices and tokenizers named."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import probes.checkpoint_series
from curation.errors import DataError, MixwrightError, RecipeError
from mixing.report.comparison import write_comparison
from probes.checkpoint_series import evaluate_series, models_in, read_points, tokenizer_beside
from probes.evaluate import evaluate
from probes.side_by_side import compare_many, outcome
from probes.task_scoring import Loaded
from tests.probes.tiny_evaluation import TEXTS, model_folder, write_rows
from training.checkpoint import TrainingState, describe_run, write_checkpoint
from training.huggingface import load_huggingface
from training.tokenizer import load_tokenizer, write_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with three checkpoints of one training and its tokenizer."""
    place = tmp_path_factory.mktemp("series")
    folder = model_folder(place / "start")
    model = load_huggingface(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    (place / "run").mkdir()
    write_tokenizer(load_tokenizer(folder), place / "run" / "tokenizer" / "model")
    encode = Loaded.of(folder).encode
    ids = torch.tensor(encode(TEXTS[:1])[0])[None]
    settings = describe_run(model.config, "order", {}, None)
    for step in (0, 10, 20):
        for _ in range(10 if step else 1):
            loss = torch.nn.functional.cross_entropy(model.logits(model(ids[:, :-1]))[0], ids[0, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        state = TrainingState(step, step, 0, settings)
        write_checkpoint(place / "run" / "checkpoints" / f"step-{step}", state, model, optimizer, None)
    return place / "run"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    write_rows(tmp_path / "texts.jsonl", [{"t": text + str(n)} for n, text in enumerate(TEXTS)])
    (tmp_path / "mine.yaml").write_text("name: mine\nscoring: likelihood\ndata: texts.jsonl\ntext: '{t}'\n")
    return tmp_path / "mine.yaml"


def test_perplexity_over_training(
    run: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = models_in([run])
    assert [(m.name, m.step) for m in found] == [("step-0", 0), ("step-10", 10), ("step-20", 20)]
    assert tokenizer_beside(found[0]) == run / "tokenizer" / "model"
    real, calls = evaluate, []

    def dies_at_the_third(model: Path, *rest: Any, **settings: Any) -> Any:
        calls.append(model.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(model, *rest, **settings)

    monkeypatch.setattr(probes.checkpoint_series, "evaluate", dies_at_the_third)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate_series(found, [task], out)
    assert read_points(out)[0] == ["step-0", "step-10"]
    results = evaluate_series(found, [task], out)
    assert [r["mine"].reused for r in results.values()] == [True, True, False]
    names, points = read_points(out)
    curve = [p.value for p in points if p.metric == "bits_per_byte"]
    assert names == ["step-0", "step-10", "step-20"] and max(curve[1:]) < curve[0]
    with (out / "trajectory.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [float(r["value"]) for r in rows if r["metric"] == "bits_per_byte"] == pytest.approx(curve)
    other = compare_many([out / "step-0", out])
    (difference,) = other.differences[other.contenders[1].name]
    assert difference.difference == pytest.approx(curve[2] - curve[0])
    assert outcome(replace(difference, low=-0.2, high=-0.1, difference=-0.15)) == "better"
    assert outcome(replace(difference, low=0.1, high=0.2, difference=0.15)) == "worse"
    assert len(other.contenders[1].points) == len(points)


def test_several_models_and_what_is_no_model(run: Path, tmp_path: Path) -> None:
    one = model_folder(tmp_path / "one")
    found = models_in([one, run / "checkpoints" / "step-10"])
    assert [(m.name, m.step) for m in found] == [("model", None), ("step-10", 10)]
    assert tokenizer_beside(found[0]) is None
    with pytest.raises(DataError, match="no model here"):
        models_in([tmp_path])
    two = models_in([one, model_folder(tmp_path / "two")])
    assert [m.name for m in two] == ["one-model", "two-model"]
    with pytest.raises(DataError, match="called one-model"):
        models_in([one, one])


def test_a_folder_of_models_that_are_no_steps_of_one_training_stands_for_each(
    task: Path, tmp_path: Path
) -> None:
    two = models_in([model_folder(tmp_path / "one"), model_folder(tmp_path / "two", seed=2)])
    evaluate_series(two, [task], tmp_path / "out")
    found = compare_many([tmp_path / "out"])
    assert [c.name for c in found.contenders] == ["one-model", "two-model"]
    assert list(found.differences) == ["two-model"] and not any(c.points for c in found.contenders)
    write_comparison(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "two-model" in page and "Over training" not in page


def test_a_checkpoint_without_tokenizer_and_an_unknown_device(run: Path, task: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "step-10"
    with pytest.raises(DataError, match=r"no tokenizer of its own.*--tokenizer"):
        evaluate(checkpoint, [task], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    given = evaluate(checkpoint, [task], tokenizer=run / "tokenizer" / "model")["mine"]
    assert given.metrics["likelihood"]["bits_per_byte"]["value"] > 0
    assert given.described["device"] == "cpu"
    for device in ("cuda", "mps", "abacus"):
        if device == "cuda" and torch.cuda.is_available():
            continue
        if device == "mps" and torch.backends.mps.is_available():
            continue
        with pytest.raises(MixwrightError, match="device"):
            evaluate(checkpoint, [task], tokenizer=run / "tokenizer" / "model", device=device)
    with pytest.raises(RecipeError, match="no precision"):
        evaluate(checkpoint, [task], tokenizer=run / "tokenizer" / "model", precision="int2")  # type: ignore[arg-type]


def test_bfloat16_is_another_result(run: Path, task: Path, tmp_path: Path) -> None:
    own = {"tokenizer": run / "tokenizer" / "model", "out": tmp_path / "out"}
    checkpoint = run / "checkpoints" / "step-10"
    wide = evaluate(checkpoint, [task], **own)["mine"].metrics["likelihood"]["bits_per_byte"]["value"]
    with pytest.raises(RecipeError, match="precision differ"):
        evaluate(checkpoint, [task], **own, precision="bfloat16")
    own["out"] = tmp_path / "narrow"
    narrow = evaluate(checkpoint, [task], **own, precision="bfloat16")["mine"].metrics["likelihood"]
    assert narrow["bits_per_byte"]["value"] == pytest.approx(wide, rel=0.02)
    assert narrow["bits_per_byte"]["value"] != wide


def test_comparisons_that_make_no_sense_are_refused(run: Path, task: Path, tmp_path: Path) -> None:
    own = {"tokenizer": run / "tokenizer" / "model"}
    for name in ("a", "b"):
        evaluate(run / "checkpoints" / "step-10", [task], out=tmp_path / name, **own)
    with pytest.raises(RecipeError, match="named twice"):
        compare_many([tmp_path / "a", tmp_path / "a"])
    with pytest.raises(RecipeError, match="not among the evaluations"):
        compare_many([tmp_path / "a", tmp_path / "b"], baseline="c")
    chosen = compare_many([tmp_path / "a", tmp_path / "b"], baseline="b")
    assert chosen.baseline == "b" and list(chosen.differences) == ["a"]
    assert asdict(chosen.differences["a"][0])["difference"] == 0
    with pytest.raises(DataError, match="no results"):
        compare_many([tmp_path / "a", tmp_path])
    (tmp_path / "b" / "mine" / "results.json").write_text(json.dumps({"task": "mine"}))
    with pytest.raises(DataError, match="cannot be read"):
        compare_many([tmp_path / "a", tmp_path / "b"])
