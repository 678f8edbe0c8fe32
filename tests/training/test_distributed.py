"""Several ranks train what one process trains: same samples, same gradients, same files, and they end together."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from curation.errors import RecipeError
from tests.training.ranks import on_ranks
from tests.training.test_loop import CONFIG, SETTINGS, assert_same_run, evaluate, make_order
from training import checkpoint, loop, update
from training.checkpoint import list_checkpoints
from training.distributed import Ranks, check_ranks
from training.gradient_sum import GradientSum
from training.loop import train
from training.model import Decoder
from training.optimizer import build_optimizer, moments, set_rate
from training.order import DataOrder
from training.run_log import read_rows
from training.sharding import ShardedSum, like, whole
from training.update import accumulate_gradients

SHORT = replace(
    SETTINGS, steps=10, checkpoint_steps=(4,), evaluate_steps=(10,), resume_every=2, schedule="constant"
)


class Noted(DataOrder):
    """The data order, which writes down which sequences each rank asks for."""

    notes: Path

    def batch(self, first, count):
        with (self.notes / f"{os.getpid()}.txt").open("a") as handle:
            handle.writelines(f"{index}\n" for index in range(first, first + count))
        return super().batch(first, count)


def noted_order(notes: Path) -> Noted:
    plain = make_order()
    order = Noted(plain.schedule, plain.sources, plain.sequence_tokens)
    order.notes = notes
    notes.mkdir(parents=True, exist_ok=True)
    return order


def read_notes(notes: Path) -> list[int]:
    return sorted(int(line) for file in notes.iterdir() for line in file.read_text().split())


# ---- what runs on each rank


def gradients_of(parallel: str, micro: int | None) -> tuple[float, list[torch.Tensor]]:
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    model = Decoder(replace(CONFIG, tied=parallel == "ddp")).init_weights(1).double()
    if parallel == "ddp":
        gradients = GradientSum(model.parameters(), bucket_bytes=20_000)
        assert len(gradients.buckets) > 3
    else:
        gradients = ShardedSum(model, ranks, "float32")
        assert model._fused_shape(torch.zeros(1, 2, 32), None) is None
    batch = make_order().batch(*ranks.share(8, 8))
    loss = accumulate_gradients(model, batch, micro_batch_sequences=micro, ranks=ranks, gradients=gradients)
    return loss.item(), [whole(p.grad).clone() for p in model.parameters()]


def both_gradients() -> list:
    found = [(*gradients_of(p, m), p == "ddp") for p in ("ddp", "fsdp") for m in (None, 1)]
    return [(loss, [g.numpy() for g in gradients], tied) for loss, gradients, tied in found]


def train_on(out: Path, settings, notes: Path, stop_at: int | None = None, stopper: int = 0):
    """Train; rank `stopper` gets a SIGTERM while it makes update `stop_at`."""
    if stop_at is not None and dist.get_rank() == stopper:
        real = loop.update

        def interrupted(run, batch, settings):
            if run.step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(run, batch, settings)

        loop.update = interrupted
    return train(CONFIG, noted_order(notes), settings, out, evaluate=evaluate).steps


def train_with_full_disk(out: Path, settings, notes: Path):
    def full(*_):
        raise OSError(28, "No space left on device")

    if dist.get_rank() == 0:
        checkpoint.save_file = full
    return train_on(out, settings, notes)


def train_with_infinite_gain(out: Path, settings, notes: Path):
    """Rank 1 computes its third part with a broken model."""
    real, calls = update.accumulate_gradients, []

    def broken(model, batch, **options):
        calls.append(1)
        if dist.get_rank() == 1 and len(calls) == 3:
            with torch.no_grad():
                model.norm.weight[0] = float("inf")
        return real(model, batch, **options)

    update.accumulate_gradients = broken
    return train_on(out, settings, notes)


def muon_steps(ranks: Ranks | None) -> list[torch.Tensor]:
    """The weights after three steps by given gradients, and what Muon remembers."""
    model = Decoder(replace(CONFIG, ffn_dim=50)).init_weights(1).double()
    if ranks is not None:
        ShardedSum(model, ranks, "float32")
    optimizer = build_optimizer("muon", model, weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-8)
    generator = torch.Generator().manual_seed(3)
    for step in range(3):
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.grad = like(parameter, drawn)
        set_rate(optimizer, 0.01 * (step + 1))
        optimizer.step()
    return [whole(value) for value in [*model.parameters(), *moments(model, optimizer).values()]]


def sharded_muon_steps() -> list:
    return [tensor.numpy() for tensor in muon_steps(Ranks(dist.get_rank(), dist.get_world_size()))]


# ---- the tests


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "out"
    train(CONFIG, make_order(), SHORT, out, evaluate=evaluate)
    return out


@pytest.mark.parametrize("size", [2, 4])
def test_gradients_are_those_of_the_whole_update(tmp_path, size):
    """In float64, with tied and untied output weights, accumulated or not, copied or sharded."""
    answers = on_ranks(size, tmp_path, both_gradients)
    for tied in (True, False):
        model = Decoder(replace(CONFIG, tied=tied)).init_weights(1).double()
        wanted = accumulate_gradients(model, make_order().batch(8, 8)).item()
        for rank in answers:
            for loss, gradients, is_tied in rank:
                if is_tied != tied:
                    continue
                assert loss == pytest.approx(wanted, rel=1e-13)
                for gradient, parameter in zip(gradients, model.parameters(), strict=True):
                    error = (torch.from_numpy(gradient) - parameter.grad).norm() / parameter.grad.norm()
                    assert error < 1e-12


@pytest.mark.parametrize(("size", "parallel", "recompute"), [(2, "ddp", None), (4, "fsdp", 1)])
def test_ranks_train_what_one_process_trains(alone, tmp_path, size, parallel, recompute):
    settings = replace(SHORT, parallel=parallel, recompute_every=recompute)
    answers = on_ranks(size, tmp_path, train_on, tmp_path / "out", settings, tmp_path / "notes")
    assert answers == [10] * size
    assert read_notes(tmp_path / "notes") == list(range(40)), "each sequence is read once, by one rank"
    ours, wanted = (read_rows(out / "metrics.jsonl") for out in (tmp_path / "out", alone))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in wanted], rel=1e-4)
    assert [row["grad_norm"] for row in ours] == pytest.approx([r["grad_norm"] for r in wanted], rel=1e-3)
    ours, wanted = (read_rows(out / "evaluations.jsonl") for out in (tmp_path / "out", alone))
    assert ours[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=1e-4)
    for file in ("model", "optimizer", "averaged"):
        ours, wanted = (
            load_file(out / f"checkpoints/step-10/{file}.safetensors") for out in (tmp_path / "out", alone)
        )
        assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {
            n: (t.shape, t.dtype) for n, t in wanted.items()
        }
        if file != "optimizer":
            for name in ours:
                torch.testing.assert_close(ours[name], wanted[name], rtol=1e-3, atol=1e-4)


def test_muon_moves_sharded_matrices_as_whole_ones(tmp_path):
    """From equal gradients, in float64, with a matrix whose rows the three ranks cannot share evenly."""
    wanted = muon_steps(None)
    for rank in on_ranks(3, tmp_path, sharded_muon_steps):
        for ours, other in zip(rank, wanted, strict=True):
            assert (torch.from_numpy(ours) - other).norm() <= 1e-12 * other.norm()


def test_a_run_with_muon_moves_from_shards_to_one_process(tmp_path):
    settings = replace(SHORT, parallel="fsdp", optimizer="muon", average_from=None)
    out, notes = tmp_path / "out", tmp_path / "notes"
    answers = on_ranks(2, tmp_path, train_on, out, settings, notes, 5, 1)
    assert all(kind == "TrainingStopped" for kind, _ in answers)
    train(CONFIG, make_order(), settings, out, evaluate=evaluate)
    train(CONFIG, make_order(), settings, tmp_path / "alone", evaluate=evaluate)
    ours, wanted = (read_rows(where / "metrics.jsonl") for where in (out, tmp_path / "alone"))
    # Newton and Schulz's products are in bfloat16, so a rounded sum of gradients moves more than with AdamW.
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in wanted], rel=1e-3)


def test_shards_in_bfloat16_train_much_the_same(tmp_path):
    narrow = replace(SHORT, precision="bfloat16", parallel="fsdp", micro_batch_sequences=1)
    train(CONFIG, make_order(), narrow, tmp_path / "alone", evaluate=evaluate)
    on_ranks(2, tmp_path, train_on, tmp_path / "out", narrow, tmp_path / "notes")
    ours, wanted = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("out", "alone"))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in wanted], rel=0.02)
    saved = load_file(tmp_path / "out/checkpoints/step-10/model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_a_run_moves_between_one_process_copies_and_shards(alone, tmp_path):
    """Stopped three times by a signal to one rank, and continued each time by another number of ranks."""
    out = tmp_path / "out"
    stops = [(4, "ddp", 3, 2), (2, "fsdp", 5, 1), (4, "fsdp", 8, 3)]
    for size, parallel, stop_at, stopper in stops:
        settings, notes = replace(SHORT, parallel=parallel), tmp_path / f"notes-{stop_at}"
        answers = on_ranks(size, tmp_path, train_on, out, settings, notes, stop_at, stopper)
        for kind, text in answers:
            assert kind == "TrainingStopped" and f"has saved step {stop_at + 1} of 10" in text
    train(CONFIG, noted_order(tmp_path / "notes-last"), SHORT, out, evaluate=evaluate)
    read = [index for notes in sorted(tmp_path.glob("notes-*")) for index in read_notes(notes)]
    assert sorted(read) == list(range(40)), "nothing is read twice, nothing is left out"
    ours, wanted = (read_rows(where / "metrics.jsonl") for where in (out, alone))
    assert [row["step"] for row in ours] == list(range(1, 11))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in wanted], rel=1e-4)


@pytest.mark.parametrize(("size", "parallel"), [(4, "ddp"), (2, "fsdp")])
def test_the_same_ranks_continue_with_the_same_bits(tmp_path, size, parallel):
    settings = replace(SHORT, parallel=parallel)
    for name, stops in {"whole": [None], "stopped": [4, None]}.items():
        for stop_at in stops:
            on_ranks(size, tmp_path, train_on, tmp_path / name, settings, tmp_path / f"{name} notes", stop_at)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_batch_that_ranks_cannot_share_is_refused_before_training(tmp_path):
    answers = on_ranks(3, tmp_path, train_on, tmp_path / "out", SHORT, tmp_path / "notes")
    for kind, text in answers:
        assert kind == "RecipeError" and "3 ranks cannot share an update of 4 sequences evenly" in text
        assert "Start 2 ranks" in text
    assert not (tmp_path / "out").exists()
    with pytest.raises(RecipeError):
        check_ranks(Ranks(0, 8), 4)


def test_all_ranks_end_with_the_sentence_of_a_full_disk(alone, tmp_path):
    arguments = (tmp_path / "out", SHORT, tmp_path / "notes")
    for kind, text in on_ranks(2, tmp_path, train_with_full_disk, *arguments):
        assert kind == "MachineError" and "The disk is full" in text
    assert not list_checkpoints(tmp_path / "out/resume")


def test_all_ranks_refuse_an_update_that_one_of_them_made_infinite(tmp_path):
    arguments = (tmp_path / "out", SHORT, tmp_path / "notes")
    for kind, text in on_ranks(2, tmp_path, train_with_infinite_gain, *arguments):
        assert kind == "DataError" and "at step 3" in text
    assert [row["step"] for row in read_rows(tmp_path / "out/metrics.jsonl")] == [1, 2]
