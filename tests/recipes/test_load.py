"""A recipe's mistakes are one sentence each, with file, line, field and the nearest valid name."""

from pathlib import Path

import pytest
import yaml

from curation.errors import RecipeError
from recipes.load import built_in_recipes, dump_recipe, load_recipe

GOOD = """\
mixwright: 1
name: small
sources:
  - {name: a, kind: python, collection: readmes, capabilities: [knowledge]}
  - {name: b, kind: local, path: x.jsonl, capabilities: [code]}
curation:
  judge: {model: some/judge}
proxy:
  learning_rate: 4e-3
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def complaint(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    return str(caught.value)


def test_yaml_1_2_numbers_are_numbers(tmp_path: Path) -> None:
    recipe, _ = load_recipe(write(tmp_path, GOOD))
    assert recipe.proxy.learning_rate == 4e-3


def test_dumped_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe, _ = load_recipe(write(tmp_path, GOOD))
    again, _ = load_recipe(write(tmp_path, dump_recipe(recipe)))
    assert again == recipe


@pytest.mark.parametrize("name", sorted(built_in_recipes()))
def test_built_in_recipes_are_valid(name: str) -> None:
    recipe, file = load_recipe(name)
    assert recipe.name == name
    assert file.name == f"{name}.yaml"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            ("learning_rate", "lerning_rate"),
            ("line 9", "`proxy.lerning_rate`", "did you mean `learning_rate`"),
        ),
        (("4e-3", "fast"), ("line 9", "`proxy.learning_rate`", "valid number")),
        (("readmes", "readme"), ("line 4", "`sources.0.collection`", "did you mean `readmes`")),
        (("name: b", "name: a"), ("two sources are named `a`",)),
        (("mixwright: 1", "mixwright: 2"), ("line 1", "version 2", "reads version 1")),
        (("mixwright: 1\n", ""), ("does not say its version", "Add `mixwright: 1`")),
        (("path: x.jsonl, ", ""), ("line 5", "needs the field `path`")),
        (("{model: some/judge}", "{model: trained}"), ("label rules",)),
        (("{model: some/judge}", "hello"), ("line 7", "must be a block of keys")),
        (("proxy:", "proxy:\n  tokens: -5"), ("line 9", "`proxy.tokens`", "greater than or equal to 1")),
        (("proxy:", "name: again\nproxy:"), ("line 8", "`name` is given twice")),
        (("proxy:", "model: {dim: 100, heads: 3}\nproxy:"), ("line 8", "even whole number")),
        (("proxy:", "probes: {context: 4096}\nproxy:"), ("max_positions",)),
        (("proxy:", "proxy:\n  optimizer: muon"), ("second moments", "proxy.optimizer: adamw")),
        (("proxy:", "proxy:\n  loggers: [mlflow]"), ("line 9", "`proxy.loggers", "tensorboard")),
        (("{model", "{{model"), ("not valid YAML", "line")),
    ],
)
def test_each_mistake_is_a_sentence(
    tmp_path: Path, change: tuple[str, str], expected: tuple[str, ...]
) -> None:
    message = complaint(tmp_path, GOOD.replace(*change))
    assert "\n" not in message
    assert "recipe.yaml" in message
    for part in expected:
        assert part.lower() in message.lower()


def test_not_a_recipe(tmp_path: Path) -> None:
    assert "empty" in complaint(tmp_path, "")
    assert "not a mapping" in complaint(tmp_path, "- 1\n- 2\n")
    file = tmp_path / "binary.yaml"
    file.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(file)
    with pytest.raises(RecipeError, match="Did you mean `quickstart`"):
        load_recipe("quikstart")


def test_aliases_cannot_blow_up(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12))
    assert "without bound" in complaint(tmp_path, bomb)


def test_overrides(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    recipe, _ = load_recipe(file, ["proxy.tokens=5000", "sources.b.max_megabytes=0.5", "influence.floor=0.1"])
    assert (recipe.proxy.tokens, recipe.sources[1].max_megabytes, recipe.influence.floor) == (5000, 0.5, 0.1)
    assert "key=value" in complaint(tmp_path, GOOD, "junk")
    assert "Choose one of: a, b" in complaint(tmp_path, GOOD, "sources.c.path=x")
    assert "did you mean `tokens`" in complaint(tmp_path, GOOD, "proxy.tokns=5")


def test_every_field_is_documented() -> None:
    """Settings are documented where they are defined; only names that say everything stand alone."""
    from recipes.training_settings import InfluenceSettings, LeaveOneOutSettings

    for block in (InfluenceSettings, LeaveOneOutSettings):
        undocumented = {name for name, field in block.model_fields.items() if not field.description}
        assert undocumented <= {"seeds", "context", "documents_per_source"}


def test_yaml_of_the_recipe_is_plain(tmp_path: Path) -> None:
    recipe, _ = load_recipe(write(tmp_path, GOOD))
    assert yaml.safe_load(dump_recipe(recipe))["proxy"]["learning_rate"] == 4e-3
