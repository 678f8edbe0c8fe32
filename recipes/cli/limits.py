"""Options that say which runs there are, what limits a mixture, and how the metrics count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from curation.errors import DataError, RecipeError

RatiosOption = Annotated[
    Path | None, typer.Option("--ratios", help="ratios.csv: the mixture of each proxy run.")
]
MetricsOption = Annotated[
    Path | None, typer.Option("--metrics", help="metrics.csv: the losses of each proxy run.")
]
SourceOption = Annotated[
    list[str] | None,
    typer.Option("--source", help="A column of shares, where one table holds all; repeatable."),
]
ObjectiveOption = Annotated[
    list[str] | None,
    typer.Option("--objective", metavar="NAME=W", help="Weight of a metric; repeatable. All equal."),
]
AvailableTokensOption = Annotated[
    list[str] | None,
    typer.Option(
        "--available-tokens", metavar="FILE|NAME=N", help="Tokens of each source: JSON, or one by one."
    ),
]
BudgetTokensOption = Annotated[
    str | None,
    typer.Option("--budget-tokens", help="Tokens to be trained on; 2e9 and 2_000 are numbers."),
]
MaxEpochsOption = Annotated[
    float | None, typer.Option("--max-epochs", help="How often a source may be read.")
]
MinimumOption = Annotated[
    list[str] | None, typer.Option("--minimum", metavar="NAME=SHARE", help="Least share; repeatable.")
]
MaximumOption = Annotated[
    list[str] | None, typer.Option("--maximum", metavar="NAME=SHARE", help="Greatest share; repeatable.")
]
FixedOption = Annotated[
    list[str] | None, typer.Option("--fixed", metavar="NAME=SHARE", help="Fixed share; repeatable.")
]


def pairs(texts: list[str] | None, option: str) -> dict[str, str] | None:
    if texts is None:
        return None
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or not name or not value:
            raise RecipeError(
                f"`{option} {text}` is not of the form NAME=VALUE",
                where=option,
                remedy=f"For example {option} wiki=0.2",
            )
        if name in found:
            raise RecipeError(f"{option} names {name!r} twice", where=option, remedy="Name it once")
        found[name] = value
    return found


def numbers(texts: list[str] | None, option: str) -> dict[str, float] | None:
    found = pairs(texts, option)
    return None if found is None else {name: number(value, option) for name, value in found.items()}


def number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RecipeError(
            f"`{option}` was given {text!r}, which is not a number", where=option, remedy="Give a number"
        ) from error


def count(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    value = number(text, option)
    if not (1 <= value < 1e18):
        raise RecipeError(
            f"`{option}` was given {text}, which is not a number of tokens",
            where=option,
            remedy="Give 1 or more",
        )
    return int(value)


def tokens(texts: list[str] | None) -> dict[str, float] | None:
    """One JSON file of {source: tokens}, or NAME=N, or both, of which the second wins."""
    if texts is None:
        return None
    found: dict[str, float] = {}
    for text in texts:
        if Path(text).suffix == ".json" and "=" not in Path(text).name:
            found |= _token_file(Path(text))
    pairs = [text for text in texts if "=" in Path(text).name]
    odd = [text for text in texts if text not in pairs and Path(text).suffix != ".json"]
    if odd:
        raise RecipeError(
            f"`--available-tokens {odd[0]}` is neither NAME=N nor a .json file",
            where="--available-tokens",
            remedy="For example --available-tokens wiki=2e9",
        )
    return found | (numbers(pairs, "--available-tokens") or {})


def _token_file(path: Path) -> dict[str, float]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(tokens) for name, tokens in value.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"The file holds no tokens by source: {error}",
            where=str(path),
            remedy='It needs {"<source>": <tokens>, ...}',
        ) from error
