"""How fast this machine multiplies matrices, and what share of it a training step reaches."""

from __future__ import annotations

import time
from functools import cache

import torch

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
