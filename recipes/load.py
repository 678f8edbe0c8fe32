"""Reading a recipe: YAML with line numbers, `--set` overrides, and one sentence for every mistake."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from curation.errors import RecipeError
from recipes.schema import RECIPE_VERSION, Recipe

MAXIMUM_BYTES = 1_000_000
MAXIMUM_NODES = 50_000
"""A recipe is untrusted input: aliases of aliases must not grow without bound."""

Path_ = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `4e-3` is a number, and a key given twice is a mistake."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN)$"
    ),
    list("-+0123456789."),
)


def built_in_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """The recipe file that `name` means: a path, or the name of a recipe that comes with the package."""
    path = Path(name)
    if path.is_file():
        return path
    known = built_in_recipes()
    stem = path.stem if path.suffix in ("", ".yaml") and path.parent in (Path(), Path("recipes")) else ""
    if stem in known:
        return known[stem]
    near = _nearest(str(name), known)
    raise RecipeError(
        f"There is no recipe `{name}`",
        remedy=f"Did you mean `{near}`?" if near else f"Name a .yaml file, or one of: {', '.join(known)}",
    )


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> tuple[Recipe, Path]:
    """Read, override and check a recipe.

    path      : a file, or the name of a built-in recipe
    overrides : `key.subkey=value` strings; values are YAML, list items are addressed by number or by `name`
    Returns the recipe and the file it came from. Raises RecipeError with file, line, field and remedy.
    """
    file = find_recipe(path)
    values, lines = read_values(file, overrides)
    _check_version(values, lines, file)
    try:
        return Recipe.model_validate(values), file
    except ValidationError as error:
        raise RecipeError(*_sentence(error, values), where=_place(error, values, lines, file)) from None


def read_values(file: Path, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], dict[Path_, int]]:
    """The mapping in a YAML file with its overrides, and the line of each value. RecipeError when there is none."""
    try:
        if file.stat().st_size > MAXIMUM_BYTES:
            raise RecipeError(
                "The recipe is larger than 1 MB", where=str(file), remedy="Is this the right file?"
            )
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            "The recipe is not UTF-8 text", where=str(file), remedy="Save it as UTF-8"
        ) from error
    values, lines = _parse(text, file)
    for override in overrides:
        _override(values, override)
    return values, lines


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def _parse(text: str, file: Path) -> tuple[dict[str, Any], dict[Path_, int]]:
    try:
        node = yaml.compose(text, Loader=_Loader)
        lines: dict[Path_, int] = {}
        if node is not None:
            _walk(node, (), lines, file, [0])
        values = yaml.load(text, Loader=_Loader) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{file}, line {mark.line + 1}" if mark else str(file)
        raise RecipeError(
            f"This is not valid YAML: {error.problem}",
            where=where,
            remedy="Check indentation, colons and quotes",
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"The recipe cannot be read: {error}", where=str(file), remedy="Check the YAML"
        ) from None
    if not isinstance(values, dict):
        raise RecipeError(
            "The recipe is empty or not a mapping",
            where=str(file),
            remedy="Start from `mixwright init`, which writes one for your corpora",
        )
    return values, lines


def _walk(node: yaml.Node, at: Path_, lines: dict[Path_, int], file: Path, seen: list[int]) -> None:
    """Note the line of every value; refuse repeated keys and documents that aliases blow up."""
    seen[0] += 1
    if seen[0] > MAXIMUM_NODES or len(at) > 50:
        raise RecipeError(
            "The recipe is nested or repeated without bound", where=str(file), remedy="Remove aliases"
        )
    lines[at] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in keys:
                raise RecipeError(
                    f"The key `{key.value}` is given twice",
                    where=f"{file}, line {line}",
                    remedy="Keep one of the two",
                )
            keys.add(key.value)
            _walk(value, (*at, key.value), lines, file, seen)
            lines[(*at, key.value)] = line
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*at, index), lines, file, seen)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(
            f"`--set {override}` is not of the form key=value", remedy="For example --set proxy.tokens=200000"
        )
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise RecipeError(f"The value of `--set {override}` is not valid YAML", remedy="Quote it") from None
    target: Any = values
    parts = key.split(".")
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(target, list):
            index = _item(target, part, override)
            if last:
                target[index] = value
                return
            target = target[index]
        elif isinstance(target, dict):
            if last:
                target[part] = value
                return
            target = target.setdefault(part, {})
        else:
            raise RecipeError(
                f"`--set {override}` goes below `{'.'.join(parts[:depth])}`, which is a plain value",
                remedy="Set that key itself",
            )


def _item(items: list[Any], part: str, override: str) -> int:
    for index, item in enumerate(items):
        if isinstance(item, dict) and item.get("name") == part:
            return index
    if part.isdigit() and int(part) < len(items):
        return int(part)
    names = [item["name"] for item in items if isinstance(item, dict) and "name" in item]
    raise RecipeError(
        f"`--set {override}`: there is no item `{part}`", remedy=f"Choose one of: {', '.join(names)}"
    )


def _check_version(values: dict[str, Any], lines: dict[Path_, int], file: Path) -> None:
    version = values.get("mixwright")
    if version == RECIPE_VERSION and not isinstance(version, bool):
        return
    where = f"{file}, line {lines.get(('mixwright',), 1)}, field `mixwright`"
    if version is None:
        raise RecipeError(
            "The recipe does not say its version", where=where, remedy=f"Add `mixwright: {RECIPE_VERSION}`"
        )
    raise RecipeError(
        f"The recipe is for version {version!r}, this program reads version {RECIPE_VERSION}",
        where=where,
        remedy="Install the mixwright of that version, or compare with `mixwright init` and change the number",
    )


def _place(error: ValidationError, values: dict[str, Any], lines: dict[Path_, int], file: Path) -> str:
    location = _real_location(error, values)
    line = next((lines[location[:n]] for n in range(len(location), -1, -1) if location[:n] in lines), 1)
    field = ".".join(str(part) for part in location)
    return f"{file}, line {line}" + (f", field `{field}`" if field else "")


def _real_location(error: ValidationError, values: dict[str, Any]) -> Path_:
    """pydantic's location without the names of union members, which are no keys of the recipe."""
    location: list[str | int] = []
    current: Any = values
    first = error.errors()[0]
    for part in first["loc"]:
        if isinstance(current, dict) and (part in current or first["type"] in ("missing", "extra_forbidden")):
            location.append(part)
            current = current.get(part)
        elif isinstance(current, list) and isinstance(part, int) and part < len(current):
            location.append(part)
            current = current[part]
    return tuple(location)


