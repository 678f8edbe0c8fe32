"""llama.cpp's own converter on an exported folder, where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.probes.tiny_evaluation import model_folder

CONVERTER = os.environ.get("LLAMA_CPP_CONVERTER") or shutil.which("convert_hf_to_gguf.py")


@pytest.mark.skipif(
    CONVERTER is None,
    reason="llama.cpp's convert_hf_to_gguf.py is not on the path, nor named in LLAMA_CPP_CONVERTER",
)
def test_an_exported_folder_converts(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    out = tmp_path / "model.gguf"
    command = [sys.executable, str(CONVERTER), str(folder), "--outfile", str(out), "--outtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert out.read_bytes()[:4] == b"GGUF"
