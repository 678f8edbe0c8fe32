"""The training loop: from a data order and settings to checkpoints, a log and a final model."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from curation.atomic import hash_file, hash_value, read_json, write_json, writing_to
from curation.errors import MachineError, RecipeError
from curation.progress import progress
from training.checkpoint import (
    OPTIMIZER,
    STATE,
    TrainingState,
    describe_run,
    list_checkpoints,
    load_checkpoint_model,
    refuse_other_settings,
    remove_checkpoint,
    restore_checkpoint,
    write_checkpoint,
)
from training.lessons import open_lessons
from training.model import Decoder, ModelConfig
from training.optimizer import build_adamw
from training.order import DataOrder
from training.run_log import RunLog
from training.settings import TrainSettings, check_settings, deciding_settings
from training.update import Run, update

__all__ = ["TrainResult", "TrainSettings", "load_checkpoint_model", "train"]

Evaluate = Callable[[Decoder, int], dict[str, Any]]


@dataclass(frozen=True)
class TrainResult:
    """What a finished run has made.

    final   : folder of the last checkpoint
    tokens  : tokens read; flops : operations to train on them, see ModelConfig.flops_per_token
    seconds : wall-clock time of the updates, over all attempts, without evaluations and checkpoints
    """

    final: Path
    steps: int
    tokens: int
    flops: float
    seconds: float


def train(
    model_config: ModelConfig,
    order: DataOrder,
    settings: TrainSettings,
    out: Path | str,
    *,
    evaluate: Evaluate | None = None,
    init_from: Path | None = None,
    progress_label: str | None = None,
) -> TrainResult:
    """Train a decoder on the first steps * batch_sequences sequences of `order`, into the folder `out`.

    evaluate  : called as evaluate(model, step) after each of `evaluate_steps`; its values go into
                evaluations.jsonl. It must leave the model as it is.
    init_from : a checkpoint or Hugging Face folder to start from, instead of weights drawn by settings.seed

    A finished `out` is returned at once. A killed run, called again in the same way, goes on from its last
    checkpoint, and ends with the same bits as if it had not been killed (on the same machine, with the same
    torch and number of threads). Writes checkpoints/step-N, metrics.jsonl (a row per update),
    evaluations.jsonl and, last, result.json.

    The loss is the sum over all labels of the update, divided by their number: it does not depend on
    micro-batches. An update whose loss or gradient is not finite is not made, but reported as a DataError.
    Raises RecipeError for settings that cannot be, or that are not those that `out` was begun with.
    """
    out = Path(out)
    check_settings(settings, model_config, order)
    start = start_hash(init_from)
    described = describe_run(model_config, order.fingerprint(), deciding_settings(settings), start)
    with only_process_in(out):
        _claim(out, described)
        if (out / "result.json").exists():
            return _read_result(out)
        run = _begin(out, model_config, settings, described, init_from)
        if settings.distillation:
            run.lessons = open_lessons(
                settings.distillation,
                order,
                sequences=settings.steps * settings.batch_sequences,
                vocabulary=model_config.vocab_size,
                folder=out,
                device=choose_device(settings.device),
            )
        log = RunLog(out, run.step)
        label = progress_label or f"training {out.name}"
        todo = (settings.steps - run.step) * settings.tokens_per_step
        with closing(log), progress(label, todo, "tokens") as task:
            if run.step == 0:
                _after_update(run, settings, out, described, evaluate, log)
            while run.step < settings.steps:
                started = time.perf_counter()
                batch = order.batch(run.step * settings.batch_sequences, settings.batch_sequences)
                row = update(run, batch, settings)
                seconds = time.perf_counter() - started
                log.metrics(row | {"tokens_per_second": round(settings.tokens_per_step / seconds, 1)})
                _after_update(run, settings, out, described, evaluate, log)
                task.advance(settings.tokens_per_step)
        return _finish(out, model_config, settings, log)


def _after_update(
    run: Run,
    settings: TrainSettings,
    out: Path,
    described: dict[str, Any],
    evaluate: Evaluate | None,
    log: RunLog,
) -> None:
    """Evaluate and write checkpoints, where this step is one for it.

    The order matters: when a checkpoint is there, so are all rows of the logs up to its step.
    """
    if evaluate is not None and run.step in settings.evaluate_steps:
        with torch.no_grad(), _mean_weights(run):
            log.evaluation({"step": run.step, **evaluate(run.model, run.step)})
    keep = run.step in settings.checkpoint_steps or run.step == settings.steps
    resume = settings.resume_every > 0 and run.step % settings.resume_every == 0 and run.step > 0
    if not keep and not resume:
        return
    log.flush()
    averaged = run.mean.count if run.mean else 0
    state = TrainingState(run.step, run.step * settings.batch_sequences, averaged, described)
    folder = out / ("checkpoints" if keep else "resume") / f"step-{run.step}"
    write_checkpoint(folder, state, run.model, run.optimizer, run.mean)
    for step, older in list_checkpoints(out / "resume").items():
        if step != run.step or keep:
            remove_checkpoint(older)


def _begin(
    out: Path,
    model_config: ModelConfig,
    settings: TrainSettings,
    described: dict[str, Any],
    init_from: Path | None,
) -> Run:
    """The run as its last checkpoint left it, or before its first update."""
    device = choose_device(settings.device)
    saved = list_checkpoints(out / "resume") | list_checkpoints(out / "checkpoints")
    model = Decoder(model_config)
    if not saved and init_from is None:
        model.init_weights(settings.seed)
    elif not saved and init_from is not None:
        _start_from(model, init_from)
    model.to(device)
    optimizer = build_adamw(
        model,
        weight_decay=settings.weight_decay,
        beta1=settings.beta1,
        beta2=settings.beta2,
        epsilon=settings.epsilon,
    )
    if not saved:
        return Run(model, optimizer, None, 0)
    state, mean = restore_checkpoint(saved[max(saved)], described, model, optimizer)
    return Run(model, optimizer, mean, state.step)


def _finish(out: Path, model_config: ModelConfig, settings: TrainSettings, log: RunLog) -> TrainResult:
    # The last checkpoint is in checkpoints/ by now, so nothing reads these any more, half deleted or not.
    shutil.rmtree(out / "resume", ignore_errors=True)
    tokens = settings.steps * settings.tokens_per_step
    seconds = sum(settings.tokens_per_step / max(row["tokens_per_second"], 0.1) for row in log.rows())
    record = {
        "final": f"checkpoints/step-{settings.steps}",
        "steps": settings.steps,
        "tokens": tokens,
        "flops": tokens * model_config.flops_per_token(settings.sequence_tokens),
        "seconds": round(seconds, 3),
    }
    write_json(out / "result.json", record)
    return _read_result(out)


def _read_result(out: Path) -> TrainResult:
    record = read_json(out / "result.json")
    return TrainResult(**(record | {"final": out / record["final"]}))


@contextmanager
def only_process_in(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process, however it ends."""
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / ".lock").open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MachineError(
                "Another process is training into this folder",
                where=str(out),
                remedy="Wait for it, stop it, or choose another folder",
            ) from error
        yield


