"""`python -m training`: one file, one command, also under torchrun; wrong files are sentences."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from curation.errors import RecipeError
from training.__main__ import main
from training.launch import read_launch
from training.loop import load_checkpoint_model
from training.run_log import read_rows
from training.tokenizing import write_tokens

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tokens of two sources, and the file of a run that reads them."""
    here = tmp_path_factory.mktemp("launch")
    words = ["<bos>", "<eos>", *(f"w{i}" for i in range(59))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>")
    for number, name in enumerate(("up", "skip"), start=1):
        texts = (" ".join(f"w{(i + number * j) % 59}" for j in range(20)) for i in range(30))
        write_tokens(((f"{name}{i}", text) for i, text in enumerate(texts)), tokenizer, here / name, name)
    (here / "run.yaml").write_text(yaml.safe_dump(RUN))
    return here


RUN = {
    "model": {"preset": "tiny", "vocab_size": 61, "dim": 32, "layers": 2, "ffn_dim": 48, "max_positions": 64},
    "data": {
        "tokens": {"up": "up", "skip": "skip"},
        "phases": [
            {"weights": {"up": 3, "skip": 1}, "tokens": 320},
            {"weights": {"skip": 1.0}, "name": "late"},
        ],
        "seed": 3,
    },
    "training": {
        "sequence_tokens": 32,
        "batch_sequences": 4,
        "steps": 6,
        "learning_rate": "4e-3",
        "device": "cpu",
    },
}


def test_the_file_says_what_it_says(folder):
    asked = read_launch(folder / "run.yaml")
    assert asked.model.dim == 32 and asked.model.heads == 4 and asked.model.vocab_size == 61
    assert asked.settings.learning_rate == 4e-3 and asked.settings.clip == 1.0
    assert [(p.name, p.sequences) for p in asked.order.schedule.phases] == [("phase 1", 10), ("late", 14)]
    (folder / "run.json").write_text(json.dumps(RUN))
    assert read_launch(folder / "run.json").order.fingerprint() == asked.order.fingerprint()


def changed(path: str, value: object) -> dict:
    run = json.loads(json.dumps(RUN))
    *way, last = path.split(".")
    place = run
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[last] = value
    return run


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("training.learning_rat", 1.0, r"`learning_rat` is not known here \(training\). Did you mean `learning_rate`"),
        ("data.phases.0.weigths", {}, r"`weigths` is not known here \(data.phases.0\). Did you mean `weights`"),
        ("modle", "tiny", r"`modle` is not known here \(the file\). Did you mean `model`"),
        ("training.schedule", "cosin", "Did you mean `cosine`|is not known here"),
        ("training.steps", "many", r"'many' is not a number \(training.steps\)"),
        ("training.steps", 2.5, "not a whole number"),
        ("training.precision", True, "is not known here"),
        ("data.phases", {}, "is not a list"),
        ("data.phases.0.tokens", 10_000_000, "This phase has no tokens"),
        ("model", {"dim": 8}, "vocab_size is missing"),
        ("model", "tinny", "no model preset"),
        ("data.max_epochs", 0.01, "the cap is 0.01"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_mean_is_a_sentence(folder, path, value, says):
    (folder / "wrong.yaml").write_text(yaml.safe_dump(changed(path, value)))
    with pytest.raises(RecipeError, match=says):
        read_launch(folder / "wrong.yaml")


def test_a_file_that_is_no_file_is_a_sentence(folder, capsys):
    (folder / "broken.json").write_text("{")
    assert main([str(folder / "broken.json"), "--out", str(folder / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not (folder / "none").exists()
    with pytest.raises(RecipeError, match="cannot be read"):
        read_launch(folder / "absent.yaml")


def test_torchrun_trains_what_one_process_trains(folder):
    assert main([str(folder / "run.yaml"), "--out", str(folder / "alone")]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "training", str(folder / "run.yaml"), "--out", str(folder / "two")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the model is") == 1, "rank 0 alone speaks"
    ours, wanted = (read_rows(folder / name / "metrics.jsonl") for name in ("two", "alone"))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in wanted], rel=1e-4)
    load_checkpoint_model(folder / "two/checkpoints/step-6")
