"""mixture.json: round trip, equal bytes, and refusals."""

from __future__ import annotations

import json

import pytest

from curation.errors import DataError, RecipeError
from mixing.mixture import Mixture, make_mixture, read_mixture, write_mixture


def test_round_trip_and_equal_bytes(tmp_path) -> None:
    mixture = make_mixture(
        {"wiki": 3.0, "code": 1.0},
        method="leave-one-out",
        available_tokens={"wiki": 500, "code": 1000},
        budget_tokens=1000,
        max_epochs=1,
        intervals={"wiki": (0.6, 0.9), "code": (0.1, 0.4)},
        seed=7,
        inputs={"ratios.csv": "ab"},
    )
    assert mixture.weights == pytest.approx({"wiki": 0.5, "code": 0.5})
    assert mixture.epochs == pytest.approx({"wiki": 1.0, "code": 0.5})
    assert mixture.caps == {"wiki": 0.5, "code": 1.0}
    assert mixture.intervals == {"wiki": (0.5, 0.5), "code": (0.1, 0.4)}
    assert "code 0.250 to 0.500" in mixture.notes[0]
    write_mixture(tmp_path / "a.json", mixture)
    assert read_mixture(tmp_path / "a.json") == mixture
    turned = Mixture(**{**mixture.__dict__, "weights": dict(reversed(mixture.weights.items()))})
    write_mixture(tmp_path / "b.json", turned)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_hand_written_mixture_is_read(tmp_path) -> None:
    (tmp_path / "m.json").write_text('{"weights": {"a": 0.25, "b": 0.75}}')
    mixture = read_mixture(tmp_path / "m.json")
    assert mixture.weights == {"a": 0.25, "b": 0.75}
    mixture.check_sources(["a", "b", "c"])
    with pytest.raises(RecipeError, match=r"'b'.*Did you mean 'bb'"):
        mixture.check_sources(["a", "bb"])


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        ("{", DataError, "not valid JSON"),
        ("[]", DataError, "no mixture"),
        ('{"weights": {"a": 0.5, "b": 0.4}}', RecipeError, r"sum to 0\.9"),
        ('{"weights": {"a": -1, "b": 2}}', RecipeError, "'a' is -1"),
        ('{"weights": {"a": "1"}}', RecipeError, "'a' is 1"),
        ('{"schema": 9, "weights": {"a": 1}}', DataError, "schema 9"),
        ('{"unit": "documents", "weights": {"a": 1}}', DataError, "counts documents"),
        (json.dumps({"weights": {"a": 1}, "epochs": {"b": 1}}), DataError, "'a'"),
    ],
)
def test_what_is_not_a_mixture_is_refused(tmp_path, content: str, error: type, match: str) -> None:
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(error, match=match):
        read_mixture(tmp_path / "m.json")


def test_a_missing_file_and_a_limit_without_a_budget(tmp_path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_mixture(tmp_path / "none.json")
    with pytest.raises(RecipeError, match="needs a budget in tokens"):
        make_mixture({"a": 1}, method="given", available_tokens={"a": 1}, max_epochs=1)
    with pytest.raises(RecipeError, match="tokens that each source has"):
        make_mixture({"a": 1}, method="given", budget_tokens=10, max_epochs=1)
    with pytest.raises(RecipeError, match="'a' has weight 1 but no tokens"):
        make_mixture({"a": 1}, method="given", available_tokens={"a": 0}, budget_tokens=10)
    with pytest.raises(RecipeError, match=r"'b' is -0\.5"):
        make_mixture({"a": 1.5, "b": -0.5}, method="given")
