"""What a training run will need and take: memory from its shapes, time from a few steps of the same shapes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from curation.progress import progress
from training.distributed import choose_device
from training.memory_plan import MemoryPlan, plan_memory
from training.model import Decoder
from training.model_config import ModelConfig
from training.optimizer import build_optimizer
from training.order import Batch
from training.settings import TrainSettings
from training.update import Run, accumulate_gradients, update

# Deeper models than this are measured at two depths and extrapolated: layers are alike, and so is their time.
MEASURED_LAYERS = 4
ROUNDS = 5


@dataclass(frozen=True)
class TrainingPlan:
    """A run before it begins.

    seconds, step_seconds : of all updates, and of one; evaluations, checkpoints and loading are not in it
    flops : operations to train on `tokens`, see ModelConfig.flops_per_token
    idle_bytes : memory of this process now, with torch loaded and nothing trained; on a CPU the run's process will
                 need so much and `memory.process`
    """

    memory: MemoryPlan
    idle_bytes: int
    steps: int
    tokens: int
    flops: float
    step_seconds: float
    seconds: float

    @property
    def total_bytes(self) -> int:
        """What the process that trains will show at its peak."""
        return self.idle_bytes + self.memory.process


def plan_training(
    config: ModelConfig,
    settings: TrainSettings,
    *,
    activation_checkpointing: bool = False,
    ranks: int = 1,
    sharded: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainingPlan:
    """Predict memory and time of a run of training.loop on this machine; takes a few steps of one micro-batch.

    The time is of one rank with its share of the batch, without the exchange of gradients. `clock` may be
    `time.process_time` where other jobs share the cores. See `plan_memory` for the other arguments.
    """
    idle = _resident_bytes()  # before the measurement, which leaves freed memory behind
    device = choose_device(settings.device)
    memory = plan_memory(
        config,
        settings,
        device=device.type,
        activation_checkpointing=activation_checkpointing,
        ranks=ranks,
        sharded=sharded,
    )
    step = measure_step(config, settings, ranks=ranks, clock=clock)
    if activation_checkpointing:
        step *= 4 / 3  # one more forward pass, a third of forward and backward
    tokens = settings.steps * settings.tokens_per_step
    return TrainingPlan(
        memory=memory,
        idle_bytes=idle,
        steps=settings.steps,
        tokens=tokens,
        flops=tokens * config.flops_per_token(settings.sequence_tokens),
        step_seconds=step,
        seconds=step * settings.steps,
    )


def measure_step(
    config: ModelConfig,
    settings: TrainSettings,
    *,
    ranks: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one update on one rank: those of one micro-batch times their number, and the optimizer's."""
    own = max(1, settings.batch_sequences // ranks)
    rows = min(settings.micro_batch_sequences or own, own)
    depths = [config.layers] if config.layers <= MEASURED_LAYERS else [1, 3]
    measured = _measure([replace(config, layers=depth) for depth in depths], settings, rows, clock)
    if len(depths) == 1:
        micro, whole = measured[0]
    else:
        micro, whole = (
            few + (many - few) / 2 * (config.layers - 1) for few, many in zip(*measured, strict=True)
        )
    return own / rows * micro + max(0.0, whole - micro)


def _measure(
    configs: list[ModelConfig], settings: TrainSettings, rows: int, clock: Callable[[], float]
) -> list[tuple[float, float]]:
    """For each model, seconds of a micro-batch's gradient, and of an update with this one micro-batch.

    Medians, because a run pays for the slow steps too: on a machine that other jobs share, the least of a few was
    6 % below the mean. The models take turns, so that a slow moment is not one model's alone.
    """
    device = choose_device(settings.device)
    one = replace(settings, batch_sequences=rows, micro_batch_sequences=None, steps=1000, warmup_steps=0)
    runs = [_fresh_run(config, settings, device) for config in configs]
    batch = _packed_batch(configs[0], rows, settings.sequence_tokens)
    gradients: list[list[float]] = [[] for _ in configs]
    updates: list[list[float]] = [[] for _ in configs]
    with progress("measuring the speed of training", (2 * ROUNDS + 1) * len(configs), "steps") as task:
        for run in runs:
            update(run, batch, one)  # loads kernels and makes the moments
            task.advance()
        for _ in range(ROUNDS):
            for number, run in enumerate(runs):
                began = _now(clock, device)
                accumulate_gradients(run.model, batch, precision=settings.precision, z_loss=settings.z_loss)
                gradients[number].append(_now(clock, device) - began)
                run.model.zero_grad(set_to_none=True)
                began = _now(clock, device)
                update(run, batch, one)
                updates[number].append(_now(clock, device) - began)
                task.advance(2)
    pairs = zip(gradients, updates, strict=True)
    return [(statistics.median(part), statistics.median(whole)) for part, whole in pairs]


def _fresh_run(config: ModelConfig, settings: TrainSettings, device: torch.device) -> Run:
    model = Decoder(config).init_weights(0).to(device)
    optimizer = build_optimizer(
        settings.optimizer, model, weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-8
    )
    return Run(model, optimizer, None, 0)


def _packed_batch(config: ModelConfig, rows: int, tokens: int) -> Batch:
    """Random tokens in two documents a row, so that the mask of packing is measured too."""
    ids = torch.randint(0, config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(0))
    half = torch.arange(tokens) >= (tokens + 1) // 2
    positions = torch.arange(tokens) - half * ((tokens + 1) // 2)
    return Batch(ids, ids, positions.repeat(rows, 1), half.long().repeat(rows, 1))


def _now(clock: Callable[[], float], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as pages:  # noqa: PTH123
            return int(pages.read().split()[1]) * 4096
    except OSError:
        return 0
