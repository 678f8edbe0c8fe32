"""Exports: parsed as the trainers parse them, the realised shares are those of the mixture."""

from __future__ import annotations

import csv
import json
import sys
import types
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import RecipeError
from mixing.export import FORMATS, ExportPlan, export_mixture, write_export
from mixing.export.plan import largest_remainder
from mixing.fit.tables import read_proxy_table
from mixing.mixture import Mixture

WEIGHTS = {"code": 0.25, "math": 0.45, "web text": 0.3, "unused": 0.0}
SEQUENCE = 128
BUDGET = 1_000 * SEQUENCE


def mixture(**fields: Any) -> Mixture:
    return Mixture(weights=WEIGHTS, method="leave-one-out", budget_tokens=BUDGET, **fields)


def plan(**fields: Any) -> ExportPlan:
    return ExportPlan(
        **({"sequence_length": SEQUENCE, "paths": {"code": "data/code", "math": "data/m"}} | fields)
    )


def greedy_blend(weights: list[float], samples: int) -> np.ndarray:
    """Samples of each dataset as Megatron-LM and Nanoset assign them: always the one furthest behind."""
    given_out = np.zeros(len(weights), dtype=int)
    share = np.asarray(weights) / np.sum(weights)
    for sample in range(samples):
        given_out[np.argmax(share * max(sample, 1) - given_out)] += 1
    return given_out


@given(
    st.dictionaries(st.text(min_size=1, max_size=5), st.floats(1e-6, 1), min_size=1, max_size=8),
    st.integers(0, 10_000),
)
def test_whole_numbers_sum_and_stay_within_one(weights: dict[str, float], total: int) -> None:
    counts = largest_remainder(weights, total)
    whole = sum(weights.values())
    assert sum(counts.values()) == total
    assert all(abs(counts[name] - weights[name] / whole * total) < 1 + 1e-6 for name in weights)


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_gives_files_units_and_notes(to: str, tmp_path: Path) -> None:
    lengths = {"code": 900.0, "math": 300.0, "web text": 600.0}
    exported = export_mixture(mixture(), to, plan(tokens_per_document=lengths))
    assert exported.unit in ("tokens", "sequences", "documents")
    assert sum(exported.shares.values()) == pytest.approx(1)
    assert "unused" not in exported.shares
    assert exported.tokens is not None and sum(exported.tokens.values()) == BUDGET
    assert all(count % SEQUENCE == 0 for count in exported.tokens.values())
    paths = write_export(exported, tmp_path)
    assert [path.read_text(encoding="utf-8") for path in paths] == list(exported.files.values())


def test_nanotron_realises_the_shares_within_a_sequence() -> None:
    exported = export_mixture(mixture(), "nanotron", plan())
    (stage,) = yaml.safe_load(exported.files["nanotron.yaml"])["data_stages"]
    dataset = stage["data"]["dataset"]
    assert stage["start_training_step"] == 1
    assert dataset["dataset_folder"] == ["data/code", "data/m", "PATH/TO/web_text"]
    counts = greedy_blend(dataset["dataset_weights"], 1_000)
    assert np.abs(counts - np.array([250, 450, 300])).max() <= 1


def test_megatron_realises_the_shares_within_a_sequence() -> None:
    exported = export_mixture(mixture(), "megatron", plan())
    flat = json.loads(exported.files["megatron.json"])["train"]
    assert exported.files["megatron.txt"].split() == flat
    # As its get_blend_from_list reads it: an even list is pairs of weight and prefix.
    assert len(flat) % 2 == 0
    weights, prefixes = [float(value) for value in flat[::2]], flat[1::2]
    assert prefixes[0] == "data/code"
    assert np.abs(greedy_blend(weights, 1_000) - np.array([250, 450, 300])).max() <= 1


def test_megatron_writes_no_text_file_for_a_path_with_a_space() -> None:
    exported = export_mixture(mixture(), "megatron", plan(paths={"code": "my data/code"}))
    assert list(exported.files) == ["megatron.json"]
    assert any("my data/code" in note for note in exported.notes)


