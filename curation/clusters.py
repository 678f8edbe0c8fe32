"""Clusters of embeddings for corpora too large to compare all pairs, and an estimate of what they miss.

SemDeDup compares only documents of one cluster of spherical k-means. A pair that a border parts is missed, so
here each document is looked for in its `PROBES` nearest clusters. How many duplicates still get through is measured:
a random sample of the kept documents is compared with all kept ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from curation.similarity_search import TOLERANCE, RoughVectors, candidates, cosines

PROBES = 3
CLUSTER_SEED = 1234
_SAMPLE_BLOCK = 1024
_SEARCH_ROWS = 65_536


@dataclass(frozen=True)
class Recall:
    """Share of all duplicates that were found, with a 95 % interval.

    dropped : documents that were found to duplicate a kept one
    sampled : kept documents that were compared with all kept ones;  missed : of them, duplicates of an earlier one
    low, high : Clopper and Pearson's interval of the share missed, carried over
    """

    dropped: int
    sampled: int
    missed: int
    estimate: float
    low: float
    high: float
    probes: int

    def sentence(self) -> str:
        """What a user reads."""
        return (
            f"Too many documents to compare all pairs: each was compared with those that share one of its "
            f"{self.probes} nearest clusters. Of {self.sampled} kept documents compared with all others, "
            f"{self.missed} still duplicate an earlier one, so about {self.estimate:.1%} of the duplicates were "
            f"found (95 % interval {self.low:.1%} to {self.high:.1%}). Search more clusters to find more."
        )


def nearest_clusters(vectors: np.ndarray, probes: int) -> np.ndarray:
    """The `probes` nearest of about sqrt(n) clusters of each row, nearest first: int32 [n, probes]."""
    import faiss

    count = round(math.sqrt(len(vectors)))
    means = faiss.Kmeans(
        vectors.shape[1], count, niter=20, seed=CLUSTER_SEED, spherical=True, max_points_per_centroid=256
    )
    near = np.empty((len(vectors), min(probes, count)), dtype=np.int32)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # other numbers of threads give other sums, and so other clusters
    try:
        # faiss draws at most this many training rows itself, but would need all of them in memory.
        most = 256 * count
        chosen = np.arange(len(vectors))
        if len(vectors) > most:
            chosen = np.sort(np.random.default_rng(CLUSTER_SEED).choice(len(vectors), most, replace=False))
        means.train(np.ascontiguousarray(vectors[chosen], dtype=np.float32))
        for start in range(0, len(vectors), _SEARCH_ROWS):
            piece = np.ascontiguousarray(vectors[start : start + _SEARCH_ROWS], dtype=np.float32)
            near[start : start + len(piece)] = means.index.search(piece, near.shape[1])[1]
    finally:
        faiss.omp_set_num_threads(before)
    return near


def estimate_recall(
    vectors: RoughVectors, threshold: float, dropped: np.ndarray, probes: int, sample: int, seed: int = 0
) -> Recall:
    """Compare a random sample of the rows that are not `dropped` with all earlier ones of these."""
    from scipy.stats import beta

    kept = np.setdiff1d(np.arange(len(vectors.exact)), dropped)
    chosen = kept
    if len(kept) > sample:
        chosen = np.sort(np.random.default_rng(seed).choice(kept, sample, replace=False))
    missed = 0
    for start in range(0, len(chosen), _SAMPLE_BLOCK):
        rows = chosen[start : start + _SAMPLE_BLOCK]
        later, earlier = candidates(vectors, rows, kept[kept < rows[-1]], threshold)
        later, earlier = later[earlier < later], earlier[earlier < later]
        near = cosines(vectors.exact, later, earlier) >= threshold - TOLERANCE
        missed += len(np.unique(later[near]))
    count, total = len(chosen), len(dropped)
    shares = [
        missed / count if count else 0.0,
        float(beta.ppf(0.025, missed, count - missed + 1)) if missed else 0.0,
        float(beta.ppf(0.975, missed + 1, count - missed)) if missed < count else 1.0,
    ]
    if len(chosen) == len(kept):  # everything was looked at
        shares = [shares[0]] * 3
    found = [total / (total + share * len(kept)) if total or share else 1.0 for share in shares]
    return Recall(total, count, missed, found[0], found[2], found[1], probes)