def _claim(out: Path, described: dict[str, Any]) -> None:
    """Note the settings that the folder is for; refuse if it is for others."""
    path = out / "training.json"
    if not path.exists():
        write_json(path, described)
    refuse_other_settings(read_json(path), described, out)


def start_hash(start: Path | None) -> str | None:
    """Hash of the weights that a run starts from; None for a run that draws them."""
    if start is None:
        return None
    files = sorted(Path(start).glob("*.safetensors"))
    return hash_value([(file.name, hash_file(file)) for file in files if file.name != OPTIMIZER])


def _start_from(model: Decoder, start: Path) -> None:
    """Copy the weights of a checkpoint or of a Hugging Face folder into `model`."""
    if (Path(start) / STATE).exists():
        found = load_checkpoint_model(start)
    else:
        from training.huggingface import load_huggingface

        found = load_huggingface(start)
    weights = dict(found.named_parameters())
    if {n: p.shape for n, p in weights.items()} != {n: p.shape for n, p in model.named_parameters()}:
        raise RecipeError(
            "The weights to start from belong to a model of another shape",
            where=str(start),
            remedy="Give the run the same model settings",
        )
    model.load_state_dict(weights)


def _mean_weights(run: Run) -> AbstractContextManager[None]:
    return run.mean.in_place_of_weights(run.model) if run.mean else nullcontext()


def choose_device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise MachineError("There is no GPU that torch can use", where="device", remedy="Set device to cpu")
    return torch.device(wanted)
