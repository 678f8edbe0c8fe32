"""How many documents are left when more of a corpus is deduplicated: what a pilot's groups of copies say about it.

The share of duplicates grows with a corpus, since the more is kept, the more likely the next document is like one
of it. A pilot shows groups of documents that duplicate each other (a kept one and those dropped for it), mostly of
one document. The groups of more text are predicted by a Gibbs-type partition (Pitman and Yor 1997; de Blasi et al.
2015): behind N documents in k groups, the next one begins a new group with the chance

    (theta + sigma k) / (theta + N)

sigma = 0 is the world in which any two documents are alike with one small chance p = 1 / theta, whose groups grow like
ln(1 + p N) / p; sigma > 0 has ever more rare texts, and groups grow like N^sigma; sigma < 0 has no more than
theta / -sigma groups, such as templates, and growth ends there. Which of them the pilot comes from is not decided: a
grid of (sigma, theta) is weighed by the probability of the pilot's groups, and each draw of a path takes its own. A
pilot without a single pair says little about a hundred times its size, and the draws then differ by as much.

Of what the pilot did not see, such a partition knows too much: its groups that end are about equally likely, and
those that are not go on for ever. Uneven templates end all the same, and the gaps between groups of about one size
fill slowly. So some draws follow the groups that were seen once and twice only:

    bounded  the least number of unseen groups, f1^2 / 2 f2 (Chao 1984), fills up as Chao et al. (2014) extrapolate
    steady   the chance of a new group, f1 / N by now (Good 1953), falls like a power of N between `SLOWEST` and 1

On five kinds of simulated worlds (docs/decisions.md; powers and shares were chosen on the same kinds) a 90 % interval
held what ten or thirty times the pilot really gave in 90 to 100 % of cases. Its middle is still too high, by 7 to
63 %, where all documents come from a few hundred uneven templates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

STEP = 1.3
"""Ratio of neighbouring sizes on a path."""
_SIGMAS = (-100.0, -10.0, -3.0, -1.5, -0.8, -0.4, -0.2, -0.1, *np.linspace(0.02, 0.98, 25))
_THETAS = np.logspace(-1, 9, 241)
_UNSEEN = np.logspace(-3, 8, 241)
"""Groups that were not seen, for each one that was, where there is an end of them."""
BOUNDED, STEADY = 0.2, 0.2
"""Shares of the draws that do not follow a Gibbs-type partition."""
SLOWEST = 0.4
TEMPER = 0.3
"""Power of the likelihood: real corpora are no Gibbs-type partitions, and 1 gave intervals that were too narrow."""


class GrowthPaths:
    """Draws of how many groups there are among 1, 2, ... documents of a corpus: `sizes` [g], `groups` [draws, g]."""

    def __init__(self, sizes: np.ndarray, groups: np.ndarray) -> None:
        self.sizes, self.groups = sizes, groups

    def kept(self, documents: np.ndarray) -> np.ndarray:
        """Groups among `documents` [draws], each by its own path."""
        at = np.clip(np.searchsorted(self.sizes, documents, side="right") - 1, 0, len(self.sizes) - 2)
        rows = np.arange(len(documents))
        low, high = self.groups[rows, at], self.groups[rows, at + 1]
        share = (documents - self.sizes[at]) / (self.sizes[at + 1] - self.sizes[at])
        return low + (high - low) * np.minimum(share, 1.0)

    def needed(self, groups: np.ndarray) -> np.ndarray:
        """Documents among which there are so many groups [draws]; infinite where the path ends before."""
        rows = np.arange(len(groups))
        after = (self.groups < groups[:, None]).sum(axis=1)
        at = np.clip(after - 1, 0, len(self.sizes) - 2)
        low, high = self.groups[rows, at], self.groups[rows, at + 1]
        share = np.where(high > low, (groups - low) / np.maximum(high - low, 1e-12), 0.0)
        found = self.sizes[at] + share * (self.sizes[at + 1] - self.sizes[at])
        return np.where(after < len(self.sizes), np.maximum(found, groups), np.inf)


def growth_paths(
    group_sizes: Sequence[int] | np.ndarray, draws: int, most: float, generator: np.random.Generator
) -> GrowthPaths:
    """Paths up to `most` documents that are those of the pilot up to its own size.

    group_sizes : of the pilot's groups of duplicates, 1 for a document without any
    """
    sizes = np.asarray(group_sizes, dtype=np.int64)
    documents, groups = int(sizes.sum()), len(sizes)
    smaller = _rarefied(sizes)
    steps = max(1, int(np.ceil(np.log(max(most, documents * STEP) / documents) / np.log(STEP))))
    larger = np.unique(np.rint(documents * STEP ** np.arange(1, steps + 1)))
    larger = larger[larger > documents]
    sigma, theta = _drawn_parameters(sizes, draws, generator)
    found = np.full(draws, float(groups))
    path, here = [], float(documents)
    for size in larger:
        found = found + _new_groups(here, size - here, found, sigma, theta, generator)
        path.append(found)
        here = size
    grid = np.concatenate(([0.0], smaller[0], larger))
    before = np.concatenate(([0.0], smaller[1]))
    after = np.column_stack(path)
    kind = generator.random(draws)
    bounded, steady = kind < BOUNDED, kind >= 1 - STEADY
    after[bounded] = groups + _bounded(sizes, larger, int(bounded.sum()), generator)
    after[steady] = groups + _steady(sizes, larger, int(steady.sum()), generator)
    return GrowthPaths(grid, np.column_stack([np.broadcast_to(before, (draws, len(before))), after]))


def _bounded(sizes: np.ndarray, larger: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """New groups [draws, g] when only as many were not seen as Chao's bound says, with the counts' own chance."""
    documents = int(sizes.sum())
    once, twice = (generator.gamma((sizes == n).sum() + 0.5, 1.0, (draws, 1)) for n in (1, 2))
    unseen = once**2 / (2 * twice)
    chance = once / (documents * unseen + once)
    more = larger - documents
    return np.minimum(-unseen * np.expm1(more * np.log1p(-chance)), more)


def _steady(sizes: np.ndarray, larger: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """New groups [draws, g] when the chance of one falls from now on like a power of the documents."""
    documents, once = int(sizes.sum()), int((sizes == 1).sum())
    chance = generator.beta(once + 0.5, documents - once + 0.5, (draws, 1))
    left = 1 - generator.uniform(SLOWEST, 1.0, (draws, 1))
    more = documents * chance * np.expm1(left * np.log(larger / documents)) / np.maximum(left, 1e-9)
    return np.minimum(more, larger - documents)


def _rarefied(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes up to the pilot's own, and the groups to be expected among so many of its documents (Hurlbert 1971)."""
    total = int(sizes.sum())
    at = np.unique(np.rint(np.linspace(1, total, min(total, 40))))
    values, counts = np.unique(sizes, return_counts=True)
    absent = np.zeros(len(at))
    for value, count in zip(values, counts, strict=True):
        room = total - value - at
        with np.errstate(invalid="ignore"):
            log = (
                gammaln(total - value + 1) - gammaln(np.maximum(room, 0) + 1) + gammaln(total - at + 1)
            ) - gammaln(total + 1)
        absent += count * np.where(room >= 0, np.exp(np.minimum(log, 0.0)), 0.0)
    return at, len(sizes) - absent