def olmo_core_instances(config: dict[str, Any], available: dict[str, int], sequence: int) -> dict[str, int]:
    """OLMo-core's rule for one file a source: whole sequences, the missing ones by largest remainder."""
    batch, requested = config["global_batch_size"], config["requested_tokens"]
    wanted, remainders = {}, {}
    for source in config["source_list"]["sources"]:
        name = source["source_name"]
        assert 0 < source["target_ratio"] <= 1 and source.get("max_repetition_ratio", 1) >= 1
        needed = int(requested * source["target_ratio"])
        limit = int(available[name] * source.get("max_repetition_ratio", 1.0))
        assert limit >= needed, f"Insufficient tokens for source: {name}"
        wanted[name], remainders[name] = needed // sequence, needed % sequence
    total = -(-requested // batch) * (batch // sequence)
    while sum(wanted.values()) < total:
        name = max(remainders, key=lambda key: remainders[key])
        wanted[name] += 1
        remainders[name] -= sequence
        assert wanted[name] * sequence <= available[name] * 2
    return wanted


def test_olmo_core_has_room_for_the_repetition_it_needs() -> None:
    available = {"code": 20_000, "math": 40_000, "web text": 500_000}
    facts = plan(
        available_tokens={name: float(n) for name, n in available.items()}, batch_tokens=8 * SEQUENCE
    )
    exported = export_mixture(mixture(), "olmo-core", facts)
    config = yaml.safe_load(exported.files["olmo-core.yaml"])
    ratios = [source["target_ratio"] for source in config["source_list"]["sources"]]
    assert np.allclose(sum(ratios), 1)
    instances = olmo_core_instances(config, available, SEQUENCE)
    assert sum(instances.values()) == 1_000
    for name, count in instances.items():
        assert abs(count - WEIGHTS[name] * 1_000) <= 1
    assert exported.epochs["code"] == pytest.approx(250 * SEQUENCE / 20_000)


def test_olmo_core_takes_sizes_from_the_mixtures_epochs() -> None:
    epochs = {"code": 1.6, "math": 0.5, "web text": 0.1, "unused": 0.0}
    config = yaml.safe_load(
        export_mixture(mixture(epochs=epochs), "olmo-core", plan()).files["olmo-core.yaml"]
    )
    by_name = {source["source_name"]: source for source in config["source_list"]["sources"]}
    assert by_name["code"]["max_repetition_ratio"] == pytest.approx(1.6)
    assert by_name["math"]["max_repetition_ratio"] == 1


def test_olmix_reads_as_a_table_of_runs(tmp_path: Path) -> None:
    exported = export_mixture(mixture(), "olmix")
    write_export(exported, tmp_path)
    (row,) = csv.DictReader((tmp_path / "ratios.csv").open(encoding="utf-8"))
    assert {name: float(row[name]) for name in WEIGHTS} == WEIGHTS
    (tmp_path / "metrics.csv").write_text("run,loss\nmixwright,1.5\n", encoding="utf-8")
    table = read_proxy_table(tmp_path / "ratios.csv", tmp_path / "metrics.csv")
    assert dict(zip(table.sources, table.weights[0].tolist(), strict=True)) == pytest.approx(WEIGHTS)
    with pytest.raises(RecipeError, match="keeps the column 'run'"):
        export_mixture(Mixture(weights={"run": 1.0}), "olmix")


def test_datasets_program_realises_the_shares_of_tokens(tmp_path: Path) -> None:
    """Run with the real library: documents of unequal length, drawn by its own interleaving."""
    pytest.importorskip("datasets")
    lengths = {"code": 90, "math": 30, "web text": 60}
    for name, words in lengths.items():
        rows = "\n".join(json.dumps({"text": f"{name[0]} " * words, "id": i}) for i in range(40))
        (tmp_path / f"{name}.jsonl").write_text(rows + "\n", encoding="utf-8")
    facts = ExportPlan(
        paths={name: str(tmp_path / f"{name}.jsonl") for name in lengths},
        budget_tokens=150_000,
        sequence_length=64,
        tokens_per_document={name: float(n) for name, n in lengths.items()},
        seed=3,
    )
    exported = export_mixture(mixture(), "datasets", facts)
    program: dict[str, Any] = {}
    exec(exported.files["datasets_mixture.py"], program)
    tokens: Counter[str] = Counter()
    for row in program["mixture"]():
        tokens[row["text"][0]] += len(row["text"].split())
    total = sum(tokens.values())
    assert total == pytest.approx(150_000, rel=0.05)
    for name in lengths:
        assert tokens[name[0]] / total == pytest.approx(WEIGHTS[name], abs=0.03)
    with pytest.raises(RecipeError, match="counts documents"):
        export_mixture(mixture(), "datasets", plan())


@dataclass
class Recorded:
    kind: str
    fields: dict[str, Any]


def recording_module(name: str, kinds: list[str]) -> types.ModuleType:
    """A stand-in for a library: its classes only remember what they were given."""
    module = types.ModuleType(name)
    for kind in kinds:

        def make(_kind: str = kind, **fields: Any) -> Recorded:
            return Recorded(_kind, fields)

        make.Config = make  # type: ignore[attr-defined]
        setattr(module, kind, make)
    return module


def test_torchtitan_program_packs_before_it_mixes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = recording_module(
        "torchtitan.components.data",
        [
            "ConcatThenSplitPackingConfig",
            "DatasetMixConfig",
            "IndexedJsonlSource",
            "SingleDatasetConfig",
            "WeightedDataset",
        ],
    )
    text = recording_module("torchtitan.hf_datasets.text_datasets", ["TextProcessor"])
    for module in (
        types.ModuleType("torchtitan"),
        types.ModuleType("torchtitan.components"),
        data,
        types.ModuleType("torchtitan.hf_datasets"),
        text,
    ):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    program: dict[str, Any] = {}
    exec(export_mixture(mixture(), "torchtitan", plan()).files["torchtitan_mixture.py"], program)
    children = program["mixture"].fields["datasets"]
    assert [child.fields["weight"] for child in children] == [0.25, 0.45, 0.3]
    assert all(child.fields["dataset"].kind == "ConcatThenSplitPackingConfig" for child in children)
    source = children[0].fields["dataset"].fields["dataset"].fields["source"]
    assert source.fields["patterns"] == ("data/code",)


def test_litdata_program_gives_weights_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    library = recording_module(
        "litdata", ["CombinedStreamingDataset", "StreamingDataLoader", "StreamingDataset", "TokensLoader"]
    )
    litgpt = types.ModuleType("litgpt.data")
    litgpt.DataModule = object  # type: ignore[attr-defined]
    for module in (library, types.ModuleType("litgpt"), litgpt):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    text = export_mixture(mixture(), "litdata", plan(seed=7)).files["litdata_mixture.py"]
    module = types.ModuleType("exported")
    monkeypatch.setitem(sys.modules, "exported", module)
    exec(text, module.__dict__)
    combined = module.mixture()
    assert combined.fields["weights"] == [0.25, 0.45, 0.3]
    assert combined.fields["iterate_over_all"] is False and combined.fields["seed"] == 7
    loader = combined.fields["datasets"][0].fields["item_loader"]
    assert loader.fields["block_size"] == SEQUENCE + 1
    data = module.MixtureData()
    data.connect(batch_size=4, max_seq_length=64)
    assert data.train_dataloader().fields["batch_size"] == 4
    with pytest.raises(ValueError, match="VALIDATION"):
        data.val_dataloader()


HOSTILE = 'a"); import os; os.abort() #\n{rows} {seed}'


@pytest.mark.parametrize("to", ["torchtitan", "litdata", "datasets", "nanotron", "olmo-core"])
def test_names_are_data_in_every_file(to: str) -> None:
    odd = Mixture(weights={HOSTILE: 1.0}, budget_tokens=BUDGET)
    facts = ExportPlan(
        sequence_length=SEQUENCE, tokens_per_document={HOSTILE: 10.0}, paths={HOSTILE: HOSTILE}
    )
    (text,) = export_mixture(odd, to, facts).files.values()
    if to in ("nanotron", "olmo-core"):
        assert HOSTILE in str(yaml.safe_load(text)) or repr(HOSTILE)[1:-1] in str(yaml.safe_load(text))
        return
    import ast

    tree = ast.parse(text)
    names = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert HOSTILE in names
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "os" not in imported


def test_wrong_requests_are_sentences() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'nanotron'"):
        export_mixture(mixture(), "nanotorn")
    with pytest.raises(RecipeError, match="Did you mean 'code'"):
        export_mixture(mixture(), "nanotron", plan(paths={"cod": "x"}))
    with pytest.raises(RecipeError, match="holds no sequence"):
        export_mixture(mixture(), "nanotron", plan(budget_tokens=100))
    with pytest.raises(RecipeError, match="not a whole number of sequences"):
        export_mixture(mixture(), "olmo-core", plan(batch_tokens=100))
    with pytest.raises(RecipeError, match="nobody said how many"):
        export_mixture(Mixture(weights={"a": 1.0}), "olmo-core")


def test_command_writes_files_and_takes_sizes_from_a_run(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    import recipes.cli.exporting  # noqa: F401
    from mixing.mixture import write_mixture
    from recipes.cli import app

    write_mixture(tmp_path / "mixture.json", mixture())
    arguments = [
        "export",
        str(tmp_path / "mixture.json"),
        "--to",
        "datasets",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    lengths = [f"--tokens-per-document={name}=100" for name in ("code", "math", "web text")]
    result = CliRunner().invoke(app, [*arguments, *lengths, "--sequence-length", "128"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["unit"] == "documents" and record["shares"]["math"] == pytest.approx(0.45)
    assert Path(record["files"][0]).is_file()
    failed = CliRunner().invoke(app, [*arguments, "--tokens-per-document", "code"])
    assert isinstance(failed.exception, RecipeError)
