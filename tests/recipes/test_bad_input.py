"""Rubbish in, a sentence out: what is wrong, where, and how to mend it. Broken records are counted, never silent."""

import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from curation.atomic import read_json, replacing
from curation.errors import DataError, MachineError, MixwrightError, RecipeError
from recipes.execute import open_run, run_recipe
from tests.recipes.miniature import miniature_recipe


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


ARGUED = "It is the case because {0} is a number; therefore {0} is one more than {1}. "
PLAIN = "Sentence number {0} says that {0} and {1} come together. "
GOOD = [{"text": (ARGUED if i % 2 else PLAIN).format(i, i - 1) * 6} for i in range(60)]


def recipe_over(folder: Path, files: dict[str, str | bytes], **changes: Any) -> Path:
    """The miniature recipe over local files, one source each."""
    for name, content in files.items():
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    recipe = yaml.safe_load(miniature_recipe(folder).read_text())
    recipe["workers"] = 1
    recipe["sources"] = [
        {"name": name.split(".")[0], "kind": "local", "path": name, "capabilities": ["knowledge"]}
        for name in files
    ]
    for rules in recipe["curation"]["labels"].values():
        rules[:] = [rule for rule in rules if not rule.get("sources")]
    recipe |= changes
    file = folder / "local.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def complaint(recipe: Path, goal: str = "documents") -> MixwrightError:
    with pytest.raises(MixwrightError) as caught:
        run_recipe(open_run(recipe, recipe.parent / "run"), goal, say=lambda line: None)
    return caught.value


def test_missing_file(tmp_path: Path) -> None:
    recipe = recipe_over(tmp_path, {"a.jsonl": lines(GOOD), "b.jsonl": lines(GOOD)})
    (tmp_path / "b.jsonl").unlink()
    error = complaint(recipe)
    assert isinstance(error, DataError)
    assert "no such file" in error.what
    assert "b.jsonl" in error.where
    assert error.remedy


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "empty"),
        (lines([{"text": ""}, {"text": None}]), "None of the 2 records has a text"),
        (lines([{"body": "x"}]), "no field `text`"),
        ("{]\n" * 10 + lines(GOOD[:5]), "broken"),
        (gzip.compress(lines(GOOD).encode())[:-20], "broken"),
    ],
)
def test_unusable_corpus(tmp_path: Path, content: str | bytes, expected: str) -> None:
    name = "b.jsonl.gz" if isinstance(content, bytes) else "b.jsonl"
    error = complaint(recipe_over(tmp_path, {"a.jsonl": lines(GOOD), name: content}))
    assert isinstance(error, DataError)
    assert expected in str(error)
    assert error.remedy


def test_few_broken_records_are_counted_and_named(tmp_path: Path) -> None:
    rubbish = lines(GOOD * 4) + '{"text": "cut\n' + lines([{"text": ""}]) + lines(GOOD[:9])
    recipe = recipe_over(tmp_path, {"a.jsonl": lines(GOOD), "b.jsonl": rubbish})
    run_recipe(open_run(recipe, tmp_path / "run"), "documents", say=lambda line: None)
    read = read_json(tmp_path / "run" / "documents" / "b" / "read.json")
    assert (read["broken"], read["empty"]) == (1, 1)
    assert "line 241" in json.dumps(read["broken_examples"])
    assert read["read"] == read["broken"] + read["empty"] + read["documents"]


def test_wrong_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    latin = lines(GOOD * 4).encode() + '{"text": "caf\xe9"}\n'.encode("latin-1")
    recipe = recipe_over(tmp_path, {"a.jsonl": lines(GOOD), "b.jsonl": latin})
    run_recipe(open_run(recipe, tmp_path / "run"), "documents", say=lambda line: None)
    read = read_json(tmp_path / "run" / "documents" / "b" / "read.json")
    assert read["broken"] == 1
    assert "UTF-8" in json.dumps(read["broken_examples"])


def test_a_corpus_smaller_than_its_weight_asks_for(tmp_path: Path) -> None:
    small = {"a.jsonl": lines(GOOD), "b.jsonl": lines(GOOD)}
    recipe = recipe_over(tmp_path, small)
    settings = yaml.safe_load(recipe.read_text())
    settings["proxy"] |= {"tokens": 50_000_000, "max_epochs": 2}
    recipe.write_text(yaml.safe_dump(settings))
    error = complaint(recipe, "proxy_runs")
    assert isinstance(error, RecipeError)
    assert "tokens" in str(error)
    assert "missing" in str(error) or "short" in str(error)
    assert error.remedy


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    recipe = recipe_over(tmp_path, {"a.jsonl": lines(GOOD), "b.jsonl": lines(GOOD)})
    run = open_run(recipe, tmp_path / "run")
    assert run_recipe(run, "documents", say=lambda line: None) == ["documents"]
    assert run_recipe(run, "documents", say=lambda line: None) == []
    (tmp_path / "b.jsonl").write_text(lines(GOOD[:30]))
    assert run_recipe(run, "documents", say=lambda line: None) == ["documents"]
    assert read_json(tmp_path / "run" / "documents" / "b" / "read.json")["read"] == 30


def test_an_unknown_stage_is_a_sentence(tmp_path: Path) -> None:
    error = complaint(
        recipe_over(tmp_path, {"a.jsonl": lines(GOOD), "b.jsonl": lines(GOOD)}), goal="documnts"
    )
    assert "no stage `documnts`" in error.what


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(tiny_disk: Path) -> None:
    (tiny_disk / "before.txt").write_text("whole")
    with (
        pytest.raises(MachineError, match="The disk is full"),
        replacing(tiny_disk / "before.txt") as temporary,
        temporary.open("wb") as handle,
    ):
        handle.write(os.urandom(1_000_000))
    assert (tiny_disk / "before.txt").read_text() == "whole"
    assert list(tiny_disk.glob(".*")) == []


def test_a_full_disk_stops_a_checkpoint_with_a_sentence(tiny_disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with (
        pytest.raises(MachineError, match="The disk is full"),
        replacing(tiny_disk / "model.safetensors") as temporary,
    ):
        save_file({"weights": torch.zeros(400_000)}, temporary)


def test_a_full_disk_stops_a_run_with_a_sentence(tiny_disk: Path, tmp_path: Path) -> None:
    # Distinct texts that zstd cannot shrink below the size of the disk.
    rows = [{"text": os.urandom(1500).hex()} for _ in range(300)]
    recipe = recipe_over(tmp_path, {"a.jsonl": lines(rows), "b.jsonl": lines(GOOD)})
    with pytest.raises(MachineError, match="The disk is full"):
        run_recipe(open_run(recipe, tiny_disk / "run"), "documents", say=lambda line: None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_a_read_only_folder_is_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir(mode=0o500)
    recipe = recipe_over(tmp_path, {"a.jsonl": lines(GOOD), "b.jsonl": lines(GOOD)})
    with pytest.raises(MachineError, match="may not be written"):
        run_recipe(open_run(recipe, folder / "run"), "documents", say=lambda line: None)


def test_a_read_only_file_system_is_a_sentence(tiny_disk: Path, tmp_path: Path) -> None:
    recipe = recipe_over(tmp_path, {"a.jsonl": lines(GOOD), "b.jsonl": lines(GOOD)})
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(MachineError, match="read-only file system"):
        run_recipe(open_run(recipe, tiny_disk / "run"), "documents", say=lambda line: None)
