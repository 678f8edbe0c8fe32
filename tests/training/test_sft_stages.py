"""Stages one after the other and together; rows so long that documents are read one by one."""

import os
import signal
from dataclasses import replace

import pytest
import torch

import training.update
from curation.errors import RecipeError
from tests.training.post_training_models import killed, tiny_config, tiny_folder, tiny_tokenizer, write_rows
from tests.training.test_sft import SETTINGS, SUMS, gradients
from training.chat import render_chat
from training.chat_packing import chat_batch
from training.document_rows import by_documents
from training.model import Decoder
from training.sft import sft
from training.sft_stages import PRESETS, SftStage, sft_stages


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    rows = [{"messages": messages} for messages in SUMS]
    return (
        tiny_folder(folder / "start"),
        write_rows(folder / "general.jsonl", rows[:10]),
        write_rows(folder / "reasoning.jsonl", rows[10:]),
    )


def stages(general, reasoning):
    first = replace(SETTINGS, epochs=1, learning_rate=1e-3, sequence_tokens=16)
    return [SftStage("general", general, first), SftStage("reasoning", [reasoning], SETTINGS)]


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def test_stages_in_turn_are_runs_from_each_others_models(files, tmp_path):
    start, general, reasoning = files
    both = stages(general, reasoning)
    results = sft_stages(start, both, tmp_path / "out")
    one = sft(start, general, tmp_path / "one", both[0].settings)
    two = sft(one.final, reasoning, tmp_path / "two", SETTINGS)
    assert weights(tmp_path / "out") == weights(tmp_path / "two") != weights(tmp_path / "one")
    assert [r.chats for r in results] == [10, 15] and results[1].steps == two.steps
    assert sft_stages(start, both, tmp_path / "out") == results


def test_a_joint_run_reads_all_files_with_the_last_settings(files, tmp_path):
    start, general, reasoning = files
    (result,) = sft_stages(start, stages(general, reasoning), tmp_path / "joint", "joint")
    whole = sft(start, [general, reasoning], tmp_path / "whole", SETTINGS)
    assert weights(tmp_path / "joint") == weights(tmp_path / "whole") and result.chats == whole.chats == 25


def test_killed_between_and_within_stages_it_ends_with_the_same_bytes(files, tmp_path):
    start, general, reasoning = files
    both = stages(general, reasoning)
    sft_stages(start, both, tmp_path / "whole")
    step = torch.optim.AdamW.step

    def dying_after(count):
        def work():
            left = [count]

            def dies(self, *given, **more):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(self, *given, **more)

            torch.optim.AdamW.step = dies
            sft_stages(start, both, tmp_path / "killed")

        return work

    for count in (2, 5, 4):  # updates of AdamW: in the first stage, in the second, in the second again
        assert killed(dying_after(count)) == -signal.SIGKILL
    sft_stages(start, both, tmp_path / "killed")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_bad_stages_are_refused(files, tmp_path):
    start, general, _ = files
    one = SftStage("a", general, SETTINGS)
    for wrong, schedule in (([], "in_turn"), ([one, one], "in_turn"), ([one], "both")):
        with pytest.raises(RecipeError):
            sft_stages(start, wrong, tmp_path, schedule)
    for name in ("model", "../x"):
        with pytest.raises(RecipeError, match="called"):
            sft_stages(start, [replace(one, name=name)], tmp_path)
    general, reasoning = PRESETS["mobilellm-r1-general"], PRESETS["mobilellm-r1-reasoning"]
    assert (general.learning_rate, general.epochs, general.sequence_tokens) == (5e-6, 2, 4096)  # Table 8
    assert (reasoning.learning_rate, reasoning.epochs, reasoning.sequence_tokens) == (8e-5, 4, 32768)
    assert (general.warmup_share, reasoning.warmup_share, reasoning.weight_decay) == (0.03, 0.1, 0)


def test_long_rows_have_the_loss_and_gradient_of_short_ones(monkeypatch):
    chats = [render_chat(tiny_tokenizer(), messages) for messages in SUMS[:7]]
    rows = [[0, 1, 2, 3], [4], [5, 6]]
    expected, slopes = gradients(chat_batch(chats, rows, 60), None)
    monkeypatch.setattr(training.update, "LONG_ROW", 20)
    found, others = gradients(chat_batch(chats, rows, 60), 2)
    assert found == pytest.approx(expected, rel=1e-12)
    for name, slope in others.items():
        torch.testing.assert_close(slope, slopes[name], rtol=1e-9, atol=1e-14)


def test_reading_by_documents_never_makes_more_tokens_than_the_rows_have():
    model = Decoder(tiny_config()).init_weights(0).double()
    ids = torch.arange(60).view(3, 20) % 20
    documents = torch.tensor([[0] * 13 + [1] * 2 + [2] * 5, [0] * 4 + [1] * 4 + [-1] * 12, [3] * 20])
    sizes = []

    def read(rows, lengths):
        assert rows.numel() <= 60 and lengths.max() == rows.shape[1]
        sizes.append(rows.numel())
        return model(rows)

    positions = torch.tensor([[*range(13), 0, 1, *range(5)], [*range(4), *range(4), *[0] * 12], [*range(20)]])
    expected = model(ids, positions=positions, document_ids=documents)
    found = by_documents(read, ids, documents)
    keep = documents >= 0
    torch.testing.assert_close(found[keep], expected[keep], rtol=1e-12, atol=1e-13)
    assert sizes == [20, 40] and found[~keep].abs().sum() == 0
