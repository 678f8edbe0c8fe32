"""SIGKILL inside a rollout, inside the optimizer's step, inside a save: the same bytes, and each prompt once."""

import os
import signal
from dataclasses import replace

import pyarrow.parquet as parquet
import pytest
import torch

import training.checkpoint
import training.rollout
import training.rollout_records
from tests.training.post_training_models import killed, tiny_folder, write_rows
from tests.training.test_grpo import SETTINGS, says_seven
from training.grpo import grpo
from training.prompts import question_at

STEPS = 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    prompts = write_rows(folder / "p.jsonl", [{"prompt": f"{n} =", "answer": str(n)} for n in range(7)])
    return tiny_folder(folder / "start"), prompts


def run(files, folder):
    settings = replace(SETTINGS, steps=STEPS, checkpoint_every=1, updates=2)
    return grpo(*files, says_seven, folder, settings)


def dying(files, folder, place, name, call, after):
    """A run that kills itself at the `call`-th call of place.name: before it, or just `after` it."""

    def work():
        original, left = getattr(place, name), [call]

        def dies(*given, **more):
            left[0] -= 1
            if left[0] == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = original(*given, **more)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(place, name, dies)
        run(files, folder)

    return work


def test_killed_in_rollout_update_and_save(files, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    run(files, whole)
    moments = [
        (training.rollout, "choose_tokens", 3, False),  # in the middle of a rollout
        (torch.optim.AdamW, "step", 1, True),  # the weights have moved and nothing is saved
        (
            training.checkpoint,
            "save_file",
            2,
            False,
        ),  # the weights of a checkpoint are there, the moments not
        (training.rollout, "choose_tokens", 2, True),
        (torch.optim.AdamW, "step", 2, True),  # between the two updates of a step and its end
        (training.checkpoint, "write_json", 1, True),  # all is written and not yet renamed
        (training.rollout_records, "replacing", 1, False),  # before a record
        (os, "replace", 2, True),  # at some rename
    ]
    for place, name, call, after in moments:
        died = killed(dying(files, torn, place, name, call, after))
        assert died == -signal.SIGKILL, f"{name} was not reached"
    run(files, torn)
    names = ["model/model.safetensors", "metrics.jsonl", "result.json"]
    names += [f"rollouts/step-{n}.parquet" for n in range(1, STEPS + 1)]
    assert [n for n in names if (whole / n).read_bytes() != (torn / n).read_bytes()] == []
    asked = []
    for number in range(1, STEPS + 1):
        table = parquet.read_table(torn / "rollouts" / f"step-{number}.parquet").to_pydict()
        asked += table["prompt"][:: SETTINGS.replicas]
    assert asked == list(range(STEPS * SETTINGS.prompts_per_step)), "no prompt is skipped or repeated"
    places = [question_at(at, 7, SETTINGS.seed) for at in asked]
    assert sorted(places[:7]) == list(range(7))
