"""Task files say what to ask; rubbish in them or in the rows is named."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.errors import DataError, MixwrightError, RecipeError
from probes.task_programs import program_tests
from probes.tasks import FewShot, load_task, read_items, task_names
from tests.probes.tiny_evaluation import ARC, write_rows
from training.rewards import named_reward, score

GSM = {"question": "1+1?", "answer": "1+1=<<1+1=2>>2\n#### 2"}
MATH500 = {
    "problem": "$1{+}1$", "solution": r"It is $\boxed{2}$.", "answer": "2", "subject": "Algebra", "level": 1,
    "unique_id": "test/algebra/1.json",
}  # fmt: skip
HUMANEVAL = {
    "task_id": "H/0", "prompt": "def f(x):\n", "canonical_solution": "    return {x}\n",
    "test": "def check(candidate):\n    assert candidate(1) == {1}\n", "entry_point": "f",
}  # fmt: skip
MBPP = {
    "task_id": 1, "text": "Add.", "code": "def add(a, b):\n    return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(2, 2) == 4"], "test_setup_code": "",
    "challenge_test_list": [],
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "arc_easy": ARC[0],
    "arc_challenge": ARC[1],
    "openbookqa": {"id": "7-980", "question_stem": "Iron is", "choices": ARC[0]["choices"], "answerKey": "B"},
    "piqa": {"goal": "Cut bread", "sol1": "knife", "sol2": "spoon", "label": 0},
    "siqa": {"context": "A ran.", "question": "Why?", "answerA": "x", "answerB": "y", "answerC": "z", "label": "3"},
    "boolq": {"question": "is ice cold", "answer": True, "passage": "Ice is cold."},
    "hellaswag": {
        "ind": 4, "activity_label": "Run", "ctx_a": "[header] A man", "ctx_b": "he", "ctx": "[header] A man he",
        "endings": ["runs [title] on", "flies"], "source_id": "a~v", "split": "val", "split_type": "zeroshot",
        "label": "1",
    },
    "winogrande": {"sentence": "The cup fit the box as _ was big .", "option1": "cup", "option2": "box", "answer": "2"},
    "mmlu": {"question": " Which? ", "subject": "public_law", "choices": ["a", "b", "c", "d"], "answer": 2},
    "gsm8k": GSM, "gsm8k_8shot": GSM, "gsm8k_gold_bpb": GSM,
    "math500": MATH500, "math500_4shot": MATH500, "math500_gold_bpb": MATH500,
    "humaneval": HUMANEVAL, "humaneval_gold_bpb": HUMANEVAL,
    "mbpp": MBPP, "mbpp_gold_bpb": MBPP,
    "math": {"problem": "$x$?", "level": "Level 1", "type": "Algebra", "solution": r"$\boxed{\frac{1}{2}}$"},
    "aime24": {"id": 60, "problem": "Find $n$.", "solution": "204", "answer": "204", "url": "u", "year": "2024"},
    "aime25": {"problem": "Find $n$.", "answer": "70"},
    "amc23": {"question": "How many?", "answer": 27.0},
    "livecodebench": {
        "question_title": "Double", "question_content": "Read n, print 2n.", "platform": "atcoder", "question_id": "q",
        "contest_id": "c", "contest_date": "2025-01-01", "starter_code": "", "difficulty": "easy",
        "public_test_cases": '[{"input": "2\\n", "output": "4\\n", "testtype": "stdin"}]', "private_test_cases": "",
        "metadata": "{}",
    },
}  # fmt: skip
"""A row of each dataset with the hub's fields and no other; of aime25 and amc23 what is read; see the task files."""


@pytest.mark.parametrize("name", task_names())
def test_every_shipped_task_works_from_a_local_file(name: str, tmp_path: Path) -> None:
    task = load_task(name)
    varied = task.id or next(field for field, value in ROWS[name].items() if isinstance(value, str))
    count = task.fewshot.skip + task.fewshot.count + 1
    rows = [{**ROWS[name], varied: f"{ROWS[name][varied]}{i}"} for i in range(count)]
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    local = replace(task, data=str(file), fewshot=replace(task.fewshot, data=None, subset=None))
    item, *passed_over = read_items(local)  # the examples are not asked
    assert len(passed_over) == task.fewshot.skip
    assert item.gold and all(text.strip() for text in item.searched)
    assert not any("Question:" in text or "Please reason" in text for text in item.searched)
    assert item.prompt.count("\n\n") >= task.fewshot.count
    if task.scoring == "choice":
        assert item.gold == item.choices[item.gold_choice]
        assert all(choice.startswith(" ") for choice in item.choices)


