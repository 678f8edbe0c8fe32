"""Read a run folder into records. What is missing is left out; what cannot be read is named on the page."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import yaml

from curation.atomic import read_json
from curation.errors import MixwrightError
from mixing.mixture import Mixture, read_mixture
from mixing.report.records import (
    Benefit,
    ComparedRun,
    Comparison,
    Curve,
    Density,
    Difference,
    Effect,
    Influence,
    LabelRule,
    LeaveOneOut,
    Model,
    Phase,
    Problem,
    ReadCounts,
    RecipeFacts,
    Recommendation,
    Reference,
    RunFacts,
    Setting,
    Stage,
    Trained,
    Trajectory,
)

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
    recipe = folder.read(run / "recipe.yaml", _recipe) or RecipeFacts()
    mixtures = {
        file.parent.name: mixture
        for file in folder.glob("mixtures/*/mixture.json")
        if (mixture := folder.read(file, read_mixture)) is not None
    }
    reads = [
        folder.read(file, lambda f: _reads(read_json(f))) for file in folder.glob("documents/*/read.json")
    ]
    raters = [
        (file.parent.name, value)
        for file in folder.glob("raters/*/rater.json")
        if isinstance(value := folder.read(file, read_json), dict)
    ]
    stages = [_stage(folder, file) for file in folder.glob("stage.json", "*/stage.json", "*/*/stage.json")]
    trained = {path.name: _trained(folder, path) for path in folder.glob("training/*") if path.is_dir()}
    phases = _recipe_phases(recipe, {**mixtures, "recommended": recommended} if recommended else mixtures)
    if phases and "pretrain" in trained and not trained["pretrain"].phases:
        trained["pretrain"] = replace(trained["pretrain"], phases=phases)
    return RunFacts(
        name=run.resolve().name,
        recipe=recipe,
        recommended=recommended,
        recommendation=folder.json("recommendation/recommendation.json", _recommendation),
        mixtures=mixtures,
        leave_one_out=_first(
            folder, ("leave_one_out/leave_one_out.json", "leave_one_out.json"), _leave_one_out
        ),
        influence=folder.json("influence/summary.json", lambda value: _influence(value, recipe)),
        comparison=_first(folder, ("comparison/comparison.json", "comparison.json"), _comparison),
        reads=tuple(sorted((r for r in reads if r is not None), key=lambda r: r.source)),
        funnel=folder.json("representative/funnel.json", _funnel) or (),
        raters=tuple(raters),
        curves={
            name: _curves(
                folder, f"{name}/*/metrics.jsonl", f"{name}/*/*/metrics.jsonl", f"{name}/*/*/*/metrics.jsonl"
            )
            for name in CURVES
        },
        trained=trained,
        model=folder.read(run / "model", _model),
        stages=tuple(sorted((s for s in stages if s is not None), key=lambda s: (s.started, s.where))),
        settings=_first(folder, ("settings.json",), _settings) or (),
        problems=tuple(folder.problems),
    )


def _first(folder: Folder, names: tuple[str, ...], parse: Callable[[Any], T]) -> T | None:
    """The first of some files that is there."""
    for name in names:
        if (folder.path / name).exists():
            return folder.json(name, parse)
    return None


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _needed(value: Any) -> float:
    found = number(value)
    if found is None:
        raise ValueError(f"{value!r} stands where a number is needed")
    return found


def _texts(values: Any) -> tuple[str, ...]:
    if isinstance(values, str | int | float):
        return (str(values),)
    return tuple(str(v) for v in values or ())


def _recipe(file: Path) -> RecipeFacts:
    text = file.read_text(encoding="utf-8")
    value = yaml.safe_load(text)
    if not isinstance(value, dict):
        return RecipeFacts(text)
    sources = value.get("sources") or []
    if isinstance(sources, dict):
        sources = [{"name": name, **(entry or {})} for name, entry in sources.items()]
    labels = (value.get("curation") or {}).get("labels") or {}
    return RecipeFacts(
        text,
        {str(s["name"]): _texts(s.get("capabilities")) for s in sources},
        tuple(_label(str(task), rule) for task, rules in labels.items() for rule in rules),
        tuple(p for p in (value.get("final") or {}).get("phases") or () if isinstance(p, dict)),
        (value.get("influence") or {}).get("checkpoint_weights", "step"),
        value.get("seed"),
    )


def _label(task: str, rule: Mapping[str, Any]) -> LabelRule:
    given = []
    if rule.get("corrupt"):
        given.append(f"damaged copies ({str(rule['corrupt']).replace('_', ' ')})")
    if rule.get("sources"):
        given.append(f"documents of {', '.join(_texts(rule['sources']))}")
    if rule.get("pattern"):
        times = rule.get("minimum_matches", 1)
        given.append(
            f"documents that match {rule['pattern']}" + (f" {times} times or more" if times != 1 else "")
        )
    return LabelRule(
        task,
        str(rule["name"]),
        _needed(rule["label"]),
        "; ".join(given) or "all others",
        str(rule.get("why", "")),
    )


def _recipe_phases(recipe: RecipeFacts, mixtures: Mapping[str, Mixture]) -> tuple[Phase, ...]:
    """The recipe's phases with the mixtures that the run found; none unless all are known."""
    rows = [
        {**p, "weights": mixtures[str(p.get("mixture"))].weights}
        for p in recipe.phases
        if p.get("mixture") in mixtures
    ]
    return _phases(rows) if len(rows) == len(recipe.phases) else ()


