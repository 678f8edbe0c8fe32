"""A floor imports only floors below it, nothing goes in circles, and a bare GPU box can train and score influence."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("curation", "training", "probes", "mixing", "recipes")
"""From the bottom to the top."""
ABSENT_ON_A_BARE_BOX = (
    "datasets",
    "datatrove",
    "faiss",
    "fasttext",
    "matplotlib",
    "polars",
    "pydantic",
    "ray",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "typer",
)


def imported(file: Path) -> dict[str, int]:
    """Modules of this project that a file imports anywhere, with the line."""
    found = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {name: node.lineno for name in names if name.split(".")[0] in FLOORS}
    return found


def modules() -> dict[str, Path]:
    """Files of the packages by module name."""
    named = {}
    for floor in FLOORS:
        for file in (ROOT / floor).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


@pytest.mark.parametrize("floor", FLOORS)
def test_nothing_imports_upward(floor: str) -> None:
    above = FLOORS[FLOORS.index(floor) + 1 :]
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in (ROOT / floor).rglob("*.py")
        for name, line in imported(file).items()
        if name.split(".")[0] in above
    ]
    assert wrong == []


def test_no_circles() -> None:
    named = modules()
    edges = {name: {m for m in imported(file) if m in named and m != name} for name, file in named.items()}
    # A package imports its own modules to offer their names; what a module imports from its package is the module.
    edges = {name: {m for m in targets if not name.startswith(m + ".")} for name, targets in edges.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name in done:
            return
        for target in sorted(edges[name]):
            visit(target, (*path, name))
        done.add(name)

    for name in sorted(named):
        visit(name, ())


@pytest.mark.parametrize("package", ["training", "mixing.influence"])
def test_a_bare_gpu_box_can_import(package: str) -> None:
    """Every module of `package` imports while the libraries of the other floors are absent."""
    names = sorted(name for name in modules() if name == package or name.startswith(package + "."))
    program = (
        "import sys, importlib\n"
        f"sys.modules.update(dict.fromkeys({ABSENT_ON_A_BARE_BOX!r}))\n"
        f"[importlib.import_module(name) for name in {names!r}]\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
