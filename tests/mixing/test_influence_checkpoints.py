"""The driver on a trainer's own checkpoints, and influence from files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from curation.errors import DataError, RecipeError
from mixing.influence import (
    BENEFIT_SCHEMA,
    CheckpointJob,
    InfluenceSettings,
    SampleDocument,
    choose_samples,
    influence_at_checkpoint,
    influence_at_checkpoints,
    joint_benefit,
    mixture_weights,
    read_benefits,
    score_files,
)
from training.loop import TrainSettings, train
from training.model import ModelConfig
from training.order import DataOrder, MixtureSchedule, Phase
from training.tokenizer import train_tokenizer, write_tokenizer
from training.tokenizing import write_tokens
from training.tokens import TokenSource

WORDS = {
    "code": ["def", "return", "import", "for", "in", "range", "print", "x", "y", "=", "+", "(", ")"],
    "prose": ["the", "river", "and", "a", "mountain", "was", "seen", "by", "old", "people", "of", "town"],
}


def texts(source: str, count: int, seed: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng([seed, len(source)])
    return [
        (f"{source}-{seed}-{i}", " ".join(rng.choice(WORDS[source], size=int(rng.integers(8, 20)))))
        for i in range(count)
    ]


class Trained:
    """A tiny model trained for twelve steps on two sources, with two checkpoints."""

    def __init__(self, folder: Path) -> None:
        corpora = {s: texts(s, 60, 0) for s in WORDS}
        self.tokenizer = train_tokenizer(
            [t for c in corpora.values() for _, t in c], 320, folder / "tokenizer"
        )
        self.sources: dict[str, TokenSource] = {
            s: write_tokens(c, self.tokenizer, folder / "tokens" / s, s) for s, c in corpora.items()
        }
        weights = dict.fromkeys(corpora, 0.5)
        order = DataOrder(
            MixtureSchedule((Phase("only", 48, weights),), seed=1, block=8), self.sources, sequence_tokens=32
        )
        settings = TrainSettings(
            sequence_tokens=32, batch_sequences=4, steps=12, learning_rate=0.01, checkpoint_steps=(6,)
        )
        self.config = ModelConfig(len(self.tokenizer), 32, 2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48)
        train(self.config, order, settings, folder / "run")
        self.folder = folder
        self.samples = choose_samples(self.sources.values(), 12, seed=3)
        self.probes = {
            "code": self.documents("code", 6, 7),
            "knowledge": self.documents("prose", 6, 7),
        }

    def documents(self, source: str, count: int, seed: int) -> list[SampleDocument]:
        probe = write_tokens(
            texts(source, count, seed), self.tokenizer, self.folder / f"{source}{seed}", source
        )
        return [SampleDocument(i, source, probe.document(n)[:-1]) for n, i in enumerate(probe.ids)]

    def job(self, step: int, *capabilities: str) -> CheckpointJob:
        return CheckpointJob(
            self.folder / "run" / "checkpoints" / f"step-{step}", "uniform", step, capabilities
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("influence"))


def test_samples_are_drawn_by_seed_and_leave_probes_out(trained: Trained) -> None:
    ids = [s.id for s in trained.samples]
    assert len(ids) == len(set(ids)) == 24 and [s.source for s in trained.samples[::12]] == ["code", "prose"]
    again = choose_samples(reversed(list(trained.sources.values())), 12, seed=3)
    assert {s.id for s in again} == set(ids)
    assert {s.id for s in choose_samples(trained.sources.values(), 12, seed=4)} != set(ids)
    rest = choose_samples(trained.sources.values(), 100, seed=3, exclude=ids)
    assert len(rest) == 96 and not {s.id for s in rest} & set(ids)
    source = trained.sources["code"]
    np.testing.assert_array_equal(trained.samples[0].ids, source.document(source.ids.index(ids[0])))


def test_checkpoints_to_weights(trained: Trained, tmp_path: Path) -> None:
    jobs = [trained.job(step, "code", "knowledge") for step in (6, 12)]
    files = influence_at_checkpoints(jobs, trained.probes, trained.samples, tmp_path)
    assert [f.name for f in files] == [
        f"uniform-{c}-step-{step}.parquet" for step in (6, 12) for c in ("code", "knowledge")
    ]
    table, pilots = read_benefits(files)
    assert table.schema == BENEFIT_SCHEMA and table.num_rows == 4 * 24
    assert all(p["within_source"] > 0.999 and p["signs_clear"] == 1.0 for p in pilots)
    by_capability = {
        c: {w.source: w for w in mixture_weights(joint_benefit(table, capabilities=[c]), resamples=100)}
        for c in trained.probes
    }
    assert by_capability["code"]["code"].weight > 0.5 > by_capability["code"]["prose"].weight
    assert by_capability["knowledge"]["prose"].weight > 0.5 > by_capability["knowledge"]["code"].weight
    record = json.loads(files[0].with_suffix(".json").read_text())
    assert record["reduction"] == "mean" and record["dtype"] == "float32" and record["capability"] == "code"
    assert (
        record["direction"]["probe_documents"] == 6 and record["forward_tokens"] > 0 and record["flops"] > 0
    )


def test_finished_files_stay_and_changed_inputs_are_noticed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = trained.job(12, "code")
    [file] = influence_at_checkpoint(job, trained.probes, trained.samples, tmp_path)
    before = file.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(
            "mixing.influence.checkpoints.OpenCheckpoint", lambda *a, **k: pytest.fail("scored again")
        )
        influence_at_checkpoint(job, trained.probes, trained.samples, tmp_path)
        # Without its JSON, a table is not finished.
        beside = file.with_suffix(".json")
        kept = beside.read_bytes()
        beside.unlink()
        with pytest.raises(pytest.fail.Exception):
            influence_at_checkpoint(job, trained.probes, trained.samples, tmp_path)
    influence_at_checkpoint(job, trained.probes, trained.samples, tmp_path)
    assert file.read_bytes() == before and beside.read_bytes() == kept
    other = InfluenceSettings(preconditioner="adam")
    influence_at_checkpoint(job, trained.probes, trained.samples, tmp_path, other)
    assert file.read_bytes() != before
    assert json.loads(beside.read_text())["direction"]["preconditioner"] == "adam"


def test_every_preconditioner_on_a_checkpoint(trained: Trained, tmp_path: Path) -> None:
    found = {}
    for name in ("identity", "adam", "datainf", "ekfac"):
        settings = InfluenceSettings(preconditioner=name, curvature_documents=6)  # type: ignore[arg-type]
        [file] = influence_at_checkpoint(
            trained.job(12, "code"), trained.probes, trained.samples, tmp_path / name, settings
        )
        table, [pilot] = read_benefits([file])
        assert pilot["within_source"] > 0.999, name
        found[name] = {w.source: w.rho for w in mixture_weights(joint_benefit(table), resamples=10)}
        assert found[name]["code"] > found[name]["prose"], name
    assert found["identity"] != found["adam"] != found["datainf"]


def test_two_workers_make_the_same_files(trained: Trained, tmp_path: Path) -> None:
    jobs = [trained.job(step, "code") for step in (6, 12)]
    one = influence_at_checkpoints(jobs, trained.probes, trained.samples, tmp_path / "one")
    two = influence_at_checkpoints(jobs, trained.probes, trained.samples, tmp_path / "two", workers=2)
    assert [f.name for f in one] == [f.name for f in two]
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert a.with_suffix(".json").read_bytes() == b.with_suffix(".json").read_bytes()


def test_bad_jobs(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no probe set for the capability 'cooking'"):
        influence_at_checkpoint(trained.job(12, "cooking"), trained.probes, trained.samples, tmp_path)
    with pytest.raises(DataError, match="both probes and samples, among them 'code-0-"):
        probes = {"code": trained.samples[:2]}
        influence_at_checkpoint(trained.job(12, "code"), probes, trained.samples, tmp_path)
    with pytest.raises(DataError, match="checkpoint has no weights"):
        influence_at_checkpoint(trained.job(99, "code"), trained.probes, trained.samples, tmp_path)
    with pytest.raises(DataError, match="no influence files"):
        read_benefits([])


def write_jsonl(path: Path, documents: list[tuple[str, str]], source: str) -> Path:
    lines = [json.dumps({"id": i, "text": t, "source": source}) for i, t in documents]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def huggingface(trained: Trained) -> Path:
    folder = trained.folder / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(trained.tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(trained.tokenizer, folder)
    return folder


@pytest.mark.parametrize("group_documents", [0, 4])
def test_documents_longer_than_the_model_reads_are_cut_and_it_says_so(
    huggingface: Path, tmp_path: Path, group_documents: int
) -> None:
    short = shutil.copytree(huggingface, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 12}))
    samples = write_jsonl(tmp_path / "samples.jsonl", texts("code", 8, 40), "code")
    probes = {"code": write_jsonl(tmp_path / "code.jsonl", texts("code", 4, 41), "probe")}
    out = tmp_path / "out.parquet"
    settings = InfluenceSettings(group_documents=group_documents, pilot_documents=4)
    table = score_files(short, samples, probes, out=out, settings=settings)
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["context"] == 12 and record["documents_cut"] == 8
    assert record["sample_tokens"] == sum(table["tokens"].to_pylist()) == 8 * 12
    assert any("8 of 8 documents are longer than 12 tokens" in note for note in record["notes"])


def test_influence_from_files(huggingface: Path, trained: Trained, tmp_path: Path) -> None:
    code, prose = texts("code", 10, 20), texts("prose", 10, 21)
    samples = tmp_path / "samples.jsonl"
    both = [*((i, t, "code") for i, t in code), *((i, t, "prose") for i, t in prose)]
    samples.write_text("".join(json.dumps({"id": i, "text": t, "source": s}) + "\n" for i, t, s in both))
    probes = {
        "code": write_jsonl(tmp_path / "code.jsonl", [("p", code[0][1]), *texts("code", 5, 30)], "probe")
    }
    probes["knowledge"] = write_jsonl(tmp_path / "knowledge.jsonl", texts("prose", 6, 31), "probe")
    out = tmp_path / "out.parquet"
    table = score_files(huggingface, samples, probes, "identity", out)
    assert pq.read_table(out).equals(table) and table.num_rows == 40
    assert set(table["capability"].to_pylist()) == {"code", "knowledge"}
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["pilot"]["within_source"] > 0.999
    assert "documents of the probe code are samples too, among them p" in record["notes"][-1]
    expected = len(trained.tokenizer.encode(code[0][1]))  # bos, tokens; eos is the last target
    assert table["tokens"][0].as_py() == expected
    checkpoint = trained.folder / "run" / "checkpoints" / "step-12"
    ours = score_files(checkpoint, samples, probes, "adam", tokenizer_dir=trained.folder / "tokenizer")
    assert ours.num_rows == 40
    code_benefit = [r["benefit"] for r in ours.to_pylist() if r["capability"] == r["source"] == "code"]
    assert np.mean(code_benefit) > 0


def test_files_that_cannot_be_scored(huggingface: Path, trained: Trained, tmp_path: Path) -> None:
    samples = write_jsonl(tmp_path / "samples.jsonl", texts("code", 3, 20), "code")
    probe = {"code": write_jsonl(tmp_path / "p.jsonl", texts("code", 3, 30), "code")}
    with pytest.raises(RecipeError, match=r"second moments.*choose identity"):
        score_files(huggingface, samples, probe, "adam")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no documents"):
        score_files(huggingface, tmp_path / "empty.jsonl", probe)
    with pytest.raises(DataError, match="cannot be loaded"):
        score_files(tmp_path, samples, probe)
    with pytest.raises(DataError, match=r"no such folder.*nowhere/at/all"):
        score_files(tmp_path / "nowhere/at/all", samples, probe)
    with pytest.raises(RecipeError, match="does not hold its tokenizer"):
        score_files(trained.folder / "run" / "checkpoints" / "step-12", samples, probe)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "def x"}\n{"text": \n')
    with pytest.raises(DataError, match="1 of 2 records cannot be read"):
        score_files(huggingface, broken, probe)
    small = tmp_path / "small"
    config = LlamaConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    LlamaForCausalLM(config).save_pretrained(small)
    write_tokenizer(trained.tokenizer, small)
    with pytest.raises(DataError, match="do not match"):
        score_files(small, samples, probe)
