"""A run that is stopped, killed or starved at any moment continues with the same bits."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curation.errors import DataError, MachineError, RecipeError
from tests.training.test_loop import CONFIG, SETTINGS, assert_same_run, evaluate, make_order
from training import checkpoint, loop, update
from training.checkpoint import list_checkpoints, read_state
from training.loop import train
from training.model import Decoder
from training.stop_requests import TrainingStopped

MICRO = replace(SETTINGS, micro_batch_sequences=1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    train(CONFIG, make_order(), MICRO, out, evaluate=evaluate)
    return out


def run_into(out: Path) -> None:
    train(CONFIG, make_order(), MICRO, out, evaluate=evaluate)


# ---- SIGKILL, from inside, at a stated moment


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_micro_batch(out: Path, number: int) -> None:
    """Inside the forward pass of the `number`-th micro-batch of this attempt: some gradients are there."""
    real, seen = update.batch_loss, []

    def deadly(*given: Any, **named: Any) -> Any:
        seen.append(1)
        return _kill() if len(seen) == number else real(*given, **named)

    update.batch_loss = deadly
    run_into(out)


def die_in_backward(out: Path, number: int) -> None:
    """Inside a backward pass, when one weight of the first layer has its gradient and others have not."""
    real, seen = loop.Decoder.init_weights, []

    def hooked(model: Decoder, seed: int) -> Decoder:
        model.layers[0].mlp.up_proj.weight.register_post_accumulate_grad_hook(arrived)
        return real(model, seed)

    def arrived(_: Any) -> None:
        seen.append(1)
        if len(seen) == number:
            _kill()

    loop.Decoder.init_weights = hooked
    run_into(out)


def die_while_saving(out: Path, number: int) -> None:
    """Between the files of a checkpoint; a file is half there."""
    real, seen = checkpoint.save_file, []

    def deadly(tensors: Any, path: Path) -> None:
        real(tensors, path)
        seen.append(1)
        if len(seen) == number:
            os.truncate(path, 100)
            _kill()

    checkpoint.save_file = deadly
    run_into(out)


def die_before_renaming(out: Path, number: int) -> None:
    """A checkpoint is written but has not its name yet."""
    real, seen = checkpoint.write_json, []

    def deadly(path: Path, value: Any) -> None:
        real(path, value)
        seen.append(1)
        if len(seen) == number:
            _kill()

    checkpoint.write_json = deadly
    run_into(out)


def die_in_evaluation(out: Path, number: int) -> None:
    def deadly(model: Decoder, step: int) -> dict[str, float]:
        return _kill() if step >= number else evaluate(model, step)

    train(CONFIG, make_order(), MICRO, out, evaluate=deadly)


def test_sigkill_at_stated_moments_changes_no_bit(undisturbed, tmp_path):
    """One run is killed at each moment in turn, and reaches the border between its phases by itself."""
    chance, out = random.Random(5), tmp_path / "out"
    phase_border = 13  # update 14 reads sequences 52 ... 55 of two phases
    moments: list[tuple[Callable[[Path, int], None], int]] = [
        (die_in_backward, chance.randint(2, 20)),
        (die_while_saving, 3),  # the weights of step 5; those of step 0 are two files
        (die_before_renaming, 2),
        (die_in_evaluation, 1),  # of step 8
        (die_in_micro_batch, 4 * 5 + chance.randint(1, 4)),
        (die_in_micro_batch, 4 * (phase_border - 10) + 3),
        (die_while_saving, 5),  # with a mean of the weights
    ]
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.training.test_interruptions"])
    reached = []
    for function, number in moments:
        child = processes.Process(target=function, args=(out, number))
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL, f"{function.__name__} has not killed the run"
        saved = list_checkpoints(out / "resume") | list_checkpoints(out / "checkpoints")
        for folder in saved.values():
            checkpoint.load_checkpoint_model(folder)  # whatever is visible is whole
        reached.append(max(saved, default=-1))
    assert reached == sorted(reached) and reached[-1] >= 12, reached
    run_into(out)
    assert_same_run(out, undisturbed)


# ---- signals that ask


@pytest.fixture(autouse=True)
def usual_interrupts():
    """Ctrl-C as in a terminal: a shell starts its background jobs with SIGINT ignored, and Python keeps that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "every"), [(signal.SIGTERM, 5), (signal.SIGINT, 0)])
