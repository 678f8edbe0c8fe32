"""Read a run folder into records. What is missing is left out; what cannot be read is named on the page."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from curation.atomic import read_json
from curation.errors import MixwrightError
from mixing.mixture import Mixture, read_mixture
from mixing.report.compressed import parse_compression
from mixing.report.front import parse_front
from mixing.report.parsing import (
    number,
    parse_comparison,
    parse_funnel,
    parse_influence,
    parse_label_counts,
    parse_leave_one_out,
    parse_phases,
    parse_reads,
    parse_recipe,
    parse_recommendation,
    parse_settings,
    texts,
)
from mixing.report.records import (
    Curve,
    Model,
    Phase,
    Problem,
    RecipeFacts,
    RunFacts,
    Stage,
    Trained,
)
from mixing.report.tokens import parse_tokens

T = TypeVar("T")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, MixwrightError, struct.error)
CURVES = ("proxy_runs", "domain_models", "comparison")
MOST_CURVES = 400
MOST_ROWS = 200_000


class Folder:
    """A run folder that is read file by file; what cannot be read is collected in `problems`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[Problem] = []

    def read(self, file: Path, parse: Callable[[Path], T]) -> T | None:
        """`parse(file)`; None when it is absent, or present and not what it should be."""
        if not file.exists():
            return None
        try:
            return parse(file)
        except UNREADABLE as error:
            self.problem(file, error)
            return None

    def json(self, name: str, parse: Callable[[Any], T]) -> T | None:
        """As `read`, for a JSON file of the run."""
        return self.read(self.path / name, lambda file: parse(read_json(file)))

    def problem(self, file: Path, error: Exception) -> None:
        """Remember that a file could not be read."""
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, KeyError):
            why = f"the entry {why} is missing"
        self.problems.append(Problem(self.relative(file), why))

    def relative(self, file: Path) -> str:
        """The file's name inside the run."""
        return file.relative_to(self.path).as_posix()

    def glob(self, *patterns: str) -> list[Path]:
        """Files that match, sorted, without those that are being written."""
        found = {file for pattern in patterns for file in self.path.glob(pattern)}
        return sorted(f for f in found if not any(p.startswith(".") for p in f.relative_to(self.path).parts))


def gather(run: Path) -> RunFacts:
    """Everything that the page shows, except for tables of documents (`mixing.report.documents`)."""
    folder = Folder(run)
    recommended = folder.read(run / "mixture.json", read_mixture)
    recipe = folder.read(run / "recipe.yaml", parse_recipe) or RecipeFacts()
    mixtures = {
        file.parent.name: mixture
        for file in folder.glob("mixtures/*/mixture.json")
        if (mixture := folder.read(file, read_mixture)) is not None
    }
    reads = [
        folder.read(file, lambda f: parse_reads(read_json(f)))
        for file in folder.glob("documents/*/read.json")
    ]
    raters = [
        (file.parent.name, value)
        for file in folder.glob("raters/*/rater.json")
        if isinstance(value := folder.read(file, read_json), dict)
    ]
    label_counts: dict[tuple[str, str], int] = {}
    for file in folder.glob("raters/*.labels.json"):
        label_counts |= folder.read(file, lambda f: parse_label_counts(read_json(f))) or {}
    stages = [_stage(folder, file) for file in folder.glob("stage.json", "*/stage.json", "*/*/stage.json")]
    trained = {path.name: _trained(folder, path) for path in folder.glob("training/*") if path.is_dir()}
    phases = _recipe_phases(recipe, {**mixtures, "recommended": recommended} if recommended else mixtures)
    if phases and "pretrain" in trained and not trained["pretrain"].phases:
        trained["pretrain"] = replace(trained["pretrain"], phases=phases)
    return RunFacts(
        name=run.resolve().name,
        recipe=recipe,
        recommended=recommended,
        recommendation=folder.json("recommendation/recommendation.json", parse_recommendation),
        mixtures=mixtures,
        leave_one_out=_first(
            folder, ("leave_one_out/leave_one_out.json", "leave_one_out.json"), parse_leave_one_out
        ),
        influence=folder.json("influence/summary.json", lambda value: parse_influence(value, recipe)),
        comparison=_first(folder, ("comparison/comparison.json", "comparison.json"), parse_comparison),
        reads=tuple(sorted((r for r in reads if r is not None), key=lambda r: r.source)),
        funnel=folder.json("representative/funnel.json", parse_funnel) or (),
        warnings=folder.json("representative/warnings.json", texts) or (),
        token_counts=folder.json("tokens/counts.json", lambda rows: tuple(dict(row) for row in rows)) or (),
        raters=tuple(raters),
        rater_models=folder.json("raters/models.json", lambda v: {str(k): str(m) for k, m in v.items()})
        or {},
        label_counts=label_counts,
        curves={
            name: _curves(
                folder, f"{name}/*/metrics.jsonl", f"{name}/*/*/metrics.jsonl", f"{name}/*/*/*/metrics.jsonl"
            )
            for name in CURVES
        },
        trained=trained,
        model=folder.read(run / "model", _model),
        stages=tuple(sorted((s for s in stages if s is not None), key=lambda s: (s.started, s.where))),
        settings=_first(folder, ("settings.json",), parse_settings) or (),
        compression=folder.json("training/compression/compression.json", parse_compression),
        front=_first(folder, ("front/pareto.json", "mixtures/pareto.json"), parse_front),
        token_benefits=folder.json("token_benefits/tokens.json", parse_tokens),
        problems=tuple(folder.problems),
    )


