"""The README's Python, run as it stands; only the model's size is another."""

import json
import re
from pathlib import Path

import pytest

from mixing.fit import METHODS
from training.huggingface import save_huggingface
from training.model import Decoder, preset
from training.tokenizer import load_tokenizer, train_tokenizer
from training.tokenizing import write_tokens

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
TEXTS = [
    f"Paragraph {i} says that {i} times {i} is {i * i}, and nothing else of note. " * 4 for i in range(30)
]


def write_lines(path: Path, rows: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_one_block_for_each_use() -> None:
    assert len(BLOCKS) == 3


def test_dataset_building(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gzip

    for name, rows in (("wiki", TEXTS), ("web", TEXTS[:5] + TEXTS[20:])):
        with gzip.open(f"{name}.jsonl.gz", "wt", encoding="utf-8") as lines:
            lines.writelines(json.dumps({"text": text}) + "\n" for text in rows)
    write_lines(folder / "gsm8k_test.jsonl", TEXTS[3:4])
    exec(BLOCKS[0], {})
    said = capsys.readouterr().out
    assert "45 records, 0 broken" in said
    assert "kept" in said
    assert re.search(r"[1-9]\d* documents share 13 words", said)


def test_mixture_reports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "gaussian-process" in METHODS
    rows = [(0.1 * i, 1 - 0.1 * i) for i in range(1, 10)]
    ratios = "run_id,wiki,code\n" + "".join(f"r{i},{a:.1f},{b:.1f}\n" for i, (a, b) in enumerate(rows))
    metrics = "run_id,code,knowledge\n" + "".join(
        f"r{i},{(a - 0.6) ** 2 + 2},{(a - 0.4) ** 2 + 3}\n" for i, (a, _) in enumerate(rows)
    )
    (folder / "ratios.csv").write_text(ratios)
    (folder / "metrics.csv").write_text(metrics)
    tokenizer = train_tokenizer(TEXTS, 300, folder / "tokenizer")
    model = Decoder(preset("tiny", vocab_size=len(tokenizer))).init_weights(0)
    save_huggingface(model, folder / "a-model-folder", load_tokenizer(folder / "tokenizer"))
    for name, texts in (("samples", TEXTS[:8]), ("code", TEXTS[10:14]), ("maths", TEXTS[14:18])):
        write_lines(folder / f"{name}.jsonl", texts)
    names: dict[str, object] = {}
    exec(BLOCKS[1], names)
    assert (folder / "mixture.json").is_file()
    assert "wiki 0." in capsys.readouterr().out
    assert names["table"].num_rows == 16  # type: ignore[attr-defined]


def test_training_launches(folder: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300, folder / "tokenizer")
    for name in ("wiki", "code"):
        write_tokens(
            [(f"{name}{i}", text) for i, text in enumerate(TEXTS)], tokenizer, folder / "tokens" / name, name
        )
    shorter = BLOCKS[2].replace('preset("mobilellm-r1-140m")', f'preset("tiny", vocab_size={len(tokenizer)})')
    shorter = shorter.replace("steps=100", "steps=3").replace("512", "32")
    assert shorter != BLOCKS[2]
    names: dict[str, object] = {}
    exec(shorter, names)
    assert (folder / "out" / "result.json").is_file()


def test_every_page_is_reached_from_here() -> None:
    root = Path(__file__).parent.parent
    named = set(re.findall(r"\]\((docs/[a-z-]+\.md)\)", README))
    assert named == {str(page.relative_to(root)) for page in (root / "docs").glob("*.md")}
    for page in (root / "docs").glob("*.md"):
        for link in re.findall(r"\]\(([a-z-]+\.md)(?:#[a-z-]+)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).is_file(), f"{page.name} names {link}"