def test_few_shot_examples_show_a_worked_solution_and_the_gold_is_the_answer(tmp_path: Path) -> None:
    rows = [{**ROWS["gsm8k_8shot"], "question": f"{i}?", "answer": f"so {i}\n#### {i}"} for i in range(9)]
    (item,) = read_items(replace(load_task("gsm8k_8shot"), data=str(write_rows(tmp_path / "r.jsonl", rows))))
    assert item.gold.strip() == "8"
    assert item.prompt.startswith("Question: 0?\nAnswer: so 0\n#### 0\n\nQuestion: 1?")
    assert item.prompt.endswith("#### 7\n\nQuestion: 8?\nAnswer:")
    assert _item("math", tmp_path).gold == r"\frac{1}{2}"
    assert _item("amc23", tmp_path).gold == "27.0"
    rows = [{**ROWS["mbpp"], "task_id": i, "text": f"Add {i}."} for i in range(1, 6)]
    first, item = read_items(replace(load_task("mbpp"), data=str(write_rows(tmp_path / "r.jsonl", rows))))
    assert item.prompt.count("[BEGIN]\ndef add(a, b):\n    return a + b\n[DONE]\n\n") == 3
    assert [f"Add {i}." in item.prompt for i in range(1, 6)] == [
        False,
        True,
        True,
        True,
        True,
    ]  # tasks 2 to 4
    assert first.id == "1"
    assert json.loads(item.gold)["functions"] == ["add"]


def _hub_pickle(cases: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def test_livecodebench_cases_are_read_and_a_pickle_that_would_run_is_refused(tmp_path: Path) -> None:
    row = ROWS["livecodebench"]
    private = _hub_pickle([{"input": "7", "output": "14", "testtype": "stdin"}])
    task = load_task("livecodebench")
    assert json.loads(program_tests(task, row | {"private_test_cases": private}, "r"))["io"][1] == ["7", "14"]
    called = [{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}]
    method = row | {
        "public_test_cases": json.dumps(called), "starter_code": "class Solution:\n    def add(self, a, b):\n",
        "metadata": '{"func_name": "add"}',
    }  # fmt: skip
    tests = program_tests(task, method, "r")
    assert json.loads(tests) == {"function": "Solution().add", "calls": [[[[1, 2], 3], 6]]}
    reward = named_reward("code")
    try:
        body = "class Solution:\n    def add(self, a, b):\n        return sum(a) + b\n"
        assert score(reward, f"```python\n{body}```", tests).correct
        assert not score(reward, f"```python\n{body.replace('+ b', '- b')}```", tests).correct
    finally:
        reward.close()  # type: ignore[attr-defined]

    class Runs:
        def __reduce__(self) -> Any:
            return (print, ("it ran",))

    evil = base64.b64encode(zlib.compress(pickle.dumps(Runs()))).decode()
    for bad in (evil, "!!", base64.b64encode(b"no zlib").decode(), "[]", "[1]", _hub_pickle("x")):
        with pytest.raises(DataError, match="test cases"):
            program_tests(task, row | {"private_test_cases": bad}, "row 1")


def _item(name: str, tmp_path: Path, form: Any = None) -> Any:
    task = replace(
        load_task(name), data=str(write_rows(tmp_path / "r.jsonl", [ROWS[name]])), fewshot=FewShot()
    )
    return read_items(task, form=form)[0]


def test_prompts_are_those_of_the_harness(tmp_path: Path) -> None:
    winogrande = _item("winogrande", tmp_path)
    assert winogrande.contexts == ("The cup fit the box as cup", "The cup fit the box as box")
    assert winogrande.choices == (" was big .", " was big .") and winogrande.gold_choice == 1
    hellaswag = _item("hellaswag", tmp_path)
    assert hellaswag.prompt == "Run: A man He" and hellaswag.choices == (" runs. on", " flies")
    mmlu = _item("mmlu", tmp_path, "letters")
    heading = "The following are multiple choice questions (with answers) about public law.\n\n"
    assert mmlu.prompt == heading + "Which?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    assert mmlu.searched[0] == " Which? "
    assert mmlu.choices == (" A", " B", " C", " D") and mmlu.gold == " C"
    assert _item("boolq", tmp_path).gold == " yes"
    assert _item("humaneval_gold_bpb", tmp_path).gold == "    return {x}\n"


def test_few_shot_examples_are_of_the_same_subject_and_not_asked(tmp_path: Path) -> None:
    rows = [{**ROWS["mmlu"], "question": f"{s} {i}", "subject": s} for i in range(3) for s in ("law", "art")]
    few = FewShot(count=1, same="subject", pick="random")
    task = replace(load_task("mmlu"), data=str(write_rows(tmp_path / "r.jsonl", rows)), fewshot=few)
    items = read_items(task, seed=3)
    assert len(items) == 4
    assert [i.prompt for i in items] == [i.prompt for i in read_items(task, seed=3)]
    for item in items:
        subject = item.meta["row"]["subject"]
        heading, shown, asked = item.prompt.split("\n\n")
        assert heading == f"The following are questions (with answers) about {subject}."
        assert shown.startswith(f"Question: {subject}") and shown.endswith("Answer: c")
        assert asked == f"Question: {item.meta['row']['question']}\nAnswer:"
        assert item.meta["row"]["question"] not in shown


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answerKey": "E"}, "'E' is not one of the 4 choices"),
        ({"choices": {"text": [], "label": []}}, "0 choices"),
        ({"choices": {"text": ["a", " "], "label": ["A", "B"]}}, "Choice 2 of 2 is empty"),
        ({"choices": {"text": ["a", "b"], "label": ["A"]}}, "2 choices but 1 labels"),
        ({"choices": "ab"}, "no field 'choices.text'"),
        ({"question": None}, "holds nothing"),
        ({"id": "q0"}, "Row 2 has the id of row 1"),
    ],
)
def test_a_bad_row_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "r.jsonl", [ARC[0], {**ARC[0], "id": "q1"} | change])
    with pytest.raises(DataError, match=says) as raised:
        read_items(replace(load_task("arc_easy"), data=str(file)), limit=1)
    assert "row 2" in str(raised.value).lower()


