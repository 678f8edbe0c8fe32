"""Compression of a mid-training set: what is kept, when it ends, and equal tokens for what it is compared with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curation.errors import RecipeError
from mixing.compression import CompressionSettings, compress
from mixing.compression.rounds import keep_positive, reason_to_stop, summarise_round
from mixing.influence import InfluenceSettings
from mixing.runs import ProxyRun, run_proxies
from tests.mixing.worlds import make_settings
from training.tokens import TokenSource


def joint(benefits: list[float], sources: str = "aabb") -> pa.Table:
    return pa.table(
        {
            "document": [f"d{i}" for i in range(len(benefits))],
            "source": list(sources),
            "tokens": pa.array([10, 20, 30, 40][: len(benefits)], pa.int64()),
            "benefit": pa.array(benefits, pa.float64()),
        }
    )


def test_a_round_by_hand() -> None:
    table = joint([2.0, -1.0, 0.5, 0.0])
    assert keep_positive(table)["document"].to_pylist() == ["d0", "d2"]
    found = summarise_round(1, table, {"code": table}, None)
    assert found.documents == {"a": 2, "b": 2} and found.tokens == {"a": 30, "b": 70}
    assert found.kept_documents == {"a": 1, "b": 1} and found.kept_tokens == {"a": 10, "b": 30}
    # rho of what is kept: a 2.0, b 0.5.
    assert found.weights == pytest.approx({"a": 0.8, "b": 0.2})
    assert found.rms == pytest.approx(np.sqrt((4 + 1 + 0.25) / 4)) and found.positive == 0.5
    counts, edges = found.counts["joint"], found.edges["joint"]
    assert sum(counts) == 4 and edges[len(edges) // 2] == 0
    assert sum(counts[len(counts) // 2 :]) == 2, "zero benefit is not counted as positive"
    later = summarise_round(2, joint([0.1, 0.1, 9.0, -9.0]), {"code": table}, found)
    assert later.edges == found.edges and later.counts["joint"][-1] >= 1 and later.counts["joint"][0] >= 1


def test_reasons_to_stop() -> None:
    first = summarise_round(1, joint([2.0, -1.0, 0.5, 0.0]), {}, None)
    rules = {"least_positive": 0.3, "gathered": 0.1}
    assert reason_to_stop([first], **rules) is None
    none = summarise_round(2, joint([-2.0, -1.0, -0.5, 0.0]), {}, first)
    assert none.weights == {} and reason_to_stop([first, none], **rules).reason == "nothing positive"
    few = summarise_round(2, joint([-2.0, -1.0, 0.5, 0.0]), {}, first)
    assert reason_to_stop([first, few], **rules).reason == "little positive"
    small = summarise_round(2, joint([0.02, -0.01, 0.05, 0.01]), {}, first)
    assert reason_to_stop([first, small], **rules).reason == "gathered"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    """A short training on all sources, and what is needed to go on from it."""
    folder = tmp_path_factory.mktemp("world")
    settings = make_settings(folder, steps=100, evaluate=(100,), checkpoint_steps=(100,))
    uniform = dict.fromkeys(settings.tokens, 1 / 3)
    run_proxies(
        [ProxyRun("base", uniform, seed=1)], replace(settings, keep="all"), folder / "runs", workers=0
    )
    start = folder / "runs" / "base" / "train" / "checkpoints" / "step-100"
    return (
        folder,
        start,
        replace(settings, train=replace(settings.train, steps=8, evaluate_steps=(8,), checkpoint_steps=())),
    )


COMPRESSION = CompressionSettings(
    influence=InfluenceSettings(context=64, pilot_documents=8),
    least_positive=0.0,
    gathered=0.0,
    max_epochs=50.0,
)


def test_compressed_and_original_read_equal_tokens_and_the_second_call_does_nothing(
    world, tmp_path: Path
) -> None:
    _, start, settings = world
    result = compress(start, dict(settings.probes), settings, tmp_path, compression=COMPRESSION)
    compressed, original = (result["arms"][name]["1"] for name in ("compressed", "original"))
    assert [row["tokens"] for row in compressed["trained"]] == [row["tokens"] for row in original["trained"]]
    assert compressed["stop"]["reason"] == "rounds" and len(compressed["rounds"]) == 2
    for found in compressed["rounds"]:
        assert all(0 <= found["kept_tokens"][s] <= found["tokens"][s] for s in settings.tokens)
        assert sum(found["counts"]["joint"]) == sum(found["documents"].values())
    # Noise belongs to no capability: less of it is kept than of the sources that the probes are cut from.
    first = compressed["rounds"][0]
    share = {name: first["kept_tokens"][name] / first["tokens"][name] for name in settings.tokens}
    assert share["noise"] < min(share["code"], share["wiki"])
    assert {row["mixture"] for row in result["comparison"]["plain"]["differences"]} == {"compressed"}
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    again = compress(start, dict(settings.probes), settings, tmp_path, compression=COMPRESSION)
    assert json.dumps(again) == json.dumps(result)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")} == stamps


def test_a_set_in_which_nothing_helps_ends_without_training(world, tmp_path: Path) -> None:
    _, start, settings = world
    strict = replace(COMPRESSION, least_positive=0.999)
    result = compress(start, dict(settings.probes), settings, tmp_path, compression=strict)
    arm = result["arms"]["compressed"]["1"]
    assert arm["trained"] == [] and arm["stop"]["reason"] == "little positive"
    assert result["comparison"]["plain"] is None
    assert not list(tmp_path.rglob("train"))


def test_too_few_kept_tokens_are_a_reason_and_not_an_error(world, tmp_path: Path) -> None:
    _, start, settings = world
    result = compress(
        start, dict(settings.probes), settings, tmp_path, compression=replace(COMPRESSION, max_epochs=0.01)
    )
    assert result["arms"]["compressed"]["1"]["stop"]["reason"] == "too few tokens"


def test_a_part_of_the_raw_set_and_wrong_settings(world, tmp_path: Path) -> None:
    _, start, settings = world
    few = replace(COMPRESSION, documents_per_source=5, rounds=1)
    result = compress(start, dict(settings.probes), settings, tmp_path, compression=few)
    assert result["arms"]["compressed"]["1"]["rounds"][0]["documents"] == dict.fromkeys(
        sorted(settings.tokens), 5
    )
    assert len(TokenSource.open(settings.tokens["code"]).ids) > 5
    for wrong in (replace(COMPRESSION, rounds=0), replace(COMPRESSION, mixture={"nowhere": 1.0})):
        with pytest.raises(RecipeError):
            compress(start, dict(settings.probes), settings, tmp_path, compression=wrong)