def _recommendation(value: Any) -> Recommendation:
    return Recommendation(str(value["mixture"]), str(value.get("why", "")))


def _leave_one_out(value: Any) -> LeaveOneOut:
    seeds = value.get("seeds", ())
    return LeaveOneOut(
        unit=str(value.get("unit", "bits per byte")),
        tokens_per_run=number(value.get("tokens_per_run")),
        seeds=_texts(seeds),
        effects=tuple(
            Effect(
                str(e["source"]),
                str(e["capability"]),
                _needed(e["delta"]),
                number(e.get("low")),
                number(e.get("high")),
                {str(seed): _needed(d) for seed, d in (e.get("per_seed") or {}).items()},
            )
            for e in value["effects"]
        ),
        trajectories=tuple(
            Trajectory(
                str(t["source"]),
                str(t["capability"]),
                tuple(_needed(s) for s in t["steps"]),
                tuple(_needed(d) for d in t["delta"]),
            )
            for t in value.get("trajectories", ())
        ),
        notes=_texts(value.get("notes")),
        level=number(value.get("level")) or 0.9,
    )


def _influence(value: Any, recipe: RecipeFacts) -> Influence:
    return Influence(
        references=tuple(_reference(str(name), entry) for name, entry in value["references"].items()),
        chosen=str(value["chosen"]),
        why=str(value.get("why", "")),
        pilots=tuple(p for p in value.get("pilots", ()) if isinstance(p, dict)),
        rule=value.get("checkpoint_weights", recipe.checkpoint_rule),
        normalise=str(value.get("normalise", "none")),
    )


def _reference(name: str, entry: Mapping[str, Any]) -> Reference:
    return Reference(
        name=name,
        table=tuple(
            Benefit(
                str(row["source"]),
                str(row["capability"]),
                _needed(row["benefit"]),
                number(row.get("low")),
                number(row.get("high")),
                row.get("documents"),
                row.get("tokens"),
            )
            for row in entry["table"]
        ),
        weights=tuple(
            Density(
                str(row["source"]),
                _needed(row["rho"]),
                number(row.get("rho_low")),
                number(row.get("rho_high")),
                _needed(row["weight"]),
                number(row.get("low")),
                number(row.get("high")),
                bool(row.get("clipped")),
            )
            for row in entry["weights"]
        ),
        noise_below_uniform=entry.get("noise_below_uniform"),
        agreement=entry.get("agreement"),
    )


