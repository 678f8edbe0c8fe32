"""The example of docs/scoring.md runs as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import yaml
from datatrove.data import Document as TroveDocument

from curation.scoring.blocks import ScoreBlock
from curation.sizes import ByteCount
from recipes.executor_settings import ExecutorSettings

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8")


def test_the_pipeline_of_the_guide_runs(tmp_path: Path) -> None:
    texts = ["short", "long enough", "ünïcödë", "another long one"]
    (tmp_path / "corpus").mkdir()
    lines = [json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "corpus" / "a.jsonl").write_text("\n".join(lines))
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    (tmp_path / "example.py").write_text(example)
    result = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    (part,) = (tmp_path / "parts").glob("*.parquet")
    assert pl.read_parquet(part).rows() == [(f"d{i}", len(text.encode())) for i, text in enumerate(texts)]
    written = [
        json.loads(line) for file in (tmp_path / "long").iterdir() for line in file.read_text().splitlines()
    ]
    assert [row["id"] for row in written] == ["d1", "d2", "d3"]
    assert [row["metadata"]["bytes/bytes"] for row in written] == [11, 11, 16]


def test_the_settings_of_the_guide_are_settings() -> None:
    blocks = [yaml.safe_load(block)["executor"] for block in re.findall(r"```yaml\n(.*?)```", GUIDE, re.S)]
    assert [ExecutorSettings.model_validate(block).kind for block in blocks] == ["ray", "slurm"]


def test_edited_texts_under_old_ids_are_scored_again(tmp_path: Path) -> None:
    """In a pipeline of one's own, ids may be places in files, which stay when the text changes."""

    def scores(*texts: str) -> list[int]:
        found = [TroveDocument(text, f"web/{i}") for i, text in enumerate(texts)]
        block = ScoreBlock(ByteCount(), tmp_path, source="web")
        return [document.metadata["bytes/bytes"] for document in block.run(found)]

    assert scores("one", "three") == [3, 5]
    assert scores("one", "seven ate") == [3, 9]
    assert scores("one", "three") == [3, 5]
    assert len(list(tmp_path.glob("*.parquet"))) == 2
