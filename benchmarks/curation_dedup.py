"""Semantic deduplication: exact search against semhash and faiss, and clusters beyond."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.curation_models import timed
from benchmarks.measure import machine, paired, publish, table
from curation.clusters import nearest_clusters
from curation.memory import peak_memory
from curation.semantic_duplicates import find_duplicates, semantic_duplicates

THRESHOLD = 0.9
LARGE = 140_000


def planted(rows: int, copies: int, dim: int = 384, seed: int = 0, groups: int = 0) -> np.ndarray:
    """Unit vectors of which `copies` are another one plus noise (cosine about .97); `groups` centres if any."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((rows, dim), dtype=np.float32)
    if groups:
        vectors = (
            0.9 * vectors
            + random.standard_normal((groups, dim), dtype=np.float32)[random.integers(0, groups, rows)]
        )
    sources = random.choice(rows - copies, copies, replace=False)
    noise = random.standard_normal((copies, dim), dtype=np.float32)
    vectors[rows - copies :] = vectors[sources] + 0.25 * noise
    vectors = vectors[random.permutation(rows)]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def deduplication(*, write: bool, rounds: int = 2) -> None:
    """20,000 x 384 with 2,000 planted duplicates, and 140,000 in a process of its own."""
    torch.set_num_threads(1)
    vectors, copies = planted(20_000, 2_000), 2_000
    work = {
        "ours, exact": lambda: len(find_duplicates(vectors, THRESHOLD)),
        "faiss IndexFlatIP, range search": lambda: _faiss_flat(vectors),
        "semhash, default (usearch)": lambda: _semhash(vectors, "USEARCH"),
        "semhash, exact (basic)": lambda: _semhash(vectors, "BASIC"),
    }
    found = {name: contestant() for name, contestant in work.items()}
    times = paired(work, rounds=rounds, warmup=0)
    ours = times["ours, exact"]
    rows = [
        [name, f"{timing.seconds:.2f}", f"{ours.ratio(timing):.1f}", f"{found[name]:,} of {copies:,}"]
        for name, timing in times.items()
    ]
    header = ["20,000 x 384", "CPU seconds", "times ours", "dropped"]
    large = [_in_a_process(workers) for workers in (1, 2)]
    more = [
        [
            f"{r['workers']}",
            f"{r['wall']:.0f}",
            f"{r['cpu']:.0f}",
            f"{r['rss']:.0f}",
            f"{r['found']:,} of 14,000",
        ]
        for r in large
    ]
    text = (
        "## Exact semantic deduplication, threshold .9\n\n"
        f"Random unit vectors, a tenth of them planted duplicates; median of {rounds} rounds, one thread.\n\n"
        + table(header, rows)
        + "\n140,000 x 384 in a process of its own; memory is the largest resident size, with torch and the "
        "vectors.\n\n"
        + table(["threads", "wall seconds", "CPU seconds", "MB", "dropped"], more)
        + f"\n{machine('torch', 'faiss-cpu', 'semhash')}\n"
    )
    publish("curation: deduplication", text, write=write)


def clusters(*, write: bool, rows: int = 60_000) -> None:
    """How many semantic duplicates clusters miss, as estimated and as counted."""
    torch.set_num_threads(1)
    vectors = planted(rows, rows // 10, groups=200)
    exact_cpu, exact = timed(lambda: find_duplicates(vectors, THRESHOLD))
    lines = [["all pairs", f"{exact_cpu:.1f}", f"{len(exact):,}", "100 %", "-"]]
    training, _ = timed(lambda: nearest_clusters(vectors, 1))
    for probes in (1, 2, 3, 5):
        cpu, result = timed(
            lambda probes=probes: semantic_duplicates(vectors, THRESHOLD, exact_documents=0, probes=probes)
        )
        assert result.recall is not None
        recall, r = len(result.found) / len(exact), result.recall
        estimate = f"{r.estimate:.2%} ({r.low:.2%} to {r.high:.2%})"
        lines.append(
            [f"{probes} clusters", f"{cpu:.1f}", f"{len(result.found):,}", f"{recall:.2%}", estimate]
        )
    text = (
        "## Clusters instead of all pairs\n\n"
        f"{rows:,} x 384 in 200 groups, a tenth planted duplicates, {round(rows**0.5)} clusters; training and "
        f"assigning alone take {training:.1f} CPU seconds, and the estimate compares 2,000 documents with all.\n\n"
        + table(["searched", "CPU seconds", "dropped", "recall", "estimated, 95 % interval"], lines)
        + f"\n{machine('torch', 'faiss-cpu')}\n"
    )
    publish("curation: clusters", text, write=write)


def _faiss_flat(vectors: np.ndarray) -> int:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    ends, _, near = index.range_search(vectors, THRESHOLD)
    kept = np.ones(len(vectors), dtype=bool)
    for row in range(len(vectors)):
        earlier = near[ends[row] : ends[row + 1]]
        earlier = earlier[earlier < row]
        if len(earlier) and kept[earlier].any():
            kept[row] = False
    return int((~kept).sum())


def _semhash(vectors: np.ndarray, backend: str) -> int:
    from semhash import SemHash
    from vicinity import Backend

    class Nothing:
        def encode(self, inputs, **options):  # type: ignore[no-untyped-def]
            raise AssertionError("the vectors are given")

    records = [f"{row}" for row in range(len(vectors))]
    found = SemHash.from_embeddings(vectors, records, model=Nothing(), ann_backend=Backend[backend])
    return len(records) - len(found.self_deduplicate(threshold=THRESHOLD).selected)


def _in_a_process(workers: int) -> dict[str, float]:
    code = f"from benchmarks.curation_dedup import _large; _large({workers})"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def _large(workers: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vectors.npy"
        code = (
            "import numpy as np; from benchmarks.curation_dedup import *; "
            f"np.save({str(path)!r}, planted(LARGE, LARGE // 10))"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        vectors = np.load(path)
        wall = time.perf_counter()
        cpu, found = timed(lambda: find_duplicates(vectors, THRESHOLD, workers=workers))
        wall = time.perf_counter() - wall
    size = peak_memory() / 1e6
    print(json.dumps({"workers": workers, "wall": wall, "cpu": cpu, "rss": size, "found": len(found)}))
