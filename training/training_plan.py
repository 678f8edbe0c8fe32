"""What a training run will need and take: memory from its shapes, time from a few steps of the same shapes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from curation.progress import progress
from training.distributed import choose_device
from training.memory_plan import MemoryPlan, plan_memory
from training.model import Decoder
from training.model_config import ModelConfig
from training.optimizer import build_adamw
from training.order import Batch
from training.settings import TrainSettings
from training.update import Run, accumulate_gradients, update

# Deeper models than this are measured at two depths and extrapolated: layers are alike, and so is their time.
MEASURED_LAYERS = 4
ROUNDS = 3


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
    if config.layers <= MEASURED_LAYERS:
        micro, whole = _measure(config, settings, rows, clock)
    else:
        shallow = _measure(replace(config, layers=1), settings, rows, clock)
        deeper = _measure(replace(config, layers=3), settings, rows, clock)
        micro, whole = (
            few + (many - few) / 2 * (config.layers - 1) for few, many in zip(shallow, deeper, strict=True)
        )
    return own / rows * micro + max(0.0, whole - micro)


def _measure(
    config: ModelConfig, settings: TrainSettings, rows: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Seconds of a micro-batch's gradient, and of an update with this one micro-batch: the least of a few."""
    device = choose_device(settings.device)
    model = Decoder(config).init_weights(0).to(device)
    one = replace(settings, batch_sequences=rows, micro_batch_sequences=None, steps=1000, warmup_steps=0)
    optimizer = build_adamw(model, weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-8)
    run = Run(model, optimizer, None, 0)
    batch = _packed_batch(config, rows, settings.sequence_tokens)
    gradients, updates = [], []
    with progress("measuring the speed of training", 2 * ROUNDS + 1, "steps") as task:
        update(run, batch, one)  # loads kernels and makes the moments
        task.advance()
        for _ in range(ROUNDS):
            began = _now(clock, device)
            accumulate_gradients(model, batch, precision=settings.precision, z_loss=settings.z_loss)
            gradients.append(_now(clock, device) - began)
            model.zero_grad(set_to_none=True)
            began = _now(clock, device)
            update(run, batch, one)
            updates.append(_now(clock, device) - began)
            task.advance(2)
    return min(gradients), min(updates)


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
