"""A model on tasks: equal to the harness, written as it goes, never repeated, compared question by question."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

import probes.evaluate
from curation.errors import DataError, RecipeError
from probes.choice_scores import NORMALIZATIONS, wilson_interval
from probes.evaluate import evaluate
from probes.result_comparison import compare_results
from probes.task_results import load_results
from probes.tasks import FewShot, load_task
from tests.probes.tiny_evaluation import ARC, TEXTS, model_folder, write_rows
from training.tokenizer import load_tokenizer

GSM = [{"question": f"{i}+{i}?", "answer": f"{2 * i} legs\n#### {2 * i}"} for i in range(11)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("one"))


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    return {
        "arc_easy": write_rows(tmp_path / "arc.jsonl", ARC),
        "gsm8k_gold_bpb": write_rows(tmp_path / "gsm.jsonl", GSM),
    }


def test_accuracies_equal_the_harness(folder: Path, data: dict[str, Path]) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    harness = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(folder), tokenizer=load_tokenizer(folder), batch_size=2,
        max_length=256, add_bos_token=True, device="cpu",
    )  # fmt: skip
    described: dict[str, Any] = {
        "task": "arc_local", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data["arc_easy"])}},
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}", "doc_to_choice": "{{choices.text}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}], "num_fewshot": 0,
    }  # fmt: skip
    theirs = simple_evaluate(
        model=harness, tasks=[described], bootstrap_iters=1, task_manager=TaskManager(include_defaults=False)
    )
    result = evaluate(folder, ["arc_easy"], data={"arc_easy": data["arc_easy"]})["arc_easy"]
    ours = result.metrics["cloze"]
    values = theirs["results"]["arc_local"]
    assert ours["accuracy_none"]["value"] == pytest.approx(values["acc,none"])
    assert ours["accuracy_per_char"]["value"] == pytest.approx(values["acc_norm,none"])
    assert ours["accuracy_none"]["stderr"] == pytest.approx(values["acc_stderr,none"])
    samples = {s["doc"]["id"]: [float(r[0][0]) for r in s["resps"]] for s in theirs["samples"]["arc_local"]}
    for row in result.records.to_pylist()[: len(ARC)]:
        assert row["nats"] == pytest.approx([-x for x in samples[row["id"]]], rel=1e-4)


def test_gold_bits_per_byte_by_hand(folder: Path, data: dict[str, Path]) -> None:
    task = replace(load_task("gsm8k_gold_bpb"), data=str(data["gsm8k_gold_bpb"]), fewshot=FewShot(count=1))
    result = evaluate(folder, [task])[task.name]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    nats = size = 0.0
    for row in GSM[1:]:
        gold = " " + row["answer"]
        prompt = f"Question: 0+0?\nAnswer: {GSM[0]['answer']}\n\nQuestion: {row['question']}\nAnswer:"
        ids = tokenizer(prompt + gold, return_tensors="pt").input_ids
        first = len(tokenizer(prompt).input_ids)
        with torch.no_grad():
            logp = (
                model(ids[:, :-1])
                .logits.double()
                .log_softmax(-1)[0]
                .gather(-1, ids[0, 1:, None])[first - 1 :]
            )
        nats, size = nats - float(logp.sum()), size + len(gold.encode())
    found = result.metrics["gold_bpb"]["bits_per_byte"]
    assert found["value"] == pytest.approx(nats / size / math.log(2), rel=1e-5)
    assert found["low"] < found["value"] < found["high"]
    assert result.described["few_shot"] == {"count": 1, "held_out_of_the_data": 1}


def test_likelihood_of_texts(folder: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "t.jsonl", [{"t": text + str(i)} for i, text in enumerate(TEXTS)])
    (tmp_path / "mine.yaml").write_text("name: mine\nscoring: likelihood\ndata: t.jsonl\ntext: '{t}'\n")
    result = evaluate(folder, [tmp_path / "mine.yaml"])["mine"]
    table = result.records
    assert table["bytes"].to_pylist() == [len(t) + 1 for t in TEXTS]
    bits = np.sum(table["nats"].to_numpy()) / np.sum(table["bytes"].to_numpy()) / math.log(2)
    assert result.metrics["likelihood"]["bits_per_byte"]["value"] == pytest.approx(bits)


def test_prompts_beyond_the_context_lose_tokens_on_the_left_and_are_counted(
    folder: Path, data: dict[str, Path]
) -> None:
    given = {"arc_easy": data["arc_easy"]}
    result = evaluate(folder, ["arc_easy"], data=given, context=12)["arc_easy"]
    dropped = [row["dropped"] for row in result.records.to_pylist() if row["form"] == "cloze"]
    assert (
        result.described["counts"]["cloze"]["items_with_dropped_context"] == sum(d > 0 for d in dropped) > 0
    )
    whole = evaluate(folder, ["arc_easy"], data=given)["arc_easy"]
    assert whole.described["counts"]["cloze"]["items_with_dropped_context"] == 0


def test_finished_tasks_are_not_repeated(
    folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, scored = tmp_path / "out", []
    real = probes.evaluate.score_task

    def dies_at_the_second(task: Any, *rest: Any) -> Any:
        scored.append(task.name)
        if len(scored) == 3:  # arc_easy has two forms
            raise KeyboardInterrupt
        return real(task, *rest)

    monkeypatch.setattr(probes.evaluate, "score_task", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, list(data), data=data, out=out)
    assert set(load_results(out)) == {"arc_easy"}
    results = evaluate(folder, list(data), data=data, out=out)
    assert scored == ["arc_easy", "arc_easy", "gsm8k_gold_bpb", "gsm8k_gold_bpb"]
    assert results["arc_easy"].reused and not results["gsm8k_gold_bpb"].reused
    plain = evaluate(folder, list(data), data=data)
    for name in data:
        assert plain[name].metrics == results[name].metrics == load_results(out)[name].metrics
    with pytest.raises(RecipeError, match="arc_easy made otherwise: limit, prompts differ"):
        evaluate(folder, ["arc_easy"], data={"arc_easy": data["arc_easy"]}, out=out, limit=2)
    (out / "arc_easy" / "results.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        evaluate(folder, ["arc_easy"], data={"arc_easy": data["arc_easy"]}, out=out)


def test_nothing_is_scored_when_a_task_is_bad(
    folder: Path, data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes.evaluate, "score_task", lambda *_: pytest.fail("scored"))
    write_rows(data["gsm8k_gold_bpb"], [*GSM, {"question": "?", "answer": ""}])
    data["gsm8k_gold_bpb"].write_text(
        data["gsm8k_gold_bpb"].read_text().replace('"answer": ""', '"anser": ""')
    )
    with pytest.raises(DataError, match=r"no field 'answer'.*row 12.*Did you mean 'anser'"):
        evaluate(folder, list(data), data=data)
    with pytest.raises(RecipeError, match="named twice"):
        evaluate(folder, ["arc_easy", "arc_easy"], data={"arc_easy": data["arc_easy"]})
    with pytest.raises(RecipeError, match="no task 'arc'"):
        evaluate(folder, ["arc_easy"], data={"arc": data["arc_easy"]})
    with pytest.raises(DataError, match="no tokenizer"):
        evaluate(data["arc_easy"].parent, ["arc_easy"], data={"arc_easy": data["arc_easy"]})


def test_paired_differences(folder: Path, data: dict[str, Path], tmp_path: Path) -> None:
    other = model_folder(tmp_path / "other", seed=2)
    for name, model in (("a", folder), ("b", other)):
        evaluate(model, list(data), data=data, out=tmp_path / name)
    differences = {(d.task, d.form, d.metric): d for d in compare_results(tmp_path / "a", tmp_path / "b")}
    a, b = load_results(tmp_path / "a"), load_results(tmp_path / "b")
    for (task, form, metric), found in differences.items():
        values = [r[task].metrics[form][metric]["value"] for r in (a, b)]
        assert (found.a, found.b) == pytest.approx(values)
        assert found.difference == pytest.approx(values[0] - values[1])
        assert found.low <= found.difference <= found.high
    assert len(differences) == 2 * (len(NORMALIZATIONS) + 3) + 1
    same = compare_results(tmp_path / "a", tmp_path / "a")
    assert all(d.low == d.difference == d.high == 0 for d in same)
    evaluate(other, ["arc_easy"], data={"arc_easy": data["arc_easy"]}, out=tmp_path / "c", limit=2)
    with pytest.raises(DataError, match="different things"):
        compare_results(tmp_path / "a", tmp_path / "c")


def test_commands(
    folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from recipes.cli import main

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["mixwright", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    given = ["eval", str(folder), "--tasks", "arc_easy,gsm8k_gold_bpb"]
    given += [text for name, file in data.items() for text in ("--data", f"{name}={file}")]
    described = json.loads(run(*given, "--json"))
    assert set(described["tasks"]) == set(data)
    written = Path(described["out"])
    assert written.parent.name == "evaluation"
    assert pq.read_table(written / "arc_easy" / "items.parquet").num_rows == 2 * len(ARC)
    shown = run(*given)
    assert "arc_easy" in shown and "acc per_char" in shown and "bits per byte" in shown
    copied = shutil.copytree(written, tmp_path / "copy")
    assert "bits per byte" in run("eval-compare", str(written), str(copied))


def test_a_generation_task_is_sampled_judged_and_compared(folder: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{i}+{i}?", "answer": str(2 * i)} for i in range(6)]
    task = tmp_path / "sums.yaml"
    task.write_text(
        "name: sums\nscoring: generation\nversion: 1\n"
        f"data: {write_rows(tmp_path / 'sums.jsonl', rows)}\nprompt: 'Q {{question}} A'\ngold: '{{answer}}'\n"
        "generation: {max_tokens: 4, samples: 3, temperature: 1.0, reward: exact, budgets: [2]}\n"
    )
    result = evaluate(folder, [task], out=tmp_path / "a", seed=1)["sums"]
    metrics = result.metrics["generation"]
    assert len(result.records) == 18 and result.described["counts"]["generation"]["items"] == 6
    assert metrics["accuracy"]["low"] <= metrics["accuracy"]["value"] <= metrics["accuracy"]["high"]
    # None of six is right, and the interval is one of 95 % all the same.
    assert metrics["accuracy"]["value"] == 0.0
    assert metrics["accuracy"]["high"] == pytest.approx(wilson_interval(0, 6)[1], abs=1e-4)
    assert {"pass@3", "maj@3", "accuracy@2", "truncated", "no_answer", "mean_tokens"} <= set(metrics)
    assert evaluate(folder, [task], out=tmp_path / "a", seed=1)["sums"].reused
    again = evaluate(folder, [task], out=tmp_path / "b", seed=1)["sums"]
    assert again.records.equals(result.records)
    same = {d.metric: d for d in compare_results(tmp_path / "a", tmp_path / "b")}
    assert set(same) == {"accuracy", "truncated", "no_answer", "mean_tokens"}
    assert same["accuracy"].difference == 0 and same["accuracy"].headline
    for name in same:
        assert same[name].a == pytest.approx(metrics[name]["value"])
