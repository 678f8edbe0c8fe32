"""What predicts retraining without any influence: counting words, own loss, size, and regression on runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.study.agreement import Truth, correlation, left_out_agreement, mixture_agreement
from benchmarks.study.corpora import CAPABILITIES, Corpora
from benchmarks.study.influence import Benefits
from benchmarks.study.shape import StudyShape
from curation.documents import read_documents
from probes.likelihood import tokenize_documents
from training.tokenizer import load_tokenizer
from training.tokens import TokenSource


def trivial_scores(
    out: Path, corpora: Corpora, shape: StudyShape, scored: Sequence[Benefits], truth: Truth
) -> dict[str, dict[str, object]]:
    """By baseline the same measures as of a scheme; regressions have only those over the random mixtures."""
    last = max(
        (b for b in scored if b.reference == f"uniform-seed{shape.search_seeds[0]}"), key=lambda b: b.step
    )
    loss = np.array([last.loss[last.sources == s].mean() for s in truth.sources])
    cross = word_cross_entropy(corpora, truth.sources)
    size = np.array([corpora.sizes[s] for s in truth.sources], dtype=float)
    rows: dict[str, dict[str, object]] = {}
    for at, capability in enumerate(truth.capabilities):
        own = np.array([float(s in CAPABILITIES[capability]) for s in truth.sources])
        predictions = {
            "own sources of the capability": own,
            "token counts (cross-entropy of the probe under the source's unigrams)": -cross[:, at],
            "own loss, low": -loss,
            "own loss, high": loss,
            "size": size,
        }
        for name, rho in predictions.items():
            left = left_out_agreement(np.repeat(rho[None], 201, axis=0), truth, at)
            mixed = mixture_agreement(rho, truth, at, own)
            rows.setdefault(name, {}).update({f"{k}/{capability}": v for k, v in (left | mixed).items()})
        mixed = mixture_agreement(truth.delta[:, at], truth, at, own)
        rows.setdefault("leave-one-out", {}).update({f"{k}/{capability}": v for k, v in mixed.items()})
        regressed = regression_agreement(truth, at)
        rows.setdefault("regression on the other runs' shares", {}).update(
            {f"{k}/{capability}": v for k, v in regressed.items()}
        )
    return rows


def word_cross_entropy(corpora: Corpora, sources: Sequence[str]) -> np.ndarray:
    """Nats per token of the capabilities' search probes under the sources' unigrams [sources, capabilities]."""
    tokenizer = load_tokenizer(corpora.tokenizer)
    found = np.zeros((len(sources), len(CAPABILITIES)))
    counts = {}
    for name in sorted({s for members in CAPABILITIES.values() for s in members}):
        documents = tokenize_documents(read_documents(corpora.probes()[f"search-{name}"]), tokenizer)
        counts[name] = np.bincount(np.concatenate([d.ids[1:] for d in documents]), minlength=len(tokenizer))
    for at, source in enumerate(sources):
        tokens = np.asarray(TokenSource.open(corpora.tokens()[source]).tokens[:])
        smoothed = np.bincount(tokens, minlength=len(tokenizer)) + 1.0
        logs = np.log(smoothed / smoothed.sum())
        for c, members in enumerate(CAPABILITIES.values()):
            found[at, c] = np.mean([-(counts[m] * logs).sum() / counts[m].sum() for m in members])
    return found


def regression_agreement(truth: Truth, at: int) -> dict[str, float]:
    """Each random run predicted by least squares on the shares of the others: what runs alone can say."""
    shares, actual = truth.shares, truth.changes[:, at]
    predicted = np.zeros(len(actual))
    for left in range(len(actual)):
        rest = np.arange(len(actual)) != left
        centre, mean = shares[rest].mean(axis=0), actual[rest].mean()
        x = shares[rest] - centre
        ridge = 1e-3 * np.trace(x.T @ x) / x.shape[1] * np.eye(x.shape[1])
        slope = np.linalg.lstsq(x.T @ x + ridge, x.T @ (actual[rest] - mean), rcond=None)[0]
        predicted[left] = mean + (shares[left] - centre) @ slope
    return {"lds": correlation(predicted, actual), "lds_pearson": correlation(predicted, actual, ranks=False)}