def _drawn_parameters(
    sizes: np.ndarray, draws: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of (sigma, theta) by the probability of a partition into groups of these sizes."""
    documents, groups = int(sizes.sum()), len(sizes)
    values, counts = np.unique(sizes, return_counts=True)
    grid, weights = [], []
    for sigma in _SIGMAS:
        if sigma > 0:
            theta = _THETAS
            begun = (
                (groups - 1) * np.log(sigma) + gammaln(theta / sigma + groups) - gammaln(theta / sigma + 1)
            )
        else:  # theta = -sigma x the number of groups that there can be
            most = groups * (1 + _UNSEEN)
            theta = -sigma * most
            begun = (groups - 1) * np.log(-sigma) + gammaln(most) - gammaln(most - groups + 1)
        joined = (counts * (gammaln(values - sigma) - gammaln(1 - sigma))).sum()
        weights.append(begun + joined - (gammaln(theta + documents) - gammaln(theta + 1)))
        grid += [(sigma, value) for value in theta]
    log = TEMPER * np.concatenate(weights)
    chance = np.exp(log - log.max())
    chosen = generator.choice(len(log), size=draws, p=chance / chance.sum())
    table = np.array(grid)[chosen]
    return table[:, 0], table[:, 1]


def _new_groups(
    documents: float,
    more: float,
    groups: np.ndarray,
    sigma: np.ndarray,
    theta: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Draws of the groups that `more` documents begin: the exact mean, and the spread of as many coins of that chance.

    E[k(N + m)] = (k + theta / sigma) (theta + N + sigma)_m / (theta + N)_m - theta / sigma
    """
    start = theta + documents
    # log of Gamma(start + more + sigma) / Gamma(start + more) is sigma log(start + more) up to 1 / start.
    ratio = np.expm1(sigma * np.log1p(more / (start + (sigma - 1) / 2)))
    mean = np.clip((groups + theta / sigma) * ratio, 0, more)
    spread = np.sqrt(np.maximum(mean * (1 - mean / more), 0))
    return np.clip(mean + spread * generator.standard_normal(len(groups)), 0, more)