def test_a_signal_ends_the_run_after_the_update_with_a_checkpoint(
    undisturbed, tmp_path, monkeypatch, number, every
):
    out, real = tmp_path / "out", loop.update
    settings, before = replace(MICRO, resume_every=every), signal.getsignal(number)
    for stop in (7, 16):

        def signalled(run, batch, settings, stop=stop):
            if run.step == stop:
                os.kill(os.getpid(), number)
            return real(run, batch, settings)

        monkeypatch.setattr(loop, "update", signalled)
        with pytest.raises(TrainingStopped, match=rf"has saved step {stop + 1} of 24") as stopped:
            train(CONFIG, make_order(), settings, out, evaluate=evaluate)
        assert stopped.value.exit_code == 75
        assert signal.getsignal(number) is before, "the handlers are put back"
        assert read_state(out / f"resume/step-{stop + 1}").sequences == 4 * (stop + 1)
    monkeypatch.setattr(loop, "update", real)
    train(CONFIG, make_order(), settings, out, evaluate=evaluate)
    assert_same_run(out, undisturbed)


def test_a_second_signal_ends_it_at_once(tmp_path, monkeypatch):
    def impatient(run, batch, settings):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was swallowed")

    monkeypatch.setattr(loop, "update", impatient)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, make_order(), MICRO, tmp_path / "out")


# ---- what is kept


def test_the_last_states_are_kept_and_the_named_ones_for_ever(undisturbed, tmp_path, monkeypatch):
    out, real = tmp_path / "out", loop.update

    def stopping(run, batch, settings):
        if run.step == 21:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, batch, settings)

    monkeypatch.setattr(loop, "update", stopping)
    with pytest.raises(TrainingStopped):
        train(CONFIG, make_order(), replace(MICRO, keep=3), out, evaluate=evaluate)
    assert list(list_checkpoints(out / "checkpoints")) == [0, 12]
    assert list(list_checkpoints(out / "resume")) == [15, 20, 22]
    monkeypatch.setattr(loop, "update", real)
    # The newest is broken on the disk: the message says to delete it, and the one before serves as well.
    os.truncate(out / "resume/step-22/optimizer.safetensors", 100)
    with pytest.raises(DataError, match="Delete this checkpoint; the run continues from the one before"):
        train(CONFIG, make_order(), MICRO, out, evaluate=evaluate)
    shutil.rmtree(out / "resume/step-22")
    train(CONFIG, make_order(), replace(MICRO, keep=2), out, evaluate=evaluate)
    assert_same_run(out, undisturbed)


def test_a_checkpoint_of_another_tokenizer_is_refused(undisturbed, tmp_path):
    def order_of(tokenizer: str):
        order = make_order()
        order.sources = {name: replace(s, tokenizer=tokenizer) for name, s in order.sources.items()}
        return order

    few = replace(MICRO, steps=4, checkpoint_steps=(), evaluate_steps=())
    first = train(CONFIG, order_of("one"), few, tmp_path / "out").final
    with pytest.raises(RecipeError, match="another tokenizer"):
        train(CONFIG, order_of("two"), few, tmp_path / "other", init_from=first)
    with pytest.raises(RecipeError, match="tokenizer has changed"):
        train(CONFIG, order_of("two"), few, tmp_path / "out")


def test_a_really_full_disk_leaves_the_checkpoint_before(undisturbed, tmp_path, monkeypatch):
    """On a small file system of its own, filled before the second state is saved."""
    out, ballast = tmp_path / "disk", tmp_path / "disk" / "ballast"
    out.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(out)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let the test mount a small file system")
    real = loop.update

    def filling(run, batch, settings):
        if run.step == 9:
            with ballast.open("wb") as handle:
                free = os.statvfs(out).f_bavail * os.statvfs(out).f_frsize
                handle.write(bytes(free - (60 << 10)))
        return real(run, batch, settings)

    try:
        monkeypatch.setattr(loop, "update", filling)
        with pytest.raises(MachineError, match=r"The disk is full .*Free some space"):
            train(CONFIG, make_order(), MICRO, out / "run", evaluate=evaluate)
        assert list(list_checkpoints(out / "run/resume")) == [5]
        monkeypatch.setattr(loop, "update", real)
        ballast.unlink()
        train(CONFIG, make_order(), MICRO, out / "run", evaluate=evaluate)
        assert_same_run(out / "run", undisturbed)
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_free_settings_may_change_when_a_run_goes_on(undisturbed, tmp_path):
    """Recomputing activations keeps every bit, so it may come and go."""
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    shutil.rmtree(out / "checkpoints/step-24")
    (out / "result.json").unlink()
    train(CONFIG, make_order(), replace(MICRO, recompute_every=1, keep=2), out, evaluate=evaluate)
    assert_same_run(out, undisturbed)
