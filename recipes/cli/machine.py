"""Commands about the machine and the first steps: doctor, init."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from curation.errors import MachineError, RecipeError
from recipes.cli import app
from recipes.cli.output import JsonOption, print_json, print_table, say

LIBRARIES = (
    "torch",
    "transformers",
    "datasets",
    "datatrove",
    "polars",
    "faiss-cpu",
    "sentence-transformers",
    "numpy",
)
OPTIONAL = ("ray", "vllm", "wandb")


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Look at the machine: processors, memory, disk, libraries, speed of matrix products."""
    facts = _facts()
    if as_json:
        print_json(facts)
        return
    print_table(
        "This machine",
        [{"what": k, "value": v} for k, v in facts.items()],
        {"what": "What", "value": "Value"},
    )
    if facts["GPU"] == "none":
        say("  No GPU: training runs on the processor, which the quickstart is made for.")


def _facts() -> dict[str, Any]:
    import torch

    disk = shutil.disk_usage(Path.cwd())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts: dict[str, Any] = {
        "Python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory, GB": round(memory / 1e9, 1),
        "free disk here, GB": round(disk.free / 1e9, 1),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    for precision in (torch.float32, torch.bfloat16):
        facts[f"{str(precision).removeprefix('torch.')}, GFLOP/s on one thread"] = round(
            _matmul_gflops(precision)
        )
    facts["sandbox for generated code"] = _sandbox()
    for name in LIBRARIES + OPTIONAL:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed (optional)" if name in OPTIONAL else "MISSING"
    return facts


def _sandbox() -> str:
    from training.rewards.sandbox import Sandbox

    try:
        with Sandbox(allow_weak=True) as sandbox:
            return f"weak: no {', '.join(sandbox.missing)}" if sandbox.missing else "full"
    except MachineError as error:
        return f"none: {error}"


def _matmul_gflops(dtype: Any, size: int = 768, repeats: int = 8) -> float:
    import time

    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.randn(size, size).to(dtype)
        a @ a
        started = time.perf_counter()
        for _ in range(repeats):
            a @ a
        return 2 * size**3 * repeats / (time.perf_counter() - started) / 1e9
    finally:
        torch.set_num_threads(threads)


@app.command()
def init(
    corpora: Annotated[
        list[Path], typer.Argument(help="Files or folders, one source each (.jsonl, .parquet, .txt).")
    ],
    out: Annotated[Path, typer.Option("--out", help="The recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a recipe for your own corpora, starting from the quickstart's settings."""
    from curation.atomic import write_text
    from recipes.starter import starter_recipe

    if out.exists():
        raise RecipeError(f"{out} is there already", remedy="Name another file with --out")
    write_text(out, starter_recipe(corpora, out.parent))
    say(f"Wrote {out}. Label each source with its capabilities, then: mixwright plan {out}")
