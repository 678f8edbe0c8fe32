"""SFT: packing changes neither loss nor gradient, only the assistant is learnt from, kills change nothing."""

import doctest
import os
import signal
from dataclasses import replace

import pytest
import torch

import training.chat_packing
import training.loop
from curation.errors import DataError, RecipeError
from tests.training.post_training_models import killed, tiny_config, tiny_folder, tiny_tokenizer, write_rows
from training.chat import RenderedChat, render_chat, render_prompt
from training.chat_packing import chat_batch, check_labels, pack_chats
from training.huggingface import load_huggingface
from training.model import Decoder
from training.rollout import Ending, Prompt, RolloutSettings, roll_out
from training.run_log import read_rows
from training.sft import ChatOrder, SftSettings, fit_chats, sft
from training.update import accumulate_gradients

SETTINGS = SftSettings(
    sequence_tokens=32,
    batch_sequences=4,
    micro_batch_sequences=2,
    epochs=3,
    learning_rate=1e-2,
    checkpoint_every=3,
)


def sum_chat(a, b):
    said = f"<think> {a} + {b} </think> {a + b}"
    return [{"role": "user", "content": f"{a} + {b} ="}, {"role": "assistant", "content": said}]


SUMS = [sum_chat(a, b) for a in range(5) for b in range(5)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def chats(tokenizer):
    return [render_chat(tokenizer, messages) for messages in SUMS]


def test_examples_in_docstrings():
    result = doctest.testmod(training.chat_packing)
    assert result.attempted and not result.failed


def test_every_chat_stands_in_one_row_of_each_epoch():
    lengths = [1 + (7 * i) % 30 for i in range(500)]
    epochs = [pack_chats(lengths, 40, seed=3, epoch=epoch) for epoch in range(2)]
    for rows in epochs:
        assert sorted(chat for row in rows for chat in row) == list(range(500))
        assert max(sum(lengths[chat] for chat in row) for row in rows) <= 40
        assert sum(lengths) / (40 * len(rows)) > 0.95, "rows are well filled"
    assert epochs[0] != epochs[1] and epochs[0] == pack_chats(lengths, 40, seed=3, epoch=0)
    assert epochs[0] != pack_chats(lengths, 40, seed=4, epoch=0)


def gradients(batch, micro_batch):
    model = Decoder(tiny_config()).init_weights(1).double()
    loss = accumulate_gradients(model, batch, micro_batch_sequences=micro_batch)
    return float(loss), {name: p.grad for name, p in model.named_parameters()}


def test_packing_and_micro_batches_change_neither_loss_nor_gradient(chats):
    some = [*chats[:6], RenderedChat(chats[7].ids[:9], chats[7].assistant[:9])]
    alone, expected = gradients(chat_batch(some, [[i] for i in range(7)], 32), None)
    packed = chat_batch(some, [[6, 0]], 32)
    assert packed.positions[0].tolist() == [*range(8), *range(13)]
    assert packed.document_ids[0].tolist() == [0] * 8 + [1] * 13
    for rows in ([[0, 1], [2, 3], [4, 5], [6]], [[6, 5], [4, 3], [2], [1], [0]]):
        for micro_batch in (None, 1, 2):
            loss, found = gradients(chat_batch(some, rows, 32), micro_batch)
            assert loss == pytest.approx(alone, rel=1e-12)
            for name, gradient in found.items():
                torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-14)
    # the mean over assistant tokens, by hand
    model = Decoder(tiny_config()).init_weights(1).double()
    total = count = 0.0
    for chat in some:
        logprobs = model.logits(model(torch.tensor([chat.ids[:-1]])))[0].log_softmax(-1)
        for at, said in enumerate(chat.assistant[1:]):
            total -= float(logprobs.detach()[at, chat.ids[at + 1]]) * said
            count += said
    assert alone == pytest.approx(total / count, rel=1e-9)


def test_a_batch_without_labels_is_an_error():
    silent = RenderedChat((3, 4, 5), (False, False, False))
    with pytest.raises(DataError, match="Every label"):
        check_labels(chat_batch([silent], [[0]], 8))
    with pytest.raises(DataError, match="None of 1 chats"):
        fit_chats([silent], SETTINGS, 64, "chats.jsonl")