def _first(folder: Folder, names: tuple[str, ...], parse: Callable[[Any], T]) -> T | None:
    """The first of some files that is there."""
    for name in names:
        if (folder.path / name).exists():
            return folder.json(name, parse)
    return None


def _recipe_phases(recipe: RecipeFacts, mixtures: Mapping[str, Mixture]) -> tuple[Phase, ...]:
    """The recipe's phases with the mixtures that the run found; none unless all are known."""
    rows = [
        {**p, "weights": mixtures[str(p.get("mixture"))].weights}
        for p in recipe.phases
        if p.get("mixture") in mixtures
    ]
    return parse_phases(rows) if len(rows) == len(recipe.phases) else ()


def _stage(folder: Folder, file: Path) -> Stage | None:
    def parse(path: Path) -> Stage | None:
        value = read_json(path)
        where = path.parent.relative_to(folder.path).as_posix()
        name = str(value.get("stage", where))
        # The page's own record changes while the page is written.
        if name == "report":
            return None
        return Stage(
            where=where,
            name=name,
            status=str(value.get("status", "unknown")),
            wall_seconds=number(value.get("wall_seconds")),
            cpu_seconds=number(value.get("cpu_seconds")),
            flops=number(value.get("flops")),
            tokens=number(value.get("tokens")),
            seed=value.get("seed"),
            versions={str(k): str(v) for k, v in (value.get("versions") or {}).items()},
            attempts=int(value.get("attempts", 1)),
            started=str(value.get("started", "")),
        )

    return folder.read(file, parse)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line that was cut by a kill is left out."""
    rows = []
    with file.open(encoding="utf-8") as handle:
        for line in islice(handle, MOST_ROWS):
            if line.endswith("\n") and line.strip():
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _curve(folder: Folder, file: Path) -> Curve | None:
    """Columns of numbers that every row has, of the file's rows in order."""

    def parse(path: Path) -> Curve:
        rows = read_rows(path)
        names = [k for k in (rows[0] if rows else {}) if all(number(r.get(k)) is not None for r in rows)]
        columns = {k: tuple(float(r[k]) for r in rows) for k in names}
        return Curve(path.parent.relative_to(folder.path).as_posix(), columns)

    return folder.read(file, parse)


def _curves(folder: Folder, *patterns: str) -> tuple[Curve, ...]:
    curves = (_curve(folder, file) for file in folder.glob(*patterns)[:MOST_CURVES])
    return tuple(c for c in curves if c is not None)


def _trained(folder: Folder, path: Path) -> Trained:
    result = folder.read(path / "result.json", read_json)
    stage = folder.read(path / "stage.json", read_json)
    phases: tuple[Phase, ...] = ()
    for holder in (result, stage, (stage or {}).get("settings") if isinstance(stage, dict) else None):
        if not phases and isinstance(holder, dict):
            phases = parse_phases(holder.get("phases") or (holder.get("schedule") or {}).get("phases") or ())
    return Trained(
        path.name,
        result if isinstance(result, dict) else {},
        _curve(folder, path / "metrics.jsonl"),
        phases,
        _curve(folder, path / "evaluations.jsonl"),
    )


def _model(path: Path) -> Model:
    """Look into a Hugging Face folder without loading it: files, config, and the shapes in the safetensors headers."""
    files = {f.name: f.stat().st_size for f in sorted(path.iterdir()) if f.is_file() and f.name[0] != "."}
    problems = [f"{name} is missing" for name in ("config.json", "tokenizer.json") if name not in files]
    config = read_json(path / "config.json") if "config.json" in files else {}
    weights = [name for name in files if name.endswith(".safetensors")]
    if not weights:
        problems.append("there is no safetensors file")
    parameters = sum(_parameters(path / name) for name in weights) if weights else None
    check = read_json(path / "check.json") if "check.json" in files else {}
    return Model(files, config, parameters, tuple(problems), number(check.get("largest_logit_difference")))


def _parameters(file: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    with file.open("rb") as handle:
        (size,) = struct.unpack("<Q", handle.read(8))
        if size > 100_000_000:
            raise ValueError("the safetensors header is larger than the format allows")
        header = json.loads(handle.read(size))
    return sum(math.prod(v["shape"]) for k, v in header.items() if k != "__metadata__")
