"""Several ranks reinforce and fine-tune what one process does: same answers, same gradients, same files."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import training.grpo_run
from curation.errors import DataError
from tests.training.post_training_models import tiny_config, tiny_folder, write_rows
from tests.training.ranks import on_ranks
from tests.training.test_grpo import SETTINGS, a_step, says_seven
from tests.training.test_sft import SETTINGS as SFT
from tests.training.test_sft import SUMS
from training.advantages import LeadSettings
from training.distributed import Ranks
from training.gradient_sum import GradientSum
from training.grpo import grpo
from training.grpo_settings import ObjectiveSettings
from training.grpo_step import add_gradient
from training.model import Decoder
from training.replay import replay
from training.run_log import read_rows
from training.sft import sft

OBJECTIVE = ObjectiveSettings(lead=LeadSettings(), kl_coefficient=0.1, normalisation="dapo")
GRPO = replace(
    SETTINGS,
    steps=4,
    prompts_per_step=4,
    updates=2,
    objective=OBJECTIVE,
    checkpoint_every=1,
    learning_rate=1e-3,
)
TUNING = replace(
    SFT, epochs=1, batch_sequences=4
)  # 25 chats in 13 rows: rank 1 finds none in the last update


def gradient(ranks: Ranks | None = None):
    """Loss, gradient and tokens of an update in float64, off the policy, with a reference."""
    model, rollouts, judged, weights = a_step(OBJECTIVE)
    reference = Decoder(tiny_config()).init_weights(4).double()
    old = {i: torch.tensor(r.logprobs).double() + 0.2 * (i % 3 - 1) for i, r in enumerate(rollouts)}
    more = {} if ranks is None else {"ranks": ranks, "gradients": GradientSum(model.parameters(), 5_000)}
    stats = add_gradient(
        model, rollouts, judged.advantages.reshape(-1), weights, OBJECTIVE, temperature=0.8, micro_batch=2,
        reference=reference, old=old, **more,
    )  # fmt: skip
    found = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    return stats.loss, stats.tokens, stats.kl, stats.entropy, found.numpy()


def runs(folder: Path):
    """A whole run; one in which rank 1 fails in its third step, which then goes on; one that stops for another number
    of ranks; a step done again; fine-tuning."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    files = (folder / "start", folder / "p.jsonl", says_seven)
    grpo(*files, folder / "whole", GRPO, held_out=folder / "h.jsonl")
    judge, calls, said = training.grpo_run.score_rollouts, [], []

    def fails(*given):
        calls.append(1)
        if ranks.rank == 1 and len(calls) == 3:
            raise DataError("The judge is asleep", where="prompt 9")
        return judge(*given)

    for name in ("torn", "moved"):
        training.grpo_run.score_rollouts = fails
        calls.clear()
        try:
            grpo(*files, folder / name, GRPO, held_out=folder / "h.jsonl")
        except DataError as error:
            said.append(str(error))
        training.grpo_run.score_rollouts = judge
    grpo(*files, folder / "torn", GRPO, held_out=folder / "h.jsonl")
    again = replay(folder / "whole", 3, reward=says_seven)
    tuned = sft(folder / "start", folder / "c.jsonl", folder / "tuned", TUNING)
    return gradient(ranks), said, (again.same, again.loss, again.ranks), tuned.steps


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    tiny_folder(folder / "start")
    write_rows(folder / "p.jsonl", [{"prompt": f"{n} =", "answer": str(n)} for n in range(7)])
    write_rows(folder / "h.jsonl", [{"prompt": f"{n} + =", "answer": "7"} for n in range(5)])
    write_rows(folder / "c.jsonl", [{"messages": messages} for messages in SUMS])
    answers = on_ranks(2, folder / "meeting", runs, folder)
    grpo(
        folder / "start", folder / "p.jsonl", says_seven, folder / "alone", GRPO, held_out=folder / "h.jsonl"
    )
    return folder, answers


def test_the_gradient_is_that_of_one_process(done):
    loss, tokens, kl, entropy, expected = gradient()
    for found, _, _, _ in done[1]:
        assert found[:4] == pytest.approx((loss, tokens, kl, entropy), rel=1e-12)
        error = torch.from_numpy(found[4] - expected).norm() / torch.from_numpy(expected).norm()
        assert error < 1e-12


