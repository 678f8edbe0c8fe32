"""Decoding speed and memory of MobileLLM-R1's shapes by context length (its Table 10), with random weights.

    python -m benchmarks.decoding --out FILE [--preset mobilellm-r1-140m] [--precision bf16] [--contexts 1024,4096]
    python -m benchmarks.decoding --out FILE --write

Each call adds one precision of one shape to FILE, so that a long measurement can be done in short ones; --write puts
the table of what is there into docs/benchmarks.md. Speed does not depend on what weights and prompt say.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import machine, publish, table
from curation.atomic import read_json, write_json
from curation.progress import set_progress_mode
from probes.decoding_speed import SpeedSettings, cache_bytes, measure_speed
from training.huggingface import save_huggingface
from training.model import Decoder
from training.model_config import PRESETS

CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)
PAPER = {
    "mobilellm-r1-140m": ("129.67", "116.16", "111.42", "110.47", "96.38", "79.71"),
    "mobilellm-r1-360m": ("77.23", "61.54", "61.24", "61.27", "61.13", "out of memory"),
    "mobilellm-r1-950m": ("31.05", "27.59", "25.09", "25.36", "out of memory", "out of memory"),
}
"""Table 10 of arXiv 2509.24945: 8-bit dynamic activations, 4-bit weights, ExecuTorch on a phone with 8 GB."""


def measure(name: str, precision: str, contexts: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """One precision of a shape at these contexts, as probes.decoding_speed has it."""
    settings = SpeedSettings(contexts, (precision,), decode_tokens=8, prefill_seconds=seconds)
    with tempfile.TemporaryDirectory() as folder:
        model = Decoder(replace(PRESETS[name], max_positions=max(CONTEXTS))).init_weights(0)
        save_huggingface(model, Path(folder) / "model")
        del model
        found = measure_speed(Path(folder) / "model", settings)
    return found["precisions"][0] | {"threads": found["threads"], "machine": machine("torch", "torchao")}


def report(done: dict[str, Any]) -> str:
    """The section: tokens a second of each precision beside the paper's, and bytes."""
    rows: list[list[str]] = []
    for name, measured in done.items():
        config = PRESETS[name]
        cache = (f"{cache_bytes(config, context, torch.bfloat16) / 1e6:,.1f}" for context in CONTEXTS)
        rows.append([f"**{name}**, KV cache in 16 bits, MB", "", *cache])
        rows.append(["Table 10, on the phone", "", *PAPER[name]])
        for precision, row in measured.items():
            weights = f"{row['packed_bytes'] / 1e6:,.0f}" if "packed_bytes" in row else ""
            cells = {cell["context"]: cell for cell in row["cells"]}
            rows.append([precision, weights, *(_cell(cells.get(context)) for context in CONTEXTS)])
    first = next(iter(next(iter(done.values())).values()))
    return (
        "## Decoding by context length, as Table 10\n\n"
        "Random weights; tokens a second of wall time of one row, median of three repeats of 8 tokens with their "
        f"range in brackets, {first['threads']} threads (`python -m benchmarks.decoding`). Where reading the whole "
        "prompt took too long, the rest of the cache is filled with copies, which costs decoding the same. The paper's "
        "row is a phone with ExecuTorch's kernels. Here torchao rounds the weights, and torch's kernels for "
        "packed weights multiply (`probes.packed_weights`). Weights are those packed as on a phone, MB.\n\n"
        + table(("", "weights", *(f"{context // 1024}k" for context in CONTEXTS)), rows)
        + f"\n{first['machine']}\n"
    )


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "not measured"
    if "skipped" in cell:
        return str(cell["skipped"]).split(":")[0]
    speed = cell["decode"]
    return f"{speed['median']:.1f} [{speed['low']:.1f}, {speed['high']:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", choices=sorted(PAPER), default="mobilellm-r1-140m")
    parser.add_argument("--precision", help="of float32, bf16, int8, 8da4w; nothing is measured without one")
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)))
    parser.add_argument("--prefill-seconds", type=float, default=3.0)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    set_progress_mode("quiet")
    logging.disable(logging.WARNING)
    done = read_json(arguments.out) if arguments.out.exists() else {}
    if arguments.precision:
        contexts = tuple(int(part) for part in arguments.contexts.split(","))
        found = measure(arguments.preset, arguments.precision, contexts, arguments.prefill_seconds)
        done.setdefault(arguments.preset, {})[arguments.precision] = found
        write_json(arguments.out, done)
    publish("decoding", report(done), write=arguments.write)


if __name__ == "__main__":
    main()
