"""The sum of all ranks' gradients: one all-reduce for each bucket of parameters and update."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.distributed import other_ranks

BUCKET_BYTES = 32 << 20


class GradientSum:
    """Sums gradients over ranks while the backward of an update's last micro-batch still runs.

    Buckets hold the parameters from the last to the first, as a backward reaches them, in pieces of
    `bucket_bytes`: a pure function of the model, so that a resumed run adds the same numbers in the same
    order. (DistributedDataParallel deals its buckets anew after its first backward, in the order in which
    gradients came; with more than two ranks a resumed run would round its first sums differently.)

    Between `begin` and `finish` a bucket leaves as soon as all of its gradients, and all buckets before it,
    are there. Without `begin`, gradients are left as they are: that is accumulation.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
        self.buckets = _buckets(list(parameters), bucket_bytes)
        self._home = {p: index for index, bucket in enumerate(self.buckets) for p in bucket}
        self._missing: list[int] = []
        self._flying: list[tuple[Tensor, dist.Work]] = []
        self._running = False
        for parameter in self._home:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def start(self) -> None:
        """An update begins."""

    def begin(self) -> None:
        """The next backward is the last of this update."""
        self._missing = [len(bucket) for bucket in self.buckets]
        self._running = True

    def finish(self) -> None:
        """Wait until every `.grad` is the sum over all ranks; one that no backward has reached counts as 0."""
        while len(self._flying) < len(self.buckets):
            self._send()
        for bucket, (flat, work) in zip(self.buckets, self._flying, strict=True):
            with other_ranks():
                work.wait()
            parts = flat.split([p.numel() for p in bucket])
            torch._foreach_copy_(
                [p.grad for p in bucket if p.grad is not None],
                [part.view_as(p) for part, p in zip(parts, bucket, strict=True)],
            )
        self._flying, self._running = [], False

    def _arrived(self, parameter: Tensor) -> None:
        if not self._running:
            return
        self._missing[self._home[parameter]] -= 1  # type: ignore[index]
        while len(self._flying) < len(self.buckets) and self._missing[len(self._flying)] == 0:
            self._send()

    def _send(self) -> None:
        """Send the next bucket. All ranks send them in the same order, whatever arrived first."""
        bucket = self.buckets[len(self._flying)]
        for parameter in bucket:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in bucket if p.grad is not None])
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._flying.append((flat, work))


def _buckets(parameters: list[nn.Parameter], most: int) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        if not buckets or size > room or parameter.dtype != buckets[-1][0].dtype:
            buckets.append([])
            room = most
        buckets[-1].append(parameter)
        room -= size
    return buckets
