"""How fast training is: a line of progress, and the share of what this machine can multiply that it reaches."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from curation.memory import peak_memory
from curation.progress import StatusLine, status_line

# Wide enough for the kernels to reach their best, small enough to be over in a fraction of a second: on a CPU
# the operands stay in its caches (a product of 512 is within 3 % of the best of any size on a Zen 4 core), a
# large GPU needs 8192 to be full.
CPU_SIDE, GPU_SIDE = 512, 8192
SECONDS = 0.25


@cache
def measured_peak(device: str = "cpu", precision: str = "bfloat16") -> float:
    """Operations a second (2 per multiplication) of a large matrix product; measured once per process.

    device : "cpu", "cuda" or "cuda:1"; a CPU is measured with torch's present number of threads
    precision : "float32" or "bfloat16", as in TrainSettings; float32 on a GPU as `torch` is set (TF32 or not)

    The best of some rounds over a quarter of a second, in wall-clock time: what the machine can do, so that
    other work on it lowers a step's share and not this. This is not a vendor's figure, which leaves out
    power limits and may count zeros.
    """
    where = torch.device(device)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    side = CPU_SIDE if where.type == "cpu" else GPU_SIDE
    # With its own generator: measuring must not move the random numbers of a run.
    generator = torch.Generator(where).manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator, device=where).to(dtype) for _ in range(2))
    out = torch.empty(side, side, dtype=dtype, device=where)
    best, began = 0.0, time.perf_counter()
    with torch.no_grad(), torch.autocast(where.type, enabled=False):
        torch.mm(left, right, out=out)  # the first call chooses a kernel
        while time.perf_counter() - began < SECONDS:
            best = max(best, 2 * side**3 / _seconds(left, right, out))
    return best


def _seconds(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> float:
    if left.device.type == "cuda":
        torch.cuda.synchronize(left.device)
    began = time.perf_counter()
    torch.mm(left, right, out=out)
    if left.device.type == "cuda":
        torch.cuda.synchronize(left.device)
    return time.perf_counter() - began


def memory_bytes(device: torch.device) -> int:
    """Memory in use: what this process has resident, or on a GPU the most that its tensors have taken."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return peak_memory()  # no present value: the largest so far


class StepMeter:
    """Counts the updates that this process makes, and says in one line how they go.

    Only what was measured here counts: after a resume, speed and time left come from the updates since then.
    The first update, which chooses kernels and may compile, counts for neither.

    tokens_per_second : of the updates since the last line, without evaluations and checkpoints
    peak              : share of `measured_peak` that these reach, counted as ModelConfig.flops_per_token;
                        of `devices` times it where so many ranks share the updates
    data              : share of their time spent waiting for a batch
    time left         : updates to go x wall-clock time of one, with evaluations and checkpoints, so far
    """

    def __init__(
        self,
        label: str,
        *,
        steps: int,
        tokens_per_step: int,
        flops_per_token: float,
        device: torch.device,
        precision: str,
        line: StatusLine,
        devices: int = 1,
    ) -> None:
        self.label, self.steps = label, steps
        self.tokens_per_step, self.flops_per_token = tokens_per_step, flops_per_token
        self.device, self.precision, self._line = device, precision, line
        self._devices = devices
        self._began: float | None = None
        self._made = 0
        self._tokens, self._seconds, self._waited = 0, 0.0, 0.0

    def add(self, row: dict[str, Any], *, seconds: float, waited: float) -> dict[str, Any]:
        """Count an update with log row `row`; `seconds` it took, `waited` of them for data. Returns the row
        with what was measured."""
        if self._began is None:
            self._began = time.perf_counter()
        else:
            self._made += 1
            self._tokens += self.tokens_per_step
            self._seconds += seconds
            self._waited += waited
        self._line.show(lambda: self.words(row))
        speed = round(self.tokens_per_step / seconds, 1)
        return row | {"tokens_per_second": speed, "data_seconds": round(waited, 6)}

    def words(self, row: dict[str, Any]) -> str:
        """The line, at most 78 columns; begins a new stretch for its speed."""
        step, left = row["step"], "?"
        parts = [f"step {step}/{self.steps}", f"loss {row['loss']:.3f}"]
        if self._made and self._seconds > 0:
            speed = self._tokens / self._seconds
            peak = self._devices * measured_peak(str(self.device), self.precision)
            share = speed * self.flops_per_token / peak
            parts += [
                f"{_short(speed)} tok/s",
                f"{100 * share:.0f}% peak",
                f"data {100 * self._waited / self._seconds:.0f}%",
            ]
            assert self._began is not None
            left = _clock((self.steps - step) * (time.perf_counter() - self._began) / self._made)
            self._tokens, self._seconds, self._waited = 0, 0.0, 0.0
        parts += [f"{memory_bytes(self.device) / 1e9:.1f}GB", f"{left} left"]
        told = " ".join(parts)
        room = max(77 - len(told), 0)
        label = self.label if len(self.label) <= room else self.label[: max(room - 1, 0)] + "…"
        return f"{label} {told}"[:78] if room > 3 else told[:78]


@contextmanager
def measuring_steps(label: str, **meter: Any) -> Iterator[StepMeter]:
    """A `StepMeter` whose line is shown as `curation.progress` is set to; arguments as for the meter."""
    with status_line() as line:
        yield StepMeter(label, line=line, **meter)


def _short(number: float) -> str:
    """Three digits and a unit.

    >>> _short(950), _short(12_345), _short(2_500_000_000)
    ('950', '12.3k', '2.50G')
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{number:.0f}"


def _clock(seconds: float) -> str:
    """The two largest units.

    >>> _clock(8), _clock(195), _clock(7260), _clock(200_000)
    ('8s', '3m15s', '2h01m', '2d07h')
    """
    whole = round(seconds)
    for size, unit, part, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{smaller}"
    return f"{whole}s"