def records(out: Path):
    return [parquet.read_table(out / "rollouts" / f"step-{n}.parquet").to_pydict() for n in range(1, 5)]


def test_ranks_sample_judge_and_train_what_one_process_does(done):
    folder, _ = done
    for ours, theirs in zip(records(folder / "whole"), records(folder / "alone"), strict=True):
        assert len(ours["prompt"]) == GRPO.prompts_per_step * GRPO.replicas
        for column in (
            "question",
            "prompt",
            "replica",
            "completion_ids",
            "text",
            "reward",
            "shaped",
            "trained",
        ):
            assert ours[column] == theirs[column], column
        assert ours["weight"] == pytest.approx(theirs["weight"], rel=1e-12)
        assert ours["advantage"] == pytest.approx(theirs["advantage"], rel=1e-12)
    ours, theirs = (read_rows(folder / name / "metrics.jsonl") for name in ("whole", "alone"))
    for row, other in zip(ours, theirs, strict=True):
        assert row.pop("ranks") == 2 and row == pytest.approx(other, rel=1e-3, abs=1e-6)
    ours, theirs = (read_rows(folder / name / "evaluations.jsonl") for name in ("whole", "alone"))
    assert ours == theirs and len(ours) == 2
    ours, theirs = (load_file(folder / name / "model/model.safetensors") for name in ("whole", "alone"))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_a_rank_that_fails_ends_all_with_its_sentence_and_the_run_goes_on(done):
    folder, answers = done
    for _, said, _, _ in answers:
        assert len(said) == 2 and all("The judge is asleep" in text for text in said)
    names = ["model/model.safetensors", "metrics.jsonl", "evaluations.jsonl", "result.json"]
    names += [f"rollouts/step-{n}.parquet" for n in range(1, 5)]
    assert [
        n for n in names if (folder / "whole" / n).read_bytes() != (folder / "torn" / n).read_bytes()
    ] == []


def test_a_run_moves_from_ranks_to_one_process(done, tmp_path):
    folder, _ = done
    grpo(
        folder / "start", folder / "p.jsonl", says_seven, folder / "moved", GRPO, held_out=folder / "h.jsonl"
    )
    rows = read_rows(folder / "moved" / "metrics.jsonl")
    assert [(row["step"], row.get("ranks")) for row in rows] == [(1, 2), (2, 2), (3, None), (4, None)]
    asked = [prompt for table in records(folder / "moved") for prompt in table["prompt"][:: GRPO.replicas]]
    assert asked == list(range(16)), "no prompt is skipped or repeated"


def test_a_step_of_ranks_done_again(done):
    folder, answers = done
    row = read_rows(folder / "whole" / "metrics.jsonl")[2]
    for _, _, again, _ in answers:
        assert again == (True, row["loss"], 2), "bit for bit by as many ranks"
    alone = replay(folder / "whole", 3, reward=says_seven)
    assert alone.same and (alone.ranks, alone.ranks_now) == (2, 1), "up to rounding by another number"
    assert alone.loss == pytest.approx(row["loss"], rel=1e-3, abs=1e-6)
    assert not replace(alone, loss=row["loss"] + 0.01).same


def test_ranks_fine_tune_what_one_process_does(done, tmp_path):
    folder, answers = done
    alone = sft(folder / "start", folder / "c.jsonl", tmp_path / "alone", TUNING)
    assert {steps for _, _, _, steps in answers} == {alone.steps}
    ours, theirs = (read_rows(out / "metrics.jsonl") for out in (folder / "tuned", tmp_path / "alone"))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-4)
    ours, theirs = (
        load_file(out / "model/model.safetensors") for out in (folder / "tuned", tmp_path / "alone")
    )
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def refused(folder: Path):
    grpo(folder / "start", folder / "p.jsonl", says_seven, folder / "odd", replace(GRPO, prompts_per_step=3))


def test_prompts_that_ranks_cannot_share_are_refused(done, tmp_path):
    for kind, text in on_ranks(2, tmp_path, refused, done[0]):
        assert kind == "RecipeError" and "2 ranks cannot share an update of 3 prompts evenly" in text
    assert not (done[0] / "odd").exists()
