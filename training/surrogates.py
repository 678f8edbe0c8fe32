"""What a token contributes to the policy-gradient loss: PPO's clip and its published relatives.

Every one of them has the gradient of REINFORCE where the policy is the one that sampled (ratio 1); they differ
in what they do with tokens, or whole rollouts, that have become likelier or rarer since.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curation.errors import RecipeError

SurrogateName = Literal["clip", "cispo", "sapo", "vespo"]
RatioLevel = Literal["token", "sequence"]
VESPO_LOWEST = 1e-8  # the least ratio of a rollout that VESPO tells from 0, as its authors' code
VESPO_LOG_RATIO = 20.0


@dataclass(frozen=True)
class Surrogate:
    """Which surrogate, and its constants. A_i is the advantage, r_it = exp(logprob - old logprob).

    name, loss of a token:
      "clip"  : -min(r A, clip(r, 1 - low, 1 + high) A)                                (PPO; DAPO's two clips)
      "cispo" : -sg(clip(r, 1 - low, 1 + high)) A logprob: every token keeps a gradient  (MiniMax-M1, 2506.13585)
      "sapo"  : -4 / tau sigmoid(tau (r - 1)) A with tau by the sign of A                        (2511.20347)
      "vespo" : -sg(phi(w_i)) A logprob, w_i the product of the rollout's ratios,
                phi(w) = e^lambda w^k e^(-lambda w), k and lambda by the sign of A             (2602.10693)
    ratio  : "sequence" puts exp(mean_t log r_it) in the place of r_it (GSPO, 2507.18071); not for "vespo"
    low, high : of "clip" and "cispo"; None does not clip on that side. ScaleRL's cispo has low None
    cap    : largest r of "clip" also where A < 0 (INTELLECT-2, 2505.07291); None is without
    """

    name: SurrogateName = "clip"
    ratio: RatioLevel = "token"
    low: float | None = None
    high: float | None = None
    cap: float | None = None
    sapo_positive: float = 1.0
    sapo_negative: float = 1.05
    vespo_positive: tuple[float, float] = (2.0, 3.0)
    vespo_negative: tuple[float, float] = (3.0, 2.0)

    def __post_init__(self) -> None:
        if self.name not in ("clip", "cispo", "sapo", "vespo") or self.ratio not in ("token", "sequence"):
            raise RecipeError(
                f"There is no surrogate {self.name!r} with ratios of each {self.ratio!r}",
                where="objective.surrogate",
                remedy="Choose clip, cispo, sapo or vespo, and ratios of a token or a sequence",
            )
        if self.name == "vespo" and self.ratio == "sequence":
            raise RecipeError(
                "vespo weighs whole rollouts by itself",
                where="objective.ratio",
                remedy="Leave the ratio at token",
            )
        if self.cap is not None and self.high is not None and self.cap <= 1 + self.high:
            raise RecipeError(
                f"The cap {self.cap} of the ratio is not above the clip at {1 + self.high}",
                where="objective.ratio_cap",
                remedy="Raise it, or leave it out",
            )
        if min(self.sapo_positive, self.sapo_negative) <= 0:
            raise RecipeError(
                "A temperature of sapo is not positive", where="objective.sapo", remedy="Give about 1"
            )


def token_losses(
    logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, surrogate: Surrogate
) -> tuple[Tensor, Tensor]:
    """The loss of each token, and whether clipping took its gradient (or, for cispo, bounded it); both [N, T].

    logprobs, old : [N, T] nats, finite; the first with gradient;  advantages : [N];  mask : [N, T] bool

    >>> one, two = torch.zeros(1, 1), torch.full((1, 1), 0.5)
    >>> token_losses(two, one, torch.ones(1), torch.ones(1, 1).bool(), Surrogate(low=0.2, high=0.28))
    (tensor([[-1.2800]]), tensor([[True]]))
    """
    log_ratio = torch.where(mask, logprobs - old, 0.0)
    advantage = advantages.to(logprobs.dtype)[:, None]
    if surrogate.name == "vespo":
        phi = _vespo_weights(log_ratio.detach(), advantage, surrogate)
        return -phi * advantage * logprobs, torch.zeros_like(mask)
    if surrogate.ratio == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    ratio = torch.exp(log_ratio)
    if surrogate.name == "sapo":
        tau = torch.where(advantage > 0, surrogate.sapo_positive, surrogate.sapo_negative).to(ratio.dtype)
        gate = 4 / tau * torch.sigmoid(tau * (ratio - 1))
        return (-gate * advantage).expand_as(mask), torch.zeros_like(mask)
    low = None if surrogate.low is None else 1 - surrogate.low
    high = None if surrogate.high is None else 1 + surrogate.high
    bounded = ratio if low is None and high is None else ratio.clamp(low, high)
    if surrogate.name == "cispo":
        return -bounded.detach() * advantage * logprobs, mask & (bounded != ratio)
    if surrogate.cap is not None:
        ratio = ratio.clamp(max=surrogate.cap)
    clipped = mask & (bounded * advantage < ratio * advantage)
    return -torch.minimum(ratio * advantage, bounded * advantage).expand_as(mask), clipped


def _vespo_weights(log_ratio: Tensor, advantage: Tensor, surrogate: Surrogate) -> Tensor:
    """phi(w) [N, 1] of each rollout, a constant of the gradient; 1 where w is 1."""
    bound = VESPO_LOG_RATIO
    lowest = torch.log(torch.tensor(VESPO_LOWEST, dtype=torch.float64)).item()
    log_w = log_ratio.clamp(-bound, bound).sum(1, keepdim=True).clamp(lowest, bound)
    positive, negative = surrogate.vespo_positive, surrogate.vespo_negative
    k, scale = (torch.where(advantage >= 0, positive[at], negative[at]).to(log_w.dtype) for at in (0, 1))
    return torch.exp(scale + k * log_w - scale * log_w.exp())