def test_broken_lines_and_other_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"a": "\u2028"}\n{"a":\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"r\.jsonl:2"):
        read_items(replace(load_task("arc_easy"), data=str(file)))
    file.write_text('{"a": "\\ud83d\\ude00"}\n{"a": "\\ud83d"}\n')
    with pytest.raises(DataError, match=r"r\.jsonl:2"):
        read_items(replace(load_task("arc_easy"), data=str(file)))
    row = {**ROWS["piqa"], "label": "1" * 5000}
    with pytest.raises(DataError, match="not one of the 2 choices"):
        read_items(replace(load_task("piqa"), data=str(write_rows(file, [row]))))
    with pytest.raises(DataError, match="no such file"):
        read_items(replace(load_task("arc_easy"), data=str(tmp_path / "none.jsonl")))


BASE = "name: mine\nscoring: gold_bpb\ndata: x.jsonl\nprompt: '{q}'\ngold: ' {a}'\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BASE + "promt: x\n", "Did you mean prompt"),
        (BASE + "fewshot: {cuont: 3}\n", "Did you mean count"),
        (BASE + "version: true\n", "not of the right type"),
        (BASE + "form: columns\n", "not one of cloze, letters, both"),
        (BASE.replace("' {a}'", "'{a'"), "lone or empty brace"),
        (BASE.replace("{a}", "{a|shout}"), "no filter 'shout'"),
        (BASE.replace("gold: ' {a}'\n", ""), "needs 'gold'"),
        (BASE.replace("data: x.jsonl\n", ""), "'data' is missing"),
        ("- a\n", "keys and values"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_bad_task_file_is_named(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=says) as raised:
        load_task(file)
    assert "mine.yaml" in str(raised.value)


def test_a_task_of_ones_own_finds_its_data_beside_it(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.jsonl", [{"q": "{a.__class__}", "a": 1}])
    (tmp_path / "mine.yaml").write_text(BASE)
    (item,) = read_items(load_task(tmp_path / "mine.yaml"))
    assert (item.prompt, item.gold) == ("{a.__class__}", " 1")
    write_rows(tmp_path / "shots.jsonl", [{"q": "Q", "a": "A"}])
    (tmp_path / "mine.yaml").write_text(BASE + "fewshot: {count: 1, data: shots.jsonl}\n")
    (item,) = read_items(load_task(tmp_path / "mine.yaml"))
    assert item.prompt == "Q A\n\n{a.__class__}"
    with pytest.raises(RecipeError, match="no lettered form"):
        read_items(load_task(tmp_path / "mine.yaml"), form="letters")
    (tmp_path / "mine.yaml").write_text(BASE.replace("{q}", "{q.__class__}"))
    with pytest.raises(MixwrightError, match="no field"):
        read_items(load_task(tmp_path / "mine.yaml"))


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean arc_easy"):
        load_task("arc_esay")
