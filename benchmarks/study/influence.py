"""Benefits of sampled documents at every checkpoint of the reference models, under every preconditioner at once.

At a checkpoint each document's own gradient is made once (the exact, explicit way) and multiplied with the
directions of all probes and preconditioners, which are those of `mixing.influence.probe_directions`. Probes are
the search split, one direction for each of its sources; a capability's is their mean in bits per byte, which a
linear preconditioner allows. `influence/<run>-step-<N>.npz` is written when a checkpoint is done.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
import torch

from benchmarks.study.corpora import CAPABILITIES, Corpora
from benchmarks.study.shape import StudyShape
from curation.atomic import replacing
from curation.documents import read_documents
from mixing.influence import choose_samples
from mixing.influence.adapters import adapt, scoring
from mixing.influence.datainf import datainf_directions
from mixing.influence.directions import PRECONDITIONERS, load_adam_moments, probe_directions
from mixing.influence.documents import BatchPlan, SampleDocument, spread_over_sources
from mixing.influence.ekfac import ekfac_directions
from mixing.influence.explicit import weighted_gradient
from probes.likelihood import TokenizedDocument, tokenize_documents
from training.checkpoint import list_checkpoints, load_checkpoint_model
from training.model import Decoder
from training.tokenizer import load_tokenizer
from training.tokens import TokenSource


@dataclass(frozen=True)
class Benefits:
    """What a checkpoint says: documents [n], their sources, tokens, losses, gradient norms; benefits [n, p, k].

    benefit : for preconditioner p and probe k, in bits per byte of the probe for a unit step
    products : [p, k, k], inner products of a preconditioner's directions with each other
    """

    reference: str
    step: int
    sources: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    norm: np.ndarray
    probes: tuple[str, ...]
    benefit: np.ndarray
    products: np.ndarray
    forward_tokens: float
    seconds: float

    def of(self, preconditioner: str, capability: str, *, cosine: bool = False) -> np.ndarray:
        """Benefit of every document for a capability or for one source's probe, [n]."""
        members = CAPABILITIES.get(capability, (capability,))
        columns = [self.probes.index(name) for name in members]
        at = PRECONDITIONERS.index(preconditioner)
        values = self.benefit[:, at, columns].mean(axis=1)
        if not cosine:
            return values
        length = np.sqrt(self.products[at][np.ix_(columns, columns)].mean())  # of the mean of the directions
        return values / (self.norm * length)


