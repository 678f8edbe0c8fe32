"""What training refuses before it spends time: each with a sentence that says what, where and how to mend it."""

import os
from dataclasses import replace

import pytest

from curation.errors import DataError, MixwrightError, RecipeError
from tests.training.test_tokens import many
from training.huggingface import save_huggingface
from training.loop import TrainSettings, train
from training.model import Decoder, ModelConfig
from training.order import DataOrder, MixtureSchedule, Phase
from training.tokenizer import load_tokenizer, train_tokenizer
from training.tokenizing import write_tokens
from training.tokens import TokenSource

CONFIG = ModelConfig(300, 16, 1, heads=2, kv_heads=1, head_dim=8, ffn_dim=16)
SETTINGS = TrainSettings(sequence_tokens=16, batch_sequences=2, steps=2, learning_rate=1e-3, device="cpu")


@pytest.fixture
def tokenizer(tmp_path):
    return train_tokenizer([text for _, text in many(50)], 300, tmp_path / "tokenizer")


@pytest.fixture
def order(tokenizer, tmp_path):
    source = write_tokens(many(50), tokenizer, tmp_path / "web", "web")
    return DataOrder(MixtureSchedule((Phase("p", 4, {"web": 1.0}),)), {"web": source}, 16)


def refused(kind: type[MixwrightError], work) -> str:
    with pytest.raises(kind) as caught:
        work()
    assert caught.value.remedy, "a sentence says how to mend it"
    return f"{caught.value.what} | {caught.value.where}"


def test_a_model_of_another_tokenizer(order, tokenizer, tmp_path):
    other = train_tokenizer(["quite other words altogether"] * 3, 300, tmp_path / "other")
    model = Decoder(CONFIG).init_weights(0)
    save_huggingface(model, tmp_path / "theirs", other)
    said = refused(
        RecipeError, lambda: train(CONFIG, order, SETTINGS, tmp_path / "run", init_from=tmp_path / "theirs")
    )
    assert "another tokenizer" in said and "theirs" in said and not (tmp_path / "run").exists()
    # Its own tokenizer, also after two round trips through a folder, is no other one.
    save_huggingface(model, tmp_path / "ours", tokenizer)
    save_huggingface(model, tmp_path / "again", load_tokenizer(tmp_path / "ours"))
    train(CONFIG, order, SETTINGS, tmp_path / "run", init_from=tmp_path / "again")


def test_a_model_of_another_architecture(order, tmp_path):
    save_huggingface(Decoder(replace(CONFIG, dim=24)).init_weights(0), tmp_path / "wide")
    said = refused(
        RecipeError, lambda: train(CONFIG, order, SETTINGS, tmp_path / "run", init_from=tmp_path / "wide")
    )
    assert "another shape" in said
    (tmp_path / "wide" / "config.json").write_text('{"model_type": "mamba"}')
    said = refused(
        DataError, lambda: train(CONFIG, order, SETTINGS, tmp_path / "run", init_from=tmp_path / "wide")
    )
    assert "'mamba'" in said


def test_tokens_that_changed_since(order, tmp_path):
    path = tmp_path / "web" / "tokens-00000.bin"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(bytes(data))
    assert "tokens-00000.bin" in refused(DataError, lambda: TokenSource.open(tmp_path / "web"))
    os.truncate(path, 100)
    assert "100 bytes" in refused(DataError, lambda: TokenSource.open(tmp_path / "web"))


def test_fewer_tokens_than_the_schedule_asks_for(order):
    tokens = order.sources["web"].total_tokens
    schedule = MixtureSchedule((Phase("broad", 4, {"web": 1.0}), Phase("long", tokens, {"web": 1.0})))
    long = DataOrder(schedule, order.sources, 16)
    said = refused(RecipeError, lambda: long.check_epochs(4))
    assert f"{(4 + tokens) * 16 - 4 * tokens:,} tokens are missing" in said
    assert "weights.web (phase long)" in said


def test_fewer_sequences_than_the_steps_ask_for(order, tmp_path):
    said = refused(RecipeError, lambda: train(CONFIG, order, replace(SETTINGS, steps=9), tmp_path / "run"))
    assert "18 sequences" in said and "only 4" in said


def test_other_data_in_a_folder_that_has_begun(order, tokenizer, tmp_path):
    train(CONFIG, order, SETTINGS, tmp_path / "run")
    source = write_tokens(many(40), tokenizer, tmp_path / "web", "web")
    changed = DataOrder(order.schedule, {"web": source}, 16)
    assert "order has changed" in refused(
        RecipeError, lambda: train(CONFIG, changed, SETTINGS, tmp_path / "run")
    )