def _sentence(error: ValidationError, values: dict[str, Any]) -> tuple[str]:
    """The first mistake as a sentence with its remedy."""
    first = error.errors()[0]
    location = _real_location(error, values)
    name = location[-1] if location else "recipe"
    if first["type"] == "extra_forbidden":
        allowed = _fields_at(location[:-1])
        near = _nearest(str(name), allowed)
        hint = f"did you mean `{near}`?" if near else f"known here: {', '.join(sorted(allowed))}"
        what = f"Unknown key `{name}`; {hint}"
    elif first["type"] == "missing":
        what = f"The field `{first['loc'][-1]}` is missing"
    elif first["type"] == "literal_error":
        expected = [
            part.strip(" '") for part in str(first["ctx"]["expected"]).replace(" or ", ",").split(",")
        ]
        near = _nearest(str(first["input"]), expected)
        what = f"`{name}` is {first['input']!r} and must be one of {', '.join(expected)}"
        what += f"; did you mean `{near}`?" if near else ""
    elif first["type"] == "value_error":
        what = str(first["ctx"]["error"])
        what = what[:1].upper() + what[1:]
    else:
        blocks = ("model_type", "model_attributes_type", "dict_type")
        message = (
            "must be a block of keys" if first["type"] in blocks else first["msg"].removeprefix("Input ")
        )
        what = f"`{name}` is {first['input']!r}, but it {message}"
    return (what,)


def _fields_at(location: Path_) -> list[str]:
    """Names of the fields of the block at `location`."""
    model: type[BaseModel] = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := _model_in(inner))), None)


def _nearest(name: str, known: Iterable[str]) -> str | None:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None