def score_references(out: Path, corpora: Corpora, shape: StudyShape, seeds: Sequence[int]) -> None:
    """Score the checkpoints of the reference models of `seeds`; those that are done are left alone."""
    sources = [TokenSource.open(folder) for folder in corpora.tokens().values()]
    samples = choose_samples(sources, shape.documents, seed=0)
    tokenizer = load_tokenizer(corpora.tokenizer)
    probes = {
        name: tokenize_documents(read_documents(corpora.probes()[f"search-{name}"]), tokenizer)
        for name in sorted({s for members in CAPABILITIES.values() for s in members})
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for folder in _references(out, seeds):
            capability = folder.name.split("-")[1]
            members = CAPABILITIES.get(capability, tuple(probes))
            checkpoints = sorted(list_checkpoints(folder / "train" / "checkpoints").items())
            for step, checkpoint in checkpoints[1::2] if capability in CAPABILITIES else checkpoints:
                file = out / "influence" / f"{folder.name}-step-{step}.npz"
                if not file.exists():
                    score_checkpoint(file, checkpoint, {m: probes[m] for m in members}, samples, shape)
    finally:
        torch.set_num_threads(threads)


def _references(out: Path, seeds: Sequence[int]) -> list[Path]:
    """The uniform proxies, then the domain models."""
    folders = [f for seed in seeds for f in (out / "reference").glob(f"*-seed{seed}")]
    return sorted(folders, key=lambda f: (f.name.startswith("domain"), f.name))


def score_checkpoint(
    file: Path,
    checkpoint: Path,
    probes: Mapping[str, Sequence[TokenizedDocument]],
    samples: Sequence[SampleDocument],
    shape: StudyShape,
) -> None:
    began = time.process_time()
    model = load_checkpoint_model(checkpoint, averaged=False)
    directions, spent = _directions(model, checkpoint, probes, samples, shape)
    benefit = np.zeros((len(samples), len(PRECONDITIONERS) * len(probes)))
    loss, norm, tokens = (
        np.zeros(len(samples)),
        np.zeros(len(samples)),
        np.zeros(len(samples), dtype=np.int64),
    )
    adapter = adapt(model)
    with scoring(adapter):
        for at, document in enumerate(samples):
            plan = BatchPlan(
                [document],
                context=shape.sequence,
                windows="all",
                reduction="mean",
                batch_tokens=1 << 20,
                device=adapter.device,
            )
            own = list(adapter.named())
            (batch,) = plan
            loss[at], gradient = weighted_gradient(adapter, batch, own)
            flat = torch.cat([gradient[name].flatten() for name in own])
            benefit[at], norm[at] = (directions @ flat).numpy(), float(flat.norm())
            tokens[at] = plan.targets
            spent += 3.0 * plan.read_tokens
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(
            handle,
            sources=np.array([d.source for d in samples]),
            tokens=tokens,
            loss=loss,
            norm=norm,
            probes=np.array(list(probes)),
            benefit=benefit.reshape(len(samples), len(PRECONDITIONERS), len(probes)),
            products=np.stack([(d @ d.T).numpy() for d in directions.double().split(len(probes))]),
            forward_tokens=spent,
            seconds=time.process_time() - began,
        )


def _directions(
    model: Decoder,
    checkpoint: Path,
    probes: Mapping[str, Sequence[TokenizedDocument]],
    samples: Sequence[SampleDocument],
    shape: StudyShape,
) -> tuple[torch.Tensor, float]:
    """Directions [preconditioners x probes, parameters] in bits per byte, and their cost in forward tokens."""
    moments = load_adam_moments(checkpoint)
    curvature = [samples[i] for i in spread_over_sources(samples, shape.curvature_documents)]
    order = list(adapt(model).named())
    scales = {name: _bits_per_byte(documents) for name, documents in probes.items()}
    plain = probe_directions(model, probes, context=shape.sequence)
    gradients = {name: direction.vectors for name, direction in plain.items()}
    adapter = adapt(model)
    datainf, datainf_cost = datainf_directions(adapter, gradients, curvature, context=shape.sequence)
    ekfac, ekfac_cost = ekfac_directions(adapter, gradients, curvature, context=shape.sequence)
    found = {
        "identity": gradients,
        "adam": {name: moments.precondition(g) for name, g in gradients.items()},
        "datainf": datainf,
        "ekfac": ekfac,
    }
    spent = sum(d.forward_tokens for d in plain.values()) + datainf_cost + ekfac_cost
    rows = [
        scales[name] * torch.cat([_own(found[p][name], parameter).flatten() for parameter in order])
        for p in PRECONDITIONERS
        for name in probes
    ]
    return torch.stack(rows), spent


def _bits_per_byte(documents: Sequence[TokenizedDocument]) -> float:
    """What a nat per token of these documents is in bits per byte."""
    return sum(len(d.ids) - 1 for d in documents) / sum(d.bytes for d in documents) / log(2)


def _own(vectors: Mapping[str, torch.Tensor], parameter: str) -> torch.Tensor:
    return vectors[parameter] if parameter in vectors else vectors[parameter.removeprefix("model.")]


def load_benefits(out: Path) -> list[Benefits]:
    """All checkpoints that are done, by reference and step."""
    found = []
    for file in sorted((out / "influence").glob("*.npz")):
        reference, step = file.stem.rsplit("-step-", 1)
        with np.load(file) as data:
            found.append(
                Benefits(
                    reference,
                    int(step),
                    data["sources"],
                    data["tokens"],
                    data["loss"],
                    data["norm"],
                    tuple(data["probes"].tolist()),
                    data["benefit"],
                    data["products"],
                    float(data["forward_tokens"]),
                    float(data["seconds"]),
                )
            )
    return sorted(found, key=lambda b: (b.reference, b.step))