def test_chats_that_are_too_long(chats):
    assert len(chats[0].ids) == 14  # a row holds one token more than the model reads
    short = replace(SETTINGS, sequence_tokens=13)
    long = RenderedChat(chats[0].ids + (7,) * 20, chats[0].assistant + (True,) * 20)
    late = RenderedChat((7,) * 30, (False,) * 20 + (True,) * 10)
    kept, left_out = fit_chats([chats[0], long, late], short, 64, "")
    assert kept == [chats[0]] and left_out == 2
    kept, left_out = fit_chats([long, late], replace(short, too_long="truncate"), 64, "")
    assert [len(c.ids) for c in kept] == [14] and left_out == 1
    with pytest.raises(RecipeError, match="context"):
        fit_chats(chats, SETTINGS, 16, "")
    with pytest.raises(RecipeError, match="epochs"):
        SftSettings(epochs=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    start = tiny_folder(folder / "start")
    data = write_rows(folder / "chats.jsonl", [{"messages": messages} for messages in SUMS])
    result = sft(start, data, folder / "out", replace(SETTINGS, epochs=36))
    return folder, start, data, result


def test_it_learns_to_add_and_to_stop(finished, tokenizer):
    folder, _, _, result = finished
    rows = read_rows(folder / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, result.steps + 1))
    assert rows[0]["loss"] > 2.5 and rows[-1]["loss"] < 0.3
    assert rows[-1]["learning_rate"] < rows[len(rows) // 2]["learning_rate"] / 10
    model = load_huggingface(result.final)
    settings = RolloutSettings(max_tokens=12, temperature=0.0)
    prompts = [Prompt(at, render_prompt(tokenizer, chat[:1])) for at, chat in enumerate(SUMS)]
    answers = roll_out(model, prompts, settings, Ending.of(tokenizer, settings))
    right = sum(
        prompt.ids + rollout.completion_ids == render_chat(tokenizer, chat).ids
        for prompt, rollout, chat in zip(prompts, answers, SUMS, strict=True)
    )
    assert right >= 20


def test_a_finished_run_returns_at_once_and_another_is_refused(finished, monkeypatch):
    folder, start, data, result = finished
    monkeypatch.setattr(training.loop, "update", None)
    assert sft(start, data, folder / "out", replace(SETTINGS, epochs=36)) == result
    with pytest.raises(RecipeError, match="other settings"):
        sft(start, data, folder / "out", SETTINGS)


def test_killed_and_resumed_it_ends_with_the_same_bytes(finished, tmp_path):
    _, start, data, _ = finished
    expected = sft(start, data, tmp_path / "whole", SETTINGS)
    update = training.loop.update

    def dying_at(step):
        def work():
            def dies(run, batch, settings):
                if run.step == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return update(run, batch, settings)

            training.loop.update = dies
            sft(start, data, tmp_path / "killed", SETTINGS)

        return work

    assert expected.steps > 5
    for step in (1, 5, 5):
        assert killed(dying_at(step)) == -signal.SIGKILL
    result = sft(start, data, tmp_path / "killed", SETTINGS)
    whole, resumed = (f / "model" / "model.safetensors" for f in (tmp_path / "whole", tmp_path / "killed"))
    assert whole.read_bytes() == resumed.read_bytes() and result.steps == expected.steps
    losses = [[row["loss"] for row in read_rows(tmp_path / n / "metrics.jsonl")] for n in ("whole", "killed")]
    assert losses[0] == losses[1]


def test_order_is_a_pure_function_of_its_index(chats):
    order = ChatOrder(chats, SETTINGS)
    again = ChatOrder(chats, SETTINGS)
    last = order.batch((order.steps - 1) * 4, 4)
    assert torch.equal(last.input_ids, again.batch((order.steps - 1) * 4, 4).input_ids)
    assert order.fingerprint() == again.fingerprint() != ChatOrder(chats[1:], SETTINGS).fingerprint()
