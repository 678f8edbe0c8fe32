"""Any number of evaluations side by side: what each scored, and how each differs from one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curation.atomic import read_json
from curation.errors import DataError, RecipeError
from probes.checkpoint_series import Point, read_points
from probes.intervals import RESAMPLES
from probes.metric_values import LOWER_IS_BETTER, NEITHER_IS_BETTER
from probes.result_comparison import Difference, compare_tasks
from probes.task_results import RESULTS, TaskResult, load_results

DIAGNOSTICS, SPEED = "diagnostics.json", "speed.json"


@dataclass(frozen=True)
class Contender:
    """What an `out` folder holds: results by task, the points of a series of checkpoints, inside, and speed.

    Of a series the results are those of its last checkpoint.
    """

    name: str
    folder: Path
    results: dict[str, TaskResult]
    points: tuple[Point, ...] = ()
    diagnostics: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None


@dataclass(frozen=True)
class SideBySide:
    """Contenders, and the differences of each but the baseline to the baseline, on the same questions.

    differences : by the name of the contender: contender minus baseline, see `Difference`
    """

    contenders: tuple[Contender, ...]
    baseline: str
    differences: dict[str, tuple[Difference, ...]] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """All tasks, in the order of their first contender."""
        return list(dict.fromkeys(task for contender in self.contenders for task in contender.results))

    def counts(self, name: str) -> dict[str, int]:
        """Headline metrics in which a contender is better, worse, and not separable from the baseline."""
        found = {"better": 0, "worse": 0, "not separable": 0}
        for difference in self.differences[name]:
            if difference.headline and difference.metric not in NEITHER_IS_BETTER:
                found[outcome(difference)] += 1
        return found


def outcome(difference: Difference) -> str:
    """Whether `a` is better or worse than `b` beyond the interval, or not separable from it."""
    if difference.low <= 0 <= difference.high:
        return "not separable"
    return "better" if (difference.difference < 0) == (difference.metric in LOWER_IS_BETTER) else "worse"


def compare_many(
    folders: Sequence[str | Path],
    *,
    baseline: str | Path | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> SideBySide:
    """Read evaluations and compare each with the baseline (a folder or its name; the first by default).

    Intervals of 95 % resample the questions that both have answered. With many metrics, one in twenty that truly are
    equal leaves zero out. The folder of several models, which are no checkpoints of one training, stands for each of
    theirs. Raises DataError when folders have no task in common or were asked different things.
    """
    folders = [each for folder in folders for each in _models_of(Path(folder))]
    names = _names(folders)
    contenders = tuple(_contender(name, Path(folder)) for name, folder in zip(names, folders, strict=True))
    base = contenders[_place(folders, names, baseline)]
    differences = {}
    for contender in contenders:
        if contender is not base:
            if base.results and contender.results and not base.results.keys() & contender.results.keys():
                raise DataError(
                    "The two evaluations have no task in common", where=f"{contender.name}, {base.name}",
                    remedy="Evaluate both on one task at least",
                )  # fmt: skip
            shared = [task for task in base.results if task in contender.results]
            differences[contender.name] = tuple(
                found
                for task in shared
                for found in compare_tasks(contender.results[task], base.results[task], seed, resamples)
            )
    return SideBySide(contenders, base.name, differences)


def _models_of(folder: Path) -> list[Path]:
    """The folder itself, or those of its models where they are not steps of one training."""
    series, points = read_points(folder)
    return [folder / name for name in series] if any(point.step is None for point in points) else [folder]


def _contender(name: str, folder: Path) -> Contender:
    series, points = read_points(folder)
    at = folder / series[-1] if series else folder
    extras = {}
    for key, file in (("diagnostics", DIAGNOSTICS), ("speed", SPEED)):
        path = at / file if (at / file).is_file() else folder / file
        if path.is_file():
            try:
                extras[key] = read_json(path)
            except ValueError as error:
                raise DataError(
                    f"The file is not JSON: {error}", where=str(path), remedy="Make it again"
                ) from error
    has_results = any(at.glob(f"*/{RESULTS}"))
    results = load_results(at) if has_results or not extras else {}
    return Contender(name, folder, results, tuple(points), **extras)


def _names(folders: Sequence[str | Path]) -> list[str]:
    """The folders' own names, with as many of their parents' as it takes to tell them apart."""
    if not folders:
        raise RecipeError("There are no evaluations to compare", remedy="Name their --out folders")
    paths = [Path(folder).resolve() for folder in folders]
    double = [str(path) for path in paths if paths.count(path) > 1]
    if double:
        raise RecipeError("A folder is named twice", where=double[0], remedy="Name each once")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _place(folders: Sequence[str | Path], names: Sequence[str], baseline: str | Path | None) -> int:
    if baseline is None:
        return 0
    for place, (folder, name) in enumerate(zip(folders, names, strict=True)):
        if str(baseline) == name or Path(baseline).resolve() == Path(folder).resolve():
            return place
    raise RecipeError(
        f"The baseline {str(baseline)!r} is not among the evaluations", where="baseline",
        remedy=f"Choose one of {', '.join(names)}",
    )  # fmt: skip
