"""Choosing tokens: a sampler whose every choice is a pure function of its place, not of its batch.

The random number of a token is drawn from a counter-based stream (Philox) keyed by seed, step, prompt,
replica and position. So the same rollout comes out whatever else is decoded beside it, in whatever order,
after any restart. The token is the inverse of the cumulative distribution at that number, which is exact
and, on a CPU, many times faster than `torch.multinomial` (which moreover can choose tokens of probability
zero).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from curation.errors import DataError

BLOCK = 256
SUMMED = 64  # masses that are summed before the cumulative sum: .52 ms became .12 for 64 rows of 8,192
_WORDS_PER_COUNT = 4  # Philox4x64 gives four 64-bit words for each count, and one double takes one word
_WORD = 2**64


def uniform_block(seed: int, step: int, prompt: int, replica: int, block: int) -> np.ndarray:
    """The uniform numbers float64 [256] in [0, 1) of the positions 256 block ... 256 block + 255 of one
    rollout.

    >>> a = uniform_block(7, 0, 3, 1, 0)
    >>> bool((a == uniform_block(7, 0, 3, 1, 0)).all()), bool((a == uniform_block(7, 0, 3, 2, 0)).any())
    (True, False)
    """
    key = np.array([seed % _WORD, prompt % _WORD], dtype=np.uint64)
    counter = np.array([block * (BLOCK // _WORDS_PER_COUNT), step, replica, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(BLOCK)


class UniformStreams:
    """The uniform numbers of many rollouts decoded side by side, one block at a time.

    `at(position)` -> float64 [n]: the number of that position of each live rollout; positions must be asked
    for in ascending order. `select(rows)` keeps some of the rollouts, as finished ones are dropped.
    """

    def __init__(self, seed: int, step: int, rollouts: list[tuple[int, int]]) -> None:
        self._seed, self._step, self._rollouts = seed, step, rollouts
        self._block = -1
        self._values = np.empty((len(rollouts), 0))

    def at(self, position: int) -> Tensor:
        block, offset = divmod(position, BLOCK)
        if block != self._block:
            rows = [uniform_block(self._seed, self._step, p, r, block) for p, r in self._rollouts]
            self._values, self._block = np.stack(rows), block
        return torch.from_numpy(self._values[:, offset].copy())

    def select(self, rows: list[int]) -> None:
        self._rollouts = [self._rollouts[row] for row in rows]
        self._values = self._values[rows]


def choose_tokens(
    logits: Tensor, uniforms: Tensor | None, *, temperature: float = 1.0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Tokens int64 [n], and the normaliser float32 [n] with which logits [n, V] become log-probabilities.

    The log-probability (nats) of token y is logits[y] / temperature - normaliser. temperature 0 (or no `uniforms`)
    takes the most likely token, the smallest id among equals, with log-probabilities at temperature 1. Otherwise
    the token is the inverse CDF of softmax(logits / temperature) at `uniforms` float64 [n]; `top_p` < 1 first keeps
    the fewest tokens that hold that much probability. The normaliser is at the sampling temperature and *before*
    top-p, as the loss recomputes it: with top_p < 1 the sampler is therefore not exactly the policy that is
    trained, and the gradient is biased. Raises DataError when logits are not numbers.

    >>> choose_tokens(torch.tensor([[0.0, 0.0]]).repeat(3, 1), torch.tensor([0.0, 0.49, 0.51]))[0].tolist()
    [0, 0, 1]
    """
    greedy = temperature == 0 or uniforms is None
    scaled = logits.float() if greedy or temperature == 1 else logits.float() / temperature
    highest = scaled.amax(-1, keepdim=True)
    # One pass of exponentials in float32, summed in float64: a float32 sum over a large vocabulary loses rare tokens.
    masses = (scaled - highest).exp_()
    blocks = _block_sums(masses).cumsum(-1)
    total = blocks[:, -1]
    if bool(torch.isnan(total).any()):
        raise DataError(
            "The model gives logits that are not numbers",
            where="sampling",
            remedy="The weights have probably diverged; lower the learning rate and start anew",
        )
    normaliser = highest[:, 0] + total.log().float()
    if greedy or uniforms is None:
        return scaled.argmax(-1), normaliser
    if top_p < 1:
        return inverse_cdf(_nucleus(masses.double() / total[:, None], top_p), uniforms), normaliser
    return _search_in_blocks(masses, blocks, uniforms), normaliser


def _block_sums(masses: Tensor) -> Tensor:
    """Sums float64 [n, blocks] of every 64 of the masses [n, V]; the last block may be shorter."""
    whole = masses.shape[-1] // SUMMED * SUMMED
    sums = masses[:, :whole].unflatten(-1, (-1, SUMMED)).sum(-1, dtype=torch.float64)
    if whole == masses.shape[-1]:
        return sums
    return torch.cat((sums, masses[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)), -1)


def _search_in_blocks(masses: Tensor, blocks: Tensor, uniforms: Tensor) -> Tensor:
    """`inverse_cdf` of masses [n, V] whose block sums have the cumulative sums `blocks`: a quarter of its work."""
    targets = _targets(blocks[:, -1:], uniforms)
    block = torch.searchsorted(blocks, targets, right=True)
    before = torch.where(block > 0, blocks.gather(-1, (block - 1).clamp(min=0)), 0.0)
    places = block * SUMMED + torch.arange(SUMMED, device=masses.device)
    inside = torch.where(
        places < masses.shape[-1], masses.gather(-1, places.clamp(max=masses.shape[-1] - 1)), 0.0
    ).cumsum(-1, dtype=torch.float64)
    # The block's own sum may differ from its part of the cumulative one in the last place.
    rest = torch.minimum(targets - before, _below(inside[:, -1:]))
    return (block * SUMMED + torch.searchsorted(inside, rest, right=True))[:, 0]


def inverse_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The first index int64 [n] at which the cumulative sum of [n, V] exceeds `uniforms` [n] times the whole
    sum.

    Exceeds, not reaches (`right=True`): a token of probability 0 is then never chosen. The rows need not be
    normalised.

    >>> inverse_cdf(torch.tensor([[0.0, 2.0, 0.0, 2.0]]), torch.tensor([0.5])).tolist()
    [3]
    """
    return _search(probabilities.cumsum(-1, dtype=torch.float64), uniforms)


def _search(cumulative: Tensor, uniforms: Tensor) -> Tensor:
    """`inverse_cdf` of cumulative sums float64 [n, V]."""
    targets = _targets(cumulative[:, -1:], uniforms)
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]


def _targets(total: Tensor, uniforms: Tensor) -> Tensor:
    """uniforms [n] times total [n, 1], but below the total."""
    # u < 1, but u * total may round up to the total: stay below it, on the last token that has probability
    return torch.minimum(uniforms.double()[:, None] * total, _below(total))


def _below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -math.inf))


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero all but the fewest most likely tokens whose probability sums to at least `top_p`."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probabilities).scatter(-1, order, torch.where(before < top_p, ordered, 0.0))
