"""Questions in the training text: found in shards and files, scores split, nothing searched twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import probes.evaluate
from curation.documents import Document
from curation.errors import DataError
from probes.choice_scores import wilson_interval
from probes.contamination import Overlap, find_overlaps, split_scores
from probes.evaluate import evaluate
from probes.task_record import Item
from probes.task_results import load_results
from probes.training_text import training_documents, training_parts
from tests.probes.tiny_evaluation import model_folder, write_rows
from training.tokenizer import load_tokenizer
from training.tokenizing import write_tokens

QUESTION = (
    "Natalia sold clips to {0} of her friends in the month of {0}, then half as many to {0} in May: "
    "how many clips in {0}?"
)
ROWS = [{"question": QUESTION.format(f"number{i}"), "answer": f"They are {i}.\n#### {i}"} for i in range(9)]
TASK = "name: clips\nscoring: gold_bpb\ndata: clips.jsonl\nprompt: 'Q: {question}\\nA:'\ngold: ' {answer}'\n"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    write_rows(tmp_path / "clips.jsonl", [*ROWS, {"question": "Why?", "answer": "So."}])
    (tmp_path / "clips.yaml").write_text(TASK)
    return tmp_path / "clips.yaml"


def test_a_question_or_its_answer_makes_it_dirty_and_few_shot_examples_do_not() -> None:
    words = [f"w{i}" for i in range(60)]
    question, answer = " ".join(words[:20]), " ".join(words[20:60])
    items = [
        Item("q", "shots " + question, answer, searched=(question, answer)),
        Item("other", "shots", "a", searched=(" ".join(f"v{i}" for i in range(20)),)),
        Item("short", "Why?", "So.", searched=("Why?", "So.")),
    ]

    def side(text: str) -> dict[str, Any]:
        found = find_overlaps({"t": items}, [Document("d", text, "s")])["t"]
        return {name: found.side(name) for name in found.shares} | {"touched": found.counts()["touched"]}

    assert side(question) == {"q": "dirty", "other": "clean", "short": "too_short", "touched": 1}
    assert side("before " + answer + " after")["q"] == "dirty"
    # 2 of the 8 runs of the question, 0 of the answer's
    assert side(" ".join(words[:14])) == {"q": "clean", "other": "clean", "short": "too_short", "touched": 1}
    assert side("shots " * 20)["q"] == "clean"


def test_sides_are_scored_as_their_questions_alone() -> None:
    nats, size = [1.0, 2.0, 4.0, 8.0, 3.0], [10, 20, 30, 40, 50]
    rows = [
        {"id": f"i{n}", "form": "gold_bpb", "tokens": 3, "bytes": b, "nats": x, "dropped": 0}
        for n, (x, b) in enumerate(zip(nats, size, strict=True))
    ]
    overlap = Overlap({"i0": 0.0, "i1": 0.5, "i2": 1.0, "i3": 0.49, "i4": None}, 3)
    split = split_scores(pa.Table.from_pylist(rows), ["gold_bpb"], overlap)["gold_bpb"]["bits_per_byte"]
    assert split["dirty"]["value"] == pytest.approx(6 / 50 / np.log(2))
    assert split["clean"]["value"] == pytest.approx(9 / 50 / np.log(2))
    assert split["clean"]["low"] < split["clean"]["value"] < split["clean"]["high"]
    assert split["too_short"]["questions"] == 1 and "low" not in split["too_short"]
    samples = [
        {
            "id": f"i{n}",
            "form": "generation",
            "correct": n != 1,
            "truncated": False,
            "answer": "1",
            "tokens": 4,
        }
        for n in range(5)
        for _ in range(2)
    ]
    right = split_scores(pa.Table.from_pylist(samples), ["generation"], overlap)["generation"]["accuracy"]
    assert right["dirty"]["value"] == 0.5 and right["clean"]["value"] == 1.0
    assert (right["clean"]["low"], right["clean"]["high"]) == wilson_interval(2, 2)


def test_a_run_and_a_file_are_searched_once(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path / "m")
    run = tmp_path / "run"
    tokenizer = load_tokenizer(folder)
    known = [Document(f"d{i}", f"Seen: {ROWS[i]['question']}", "s") for i in range(3)]
    write_tokens([(d.id, d.text) for d in known], tokenizer, run / "tokens" / "s", "s")
    extra = write_rows(tmp_path / "extra.jsonl", [{"text": ROWS[5]["question"].upper()}])
    parts = training_parts([run, extra, run])
    assert len(parts) == 2
    assert [d.text for d in training_documents(parts, tokenizer)][:3] == [d.text for d in known]
    out = tmp_path / "out"
    result = evaluate(folder, [task], out=out, against=[run, extra])["clips"]
    assert result.contamination is not None
    assert result.contamination["questions"] == {"clean": 5, "dirty": 4, "too_short": 1, "touched": 4}
    sides = result.contamination["scores"]["gold_bpb"]["bits_per_byte"]
    assert sides["all"]["value"] == pytest.approx(result.metrics["gold_bpb"]["bits_per_byte"]["value"])
    assert load_results(out)["clips"].contamination == json.loads(json.dumps(result.contamination))
    monkeypatch.setattr(probes.evaluate, "find_overlaps", lambda *_: pytest.fail("searched again"))
    again = evaluate(folder, [task], out=out, against=[run, extra])["clips"]
    assert again.reused and again.contamination == load_results(out)["clips"].contamination
    with pytest.raises(pytest.fail.Exception):
        evaluate(folder, [task], out=out, against=[extra])


def test_where_there_is_no_text_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "missing"):
        with pytest.raises(DataError, match="no text to search"):
            training_parts([tmp_path / nothing])
