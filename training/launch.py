"""A run described by one plain file, for a machine with torch and nothing else: `python -m training`."""

from __future__ import annotations

import difflib
import json
import math
import typing
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from curation.errors import RecipeError
from training.model import ModelConfig, preset
from training.order import DataOrder, MixtureSchedule, Phase
from training.settings import TrainSettings
from training.tokens import TokenSource


@dataclass(frozen=True)
class PhaseConfig:
    """A phase of the data: its mixture, for so many tokens; without `tokens`, for the rest of the run."""

    weights: dict[str, float]
    tokens: int | None = None
    name: str = ""


@dataclass(frozen=True)
class DataConfig:
    """What is read.

    tokens     : folder of every source, as training.tokens writes it; relative to the file that says so
    phases     : mixtures, one after the other
    seed, block : see training.order
    max_epochs : how often a source may be read, None = as often as it takes
    """

    tokens: dict[str, str]
    phases: tuple[PhaseConfig, ...]
    seed: int = 0
    block: int = 128
    max_epochs: float | None = None


@dataclass(frozen=True)
class RunConfig:
    """The file of a run.

    model     : the name of a preset, or {"preset": name, ...changes}, or all sizes of a ModelConfig
    training  : settings, see TrainSettings
    init_from : a checkpoint or Hugging Face folder to start from
    """

    model: str | dict[str, Any]
    data: DataConfig
    training: TrainSettings
    init_from: str | None = None


@dataclass(frozen=True)
class Launch:
    """What the file asks for, ready for `training.loop.train`."""

    model: ModelConfig
    order: DataOrder
    settings: TrainSettings
    init_from: Path | None


def read_launch(path: Path | str) -> Launch:
    """Read a .json, .yaml or .yml file. RecipeError, with the place and the nearest name, for what it cannot mean."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(
            f"The file of the run cannot be read: {error}", where=str(path), remedy="Give a JSON or YAML file"
        ) from error
    config: RunConfig = _build(RunConfig, value, "")
    model = _model(config.model)
    here = path.parent
    sources = {name: TokenSource.open(here / folder) for name, folder in config.data.tokens.items()}
    order = DataOrder(_schedule(config), sources, config.training.sequence_tokens)
    if config.data.max_epochs is not None:
        order.check_epochs(config.data.max_epochs)
    return Launch(model, order, config.training, here / config.init_from if config.init_from else None)


def _model(value: str | dict[str, Any]) -> ModelConfig:
    if isinstance(value, str):
        return preset(value)
    value = dict(value)
    if "preset" not in value:
        return _build(ModelConfig, value, "model")
    start = preset(str(value.pop("preset")))
    return _build(ModelConfig, {f.name: getattr(start, f.name) for f in fields(start)} | value, "model")


def _schedule(config: RunConfig) -> MixtureSchedule:
    settings, data = config.training, config.data
    needed = settings.steps * settings.batch_sequences
    phases: list[Phase] = []
    for index, phase in enumerate(data.phases):
        left = needed - sum(p.sequences for p in phases)
        sequences = left if phase.tokens is None else math.ceil(phase.tokens / settings.sequence_tokens)
        if sequences < 1:
            raise RecipeError(
                "This phase has no tokens: those before it take all that the run reads",
                where=f"data.phases.{index}",
                remedy="Shorten a phase, or raise training.steps",
            )
        phases.append(Phase(phase.name or f"phase {index + 1}", sequences, phase.weights))
    return MixtureSchedule(tuple(phases), data.seed, data.block)


# ---- values of a file into dataclasses -----------------------------------------------------------


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` as the dataclass `kind`: all names known, none missing, each value of its type."""
    if not isinstance(value, dict):
        raise _wrong(where, value, "a table of names and values")
    known = {f.name: f for f in fields(kind)}
    for name in value:
        if name not in known:
            raise _unknown(str(name), known, where)
    missing = [
        name
        for name, f in known.items()
        if name not in value and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise RecipeError(
            f"{missing[0]} is missing",
            where=where or "the file",
            remedy=f"Give {', '.join(missing)}",
        )
    hints = get_type_hints(kind)
    return kind(
        **{name: _value(hints[name], given, f"{where}.{name}".lstrip(".")) for name, given in value.items()}
    )


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _build(hint, value, where)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        kinds = [kind for kind in inner if kind is not NoneType]
        fitting = [kind for kind in kinds if isinstance(value, get_origin(kind) or kind)] or kinds[:1]
        return _value(fitting[0], value, where)
    if origin is Literal:
        if value not in inner:
            raise _unknown(str(value), inner, where)
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, value, "a table of names and values")
        return {str(name): _value(inner[1], item, f"{where}.{name}") for name, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        return tuple(_value(inner[0], item, f"{where}.{index}") for index, item in enumerate(value))
    return _plain(hint, value, where)


def _plain(hint: Any, value: Any, where: str) -> Any:
    """A number, text or truth. YAML reads 4e-3 as text, and 1e6 is a whole number to a person."""
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise _wrong(where, value, "a number") from None
        if hint is float:
            return number
        if number.is_integer():
            return value if isinstance(value, int) else int(number)
        raise _wrong(where, value, "a whole number")
    if not isinstance(value, hint):
        raise _wrong(
            where, value, {str: "text", bool: "true or false"}.get(hint, typing.cast(type, hint).__name__)
        )
    return value


def _unknown(name: str, known: Iterable[str], where: str) -> RecipeError:
    names = sorted(map(str, known))
    near = difflib.get_close_matches(name, names, 1)
    remedy = f"Did you mean `{near[0]}`" if near else f"Choose among {', '.join(names)}"
    return RecipeError(f"`{name}` is not known here", where=where or "the file", remedy=remedy)


def _wrong(where: str, value: Any, wanted: str) -> RecipeError:
    return RecipeError(f"{value!r} is not {wanted}", where=where or "the file", remedy=f"Give {wanted}")
