"""A first recipe for somebody's own corpora."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from curation.errors import RecipeError
from recipes.load import built_in_recipes

GUESSES = {
    "code": ("code", "python", "github", "starcoder", "stack", "program"),
    "mathematics": ("math", "proof", "algebra", "arxiv", "gsm"),
    "knowledge": ("wiki", "web", "edu", "book", "reference", "stack"),
}


def starter_recipe(corpora: Sequence[Path], base: Path) -> str:
    """YAML of a recipe over `corpora`, each a source; capabilities are guessed from the names and meant to be read.

    The label rules of the quickstart that name its own sources are left out: they say nothing about other corpora.
    """
    if len(corpora) < 2:
        raise RecipeError("A mixture needs at least two corpora", remedy="Name two or more files or folders")
    for corpus in corpora:
        if not corpus.exists():
            raise RecipeError(f"There is no file or folder {corpus}", remedy="Check the path")
    recipe = yaml.safe_load(built_in_recipes()["quickstart"].read_text(encoding="utf-8"))
    recipe["name"] = "my-mixture"
    recipe["sources"] = [
        {
            "name": name,
            "kind": "local",
            "path": os.path.relpath(corpus, base),
            "capabilities": [c for c, words in GUESSES.items() if any(word in name.lower() for word in words)]
            or ["knowledge"],
        }
        for name, corpus in zip(_names(corpora), corpora, strict=True)
    ]
    labels = recipe["curation"]["labels"]
    for task, rules in labels.items():
        labels[task] = [rule for rule in rules if not rule.get("sources")]
    recipe["curation"]["educational"].pop("per_source", None)
    recipe["curation"].pop("near_duplicates", None)  # the quickstart's own, for short pieces of code
    header = (
        "# Made by `mixwright init`. Check the capabilities of each source (code, mathematics, knowledge; none for\n"
        "# noise), and what the label rules call good and bad, or name published models instead of `trained`.\n"
    )
    return header + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=110)


def _names(corpora: Sequence[Path]) -> list[str]:
    names: list[str] = []
    for corpus in corpora:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "_", corpus.name.split(".")[0]).strip("_-") or "source"
        name, number = plain[:60], 2
        while name in names:
            name, number = f"{plain[:60]}_{number}", number + 1
        names.append(name)
    return names