def _comparison(value: Any) -> Comparison:
    return Comparison(
        unit=str(value.get("unit", "bits per byte")),
        mixtures={
            str(name): {str(s): _needed(w) for s, w in weights.items()}
            for name, weights in value.get("mixtures", {}).items()
        },
        seeds=_texts(value.get("seeds")),
        runs=tuple(
            ComparedRun(str(r["mixture"]), str(r["seed"]), str(r["capability"]), _needed(r["bits_per_byte"]))
            for r in value["runs"]
        ),
        differences=tuple(
            Difference(
                str(d["mixture"]),
                str(d.get("against", "uniform")),
                str(d["capability"]),
                _needed(d["difference"]),
                number(d.get("relative")),
                number(d.get("low")),
                number(d.get("high")),
                number(d.get("p_sign_flip")),
                tuple(_needed(x) for x in d.get("per_seed") or ()),
                number(d.get("smallest_detectable")),
                str(d.get("verdict", "not separable")),
                number(d.get("p_holm")),
            )
            for d in value["differences"]
        ),
        notes=_texts(value.get("notes")),
        level=number(value.get("level")) or 0.9,
        rule=str(value.get("rule", "")),
    )


def _reads(value: Any) -> ReadCounts:
    counts = {name: int(v) for name, v in value.items() if isinstance(v, int) and not isinstance(v, bool)}
    examples = tuple(
        (str(e.get("where", "")), str(e.get("why", ""))) for e in value.get("broken_examples", ())
    )
    return ReadCounts(str(value["source"]), counts, examples)


def _funnel(value: Any) -> tuple[tuple[str, str, int], ...]:
    return tuple((str(r["source"]), str(r["stage"]), int(r["documents"])) for r in value)


def _settings(value: Any) -> tuple[Setting, ...]:
    return tuple(
        Setting(str(r["setting"]), str(r.get("value", "")), str(r.get("paper", "")), str(r.get("why", "")))
        for r in value
    )


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
    evaluations = folder.read(path / "evaluations.jsonl", read_rows)
    result = folder.read(path / "result.json", read_json)
    stage = folder.read(path / "stage.json", read_json)
    phases: tuple[Phase, ...] = ()
    for holder in (result, stage, (stage or {}).get("settings") if isinstance(stage, dict) else None):
        if not phases and isinstance(holder, dict):
            phases = _phases(holder.get("phases") or (holder.get("schedule") or {}).get("phases") or ())
    return Trained(
        path.name,
        result if isinstance(result, dict) else {},
        _curve(folder, path / "metrics.jsonl"),
        tuple(evaluations or ()),
        phases,
    )


def _phases(value: Iterable[Any]) -> tuple[Phase, ...]:
    """Phases as the trainer or the recipe records them, as long as their mixtures are spelled out."""
    rows = [v for v in value if isinstance(v, dict) and isinstance(v.get("weights"), dict)]
    sizes = [number(v.get("share")) or number(v.get("sequences")) or 0.0 for v in rows]
    total = sum(sizes) or 1.0
    return tuple(
        Phase(
            str(v.get("name", f"phase {at + 1}")),
            size / total,
            {str(k): float(w) for k, w in v["weights"].items()},
        )
        for at, (v, size) in enumerate(zip(rows, sizes, strict=True))
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


def uniform(sources: Iterable[str]) -> dict[str, float]:
    """Equal weights."""
    names = list(sources)
    return dict.fromkeys(names, 1 / len(names)) if names else {}


def same_weights(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    """Whether two mixtures are one, to a millionth."""
    return all(abs(a.get(name, 0.0) - b.get(name, 0.0)) < 1e-6 for name in {*a, *b})


def recommended_name(facts: RunFacts) -> str | None:
    """The name of the recommended mixture in the comparison, if it was trained there; two names can share weights."""
    if facts.recommended is None or facts.comparison is None:
        return None
    compared = set(facts.comparison.mixtures) | {d.mixture for d in facts.comparison.differences}
    weights = facts.recommended.weights
    given = [facts.recommendation.mixture] if facts.recommendation else []
    given += [facts.recommended.method, facts.recommended.method.replace("-", "_")]
    same = [name for name, other in facts.comparison.mixtures.items() if same_weights(other, weights)]
    candidates = [name for name in given if name in same] + same
    if not facts.comparison.mixtures:
        candidates = [name for name in given if name in compared]
    return candidates[0] if candidates else None
