"""The training loop: from a data order and settings to checkpoints, a log and a final model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from curation.atomic import read_json, write_json
from curation.errors import RecipeError
from training.checkpoint import (
    TrainingState,
    describe_run,
    gather_tensors,
    list_checkpoints,
    load_checkpoint_model,
    new_model,
    refuse_other_settings,
    remove_checkpoint,
    restore_checkpoint,
    write_tensors,
)
from training.compilation import compile_model, compiler_errors
from training.distributed import Ranks, check_ranks, choose_device, join_ranks
from training.gradient_sum import GradientSum
from training.lessons import open_lessons
from training.model import Decoder, ModelConfig
from training.optimizer import build_optimizer
from training.order import Order
from training.prefetch import BatchesAhead
from training.recomputation import recompute_layers
from training.result import TrainResult, read_result, write_result
from training.run_lock import only_process_in
from training.run_log import RunLog
from training.settings import TrainSettings, check_settings, deciding_settings
from training.sharding import ShardedSum, whole_model
from training.sinks import open_sinks
from training.speed import measuring_steps
from training.start import copy_start, start_hash
from training.start_check import refuse_other_tokenizer
from training.stop_requests import TrainingStopped, stop_requests
from training.update import Run, update
from training.weighing import BatchWeigher

__all__ = ["TrainResult", "TrainSettings", "load_checkpoint_model", "train"]

Evaluate = Callable[[Decoder, int], dict[str, Any]]


def train(
    model_config: ModelConfig,
    order: Order,
    settings: TrainSettings,
    out: Path | str,
    *,
    evaluate: Evaluate | None = None,
    init_from: Path | None = None,
    progress_label: str | None = None,
    weigher: BatchWeigher | None = None,
) -> TrainResult:
    """Train a decoder on the first steps * batch_sequences sequences of `order`, into the folder `out`.

    evaluate  : called as evaluate(model, step) after each of `evaluate_steps`; its values go into
                evaluations.jsonl. It must leave the model as it is.
    init_from : a checkpoint or Hugging Face folder to start from, instead of weights drawn by settings.seed
    weigher   : weighs the tokens of each update's loss (training.weighing); on one rank, without a teacher

    A finished `out` is returned at once. A killed run, called again in the same way, goes on from its last
    checkpoint, and ends with the same bits as if it had not been killed (on the same machine, with the same
    torch, number of threads and number of ranks). Writes checkpoints/step-N, metrics.jsonl (a row per
    update), evaluations.jsonl and, last, result.json.

    Called by every process that torchrun has started, it trains one model with all of them, see
    settings.parallel: each reads its part of every update, and rank 0 evaluates and writes. `out` must be a
    folder that all of them see.

    The loss is the sum over all labels of the update, divided by their number: it does not depend on
    micro-batches or ranks. An update whose loss or gradient is not finite is not made, but reported as a
    DataError. SIGTERM or SIGINT end it after the update under way, with a checkpoint and TrainingStopped.
    Raises RecipeError for settings that cannot be, or that are not those that `out` was begun with.
    """
    out = Path(out)
    check_settings(settings, model_config, order)
    refuse_other_tokenizer(init_from, order)
    ranks = join_ranks(settings.device)
    check_ranks(ranks, settings.batch_sequences)
    _check_weighed(weigher, ranks, settings)
    described = ranks.from_main(lambda: _describe(model_config, order, settings, init_from, weigher))
    with ExitStack() as held:
        ranks.from_main(lambda: _claim(held, out, described))
        if ranks.from_main((out / "result.json").exists):
            return read_result(out)
        stop = held.enter_context(stop_requests())
        run = _begin(out, model_config, settings, described, init_from, ranks)
        if settings.distillation:
            run.lessons = open_lessons(
                settings.distillation,
                order,
                sequences=settings.steps * settings.batch_sequences,
                vocabulary=model_config.vocab_size,
                folder=out,
                device=run.model.output_weight.device,
            )
        run.weigher = weigher
        log = _open_log(held, settings, out, run, described) if ranks.main else None
        if weigher is not None and log is not None:
            weigher.resume(log.rows())
        measured = held.enter_context(
            measuring_steps(
                progress_label or f"training {out.name}",
                steps=settings.steps,
                tokens_per_step=settings.tokens_per_step,
                flops_per_token=model_config.flops_per_token(settings.sequence_tokens),
                device=run.model.output_weight.device,
                precision=settings.precision,
                devices=ranks.size,
            )
        )
        batches = BatchesAhead(order.batch, settings.batch_sequences, run.model.output_weight.device)
        held.callback(batches.close)
        if run.step == 0:
            _after_update(run, settings, out, described, evaluate, log)
        while run.step < settings.steps:
            if ranks.any(bool(stop)):
                _stop(run, settings, out, described, log)
            started = time.perf_counter()
            batch = batches(*ranks.share(run.step * settings.batch_sequences, settings.batch_sequences))
            waited = time.perf_counter() - started
            with compiler_errors():
                row = update(run, batch, settings)
            row = measured.add(row, seconds=time.perf_counter() - started, waited=waited)
            if log:
                log.metrics(row)
            _after_update(run, settings, out, described, evaluate, log)
        ranks.from_main(lambda: write_result(out, model_config, settings, log))
        return read_result(out)


def _open_log(
    held: ExitStack, settings: TrainSettings, out: Path, run: Run, described: dict[str, Any]
) -> RunLog:
    log = RunLog(out, run.step, open_sinks(settings.loggers, out, step=run.step, settings=described))
    held.callback(log.close)
    return log


def _after_update(
    run: Run,
    settings: TrainSettings,
    out: Path,
    described: dict[str, Any],
    evaluate: Evaluate | None,
    log: RunLog | None,
) -> None:
    """Evaluate and write checkpoints, where this step is one for it.

    The order matters: when a checkpoint is there, so are all rows of the logs up to its step.
    """
    if evaluate is not None and run.step in settings.evaluate_steps:
        with torch.no_grad(), _evaluated_model(run) as model:
            run.ranks.from_main(lambda: _evaluate(evaluate, model, run.step, log))
    keep = run.step in settings.checkpoint_steps or run.step == settings.steps
    resume = settings.resume_every > 0 and run.step % settings.resume_every == 0 and run.step > 0
    if keep or resume:
        _save(run, settings, out, described, log, "checkpoints" if keep else "resume")


def _evaluate(evaluate: Evaluate, model: Decoder, step: int, log: RunLog | None) -> None:
    assert log is not None
    log.evaluation({"step": step, **evaluate(model, step)})


def _save(
    run: Run,
    settings: TrainSettings,
    out: Path,
    described: dict[str, Any],
    log: RunLog | None,
    place: str,
) -> None:
    """Write a checkpoint into out/`place`, and remove what `settings.keep` newer ones make needless."""
    averaged = run.mean.count if run.mean else 0
    state = TrainingState(run.step, run.step * settings.batch_sequences, averaged, described)
    tensors = gather_tensors(run.model, run.optimizer, run.mean, wanted=run.ranks.main)

    def write() -> None:
        assert log is not None
        log.flush()
        write_tensors(out / place / f"step-{run.step}", state, tensors)
        resume = list_checkpoints(out / "resume")
        newest = sorted(resume.keys() | list_checkpoints(out / "checkpoints").keys())[-settings.keep :]
        for step, older in resume.items():
            if step not in newest:
                remove_checkpoint(older)

    run.ranks.from_main(write)


def _stop(
    run: Run, settings: TrainSettings, out: Path, described: dict[str, Any], log: RunLog | None
) -> None:
    """Leave a checkpoint of this very step, and end the run on all ranks."""
    saved = run.ranks.from_main(lambda: run.step in _saved(out))
    if not saved:
        _save(run, settings, out, described, log, "resume")
    raise TrainingStopped(
        f"The training was asked to stop and has saved step {run.step} of {settings.steps}",
        where=str(out),
        remedy="Start it again in the same way to continue",
    )


def _saved(out: Path) -> dict[int, Path]:
    return list_checkpoints(out / "resume") | list_checkpoints(out / "checkpoints")


def _begin(
    out: Path,
    model_config: ModelConfig,
    settings: TrainSettings,
    described: dict[str, Any],
    init_from: Path | None,
    ranks: Ranks,
) -> Run:
    """The run as its last checkpoint left it, or before its first update."""
    device = choose_device(settings.device, ranks)
    saved = ranks.from_main(lambda: _saved(out))
    model = new_model(model_config)
    if not saved and init_from is None:
        model.init_weights(settings.seed)
    elif not saved and init_from is not None:
        copy_start(model, init_from, described.get("tokenizer"))
    model.to(device)
    recompute_layers(model, settings.recompute_every)
    compile_model(model, settings.compile)
    gradients: GradientSum | ShardedSum | None = None
    if ranks.size > 1 and settings.parallel == "fsdp":
        gradients = ShardedSum(model, ranks, settings.precision)
    elif ranks.size > 1:
        gradients = GradientSum(model.parameters())
    optimizer = build_optimizer(
        settings.optimizer,
        model,
        weight_decay=settings.weight_decay,
        beta1=settings.beta1,
        beta2=settings.beta2,
        epsilon=settings.epsilon,
    )
    if not saved:
        return Run(model, optimizer, None, 0, ranks, gradients)
    state, mean = restore_checkpoint(saved[max(saved)], described, model, optimizer)
    return Run(model, optimizer, mean, state.step, ranks, gradients)


def _describe(
    model: ModelConfig,
    order: Order,
    settings: TrainSettings,
    init_from: Path | None,
    weigher: BatchWeigher | None,
) -> dict[str, Any]:
    # Token sources know their tokenizer, and an order sees to it that they have one; chats do not.
    tokenizer = getattr(next(iter(order.sources.values())), "tokenizer", "")
    start = start_hash(init_from)
    decides = deciding_settings(settings)
    if weigher is not None:
        decides["weigher"] = dict(weigher.describe())
    return describe_run(model, order.fingerprint(), decides, start, tokenizer)


def _check_weighed(weigher: BatchWeigher | None, ranks: Ranks, settings: TrainSettings) -> None:
    if weigher is not None and (ranks.size > 1 or settings.distillation):
        raise RecipeError(
            "Tokens that are weighed anew at every update are trained by one process, and without a teacher",
            where="weigher",
            remedy="Train it without torchrun and without distillation",
        )


def _claim(held: ExitStack, out: Path, described: dict[str, Any]) -> None:
    """Lock the folder and note the settings that it is for; refuse if it is for others."""
    held.enter_context(only_process_in(out))
    path = out / "training.json"
    if not path.exists():
        write_json(path, described)
    refuse_other_settings(read_json(path), described, out)


@contextmanager
def _evaluated_model(run: Run) -> Iterator[Decoder]:
    """The model to evaluate: with the mean of the weights where there is one, and whole."""
    if isinstance(run.gradients, ShardedSum):
        yield whole_model(run.model, run.mean.weights if run.mean else None)
        return
    with run.mean.in_place_of_weights(run.model) if run.mean else nullcontext():
        yield run.model
