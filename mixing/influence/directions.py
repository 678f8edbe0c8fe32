"""Probe directions v = P^-1 grad L(probe): one direction per probe set and checkpoint, made once.

With the direction fixed, the benefit of a sample is a directional derivative, grad L(x)' v: positive lowers
the loss of the probe when the model takes a step on x (METHODS 1.6, Eq. 2 with the sign that Eqs. 6 and 7
need).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from curation.atomic import read_json
from curation.errors import DataError, RecipeError
from mixing.influence.adapters import LossAdapter, adapt, scoring
from mixing.influence.datainf import DATAINF_DAMPING, datainf_directions
from mixing.influence.documents import BatchPlan, Tokenized, check_vocabulary
from mixing.influence.ekfac import ekfac_directions
from mixing.influence.explicit import weighted_gradient
from mixing.influence.scorers import Vectors, norm
from mixing.influence.texts import Samples, as_documents, document_keys

Preconditioner = Literal["identity", "adam", "datainf", "ekfac"]
SECOND = "exp_avg_sq."  # before the parameter's name in optimizer.safetensors
PRECONDITIONERS: tuple[Preconditioner, ...] = ("identity", "adam", "datainf", "ekfac")
Parameters = Literal["all", "embedding_and_output"] | Callable[[str], bool]


@dataclass(frozen=True)
class Direction:
    """A probe direction and what it was made from.

    vectors    : parameter name -> tensor; parameters that were not chosen are absent
    probe_loss : mean nats per target over the probe set
    """

    probe: str
    preconditioner: str
    vectors: Vectors
    probe_documents: int
    probe_tokens: int
    probe_loss: float
    forward_tokens: float = 0.0  # what it cost: tokens times forward passes
    probe_keys: frozenset[str] = frozenset()  # by which `score` finds probe documents among the samples

    @property
    def norm(self) -> float:
        """Euclidean length of the direction."""
        return norm(self.vectors)

    @property
    def hash(self) -> str:
        """Hex sha256 of names and numbers."""
        digest = hashlib.sha256()
        for name in sorted(self.vectors):
            digest.update(name.encode() + b"\0")
            digest.update(self.vectors[name].detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def record(self) -> dict:
        """What is written beside the scores."""
        return {
            "preconditioner": self.preconditioner,
            "hash": self.hash,
            "norm": self.norm,
            "probe_documents": self.probe_documents,
            "probe_tokens": self.probe_tokens,
            "probe_loss": self.probe_loss,
        }


@dataclass(frozen=True)
class AdamMoments:
    """Adam's running mean of squared gradients, not yet corrected for its start at zero."""

    second: Mapping[str, Tensor]
    step: int
    beta2: float
    epsilon: float

    def precondition(self, gradient: Vectors) -> Vectors:
        """v = g / (sqrt(s / (1 - beta2^step)) + epsilon): how far Adam moves for a gradient g.

        Where we differ from LESS: it divides the samples' gradients and keeps epsilon inside the root; the
        product g_x' v is the same up to epsilon. Entries whose second moment is exactly zero have never had a
        gradient (the embedding of a token that training has not met); they have no scale and are left out,
        where the formula would give them the weight 1 / epsilon.
        """
        correction = 1.0 - self.beta2**self.step
        found: Vectors = {}
        for name, g in gradient.items():
            # Hugging Face folders put the decoder's names under "model.".
            moment = self.second.get(name, self.second.get(name.removeprefix("model.")))
            if moment is None or moment.shape != g.shape:
                raise DataError(
                    f"The optimizer's state has no second moment of {name}, or one of another shape",
                    where="adam preconditioner",
                    remedy="Use the optimizer state of the same checkpoint",
                )
            moment = moment.to(g)
            scale = (moment / correction).sqrt() + self.epsilon
            found[name] = torch.where(moment > 0, g / scale, 0.0)
        return found


def choose_parameters(adapter: LossAdapter, parameters: Parameters) -> list[str]:
    """Names of the parameters that a direction covers, in the model's order."""
    names = list(adapter.named())
    if parameters == "all":
        return names
    if parameters == "embedding_and_output":
        chosen = [n for n in names if n in adapter.matrix_names()]
    elif callable(parameters):
        chosen = [n for n in names if parameters(n)]
    else:
        raise RecipeError(
            f"There is no choice of parameters {parameters!r}",
            where="influence.parameters",
            remedy="Choose all, embedding_and_output, or give a function of the parameter's name",
        )
    if not chosen:
        raise RecipeError(
            "The choice of parameters leaves none", where="influence.parameters", remedy="Widen it"
        )
    return chosen


def probe_gradient(
    model: nn.Module,
    probe: Sequence[Tokenized],
    *,
    parameters: Parameters = "all",
    context: int = 1024,
    batch_tokens: int = 4096,
    name: str = "",
) -> tuple[Vectors, float, int]:
    """Gradient of the mean loss over all targets of `probe`, that mean in nats, and their number.

    name : of the probe, for errors
    Raises DataError when it is empty, has tokens that the model lacks, or its loss is not finite.
    """
    where = f"probe {name}" if name else "influence"
    adapter = adapt(model)
    check_vocabulary(probe, adapter.vocabulary)
    plan = BatchPlan(
        probe,
        context=adapter.context(context),
        windows="all",
        reduction="corpus",
        batch_tokens=batch_tokens,
        device=adapter.device,
    )
    if plan.targets == 0:
        raise DataError(
            "The probe set is empty", where=where, remedy="Give it documents of two tokens or more"
        )
    names = choose_parameters(adapter, parameters)
    total: Vectors = {}
    loss = 0.0
    with scoring(adapter):
        for batch in plan:
            part_loss, part = weighted_gradient(adapter, batch, names)
            loss += part_loss
            for name, gradient in part.items():
                total[name] = total[name] + gradient if name in total else gradient.clone()
    if not np.isfinite(loss):
        raise DataError(
            "The loss on the probe set is not finite",
            where=where,
            remedy="Look at the checkpoint: its training may have diverged",
        )
    return total, loss, plan.targets


def probe_directions(
    model: nn.Module,
    probes: Mapping[str, Samples],
    preconditioner: Preconditioner = "identity",
    *,
    parameters: Parameters = "all",
    moments: AdamMoments | None = None,
    curvature: Samples | None = None,
    damping: float = DATAINF_DAMPING,
    context: int = 1024,
    batch_tokens: int = 4096,
    tokenizer: Any = None,
) -> dict[str, Direction]:
    """One direction for each probe set, in the order of `probes`. All share one measurement of the curvature.

    probes    : name -> documents as token ids, or texts (with the model's `tokenizer`)

    moments   : for "adam", the optimizer state of the same checkpoint (`load_adam_moments`)
    curvature : for "datainf" and "ekfac", training documents whose gradients make the curvature. "ekfac" without
                them takes the documents of all probes, which give it inputs only: its labels are drawn from the
                model. "datainf" would take their own gradients as noise to be damped, so it insists on others.
    damping   : for those two, the share of the mean curvature that is added to its diagonal
    """
    if preconditioner not in PRECONDITIONERS:
        raise RecipeError(
            f"There is no preconditioner {preconditioner!r}",
            remedy=f"Choose one of {', '.join(PRECONDITIONERS)}",
        )
    if not probes:
        raise RecipeError("There is no probe set", where="influence", remedy="Give at least one")
    adapter = adapt(model)
    gradients, facts, keys = {}, {}, {}
    documents = {
        name: as_documents(p, tokenizer, adapter.vocabulary, with_end=False, what=f"probe {name}")
        for name, p in probes.items()
    }
    for name, probe in documents.items():
        gradients[name], loss, tokens = probe_gradient(
            adapter, probe, parameters=parameters, context=context, batch_tokens=batch_tokens, name=name
        )
        facts[name] = (len(probe), tokens, loss)
        keys[name] = frozenset(key for document in probe for key in document_keys(document)[:2])
    spent = 0.0
    if preconditioner == "adam":
        if moments is None:
            raise _no_moments("the model")
        gradients = {name: moments.precondition(g) for name, g in gradients.items()}
    elif preconditioner != "identity":
        if curvature:
            measured = as_documents(curvature, tokenizer, adapter.vocabulary, with_end=True, what="curvature")
        elif preconditioner == "ekfac":
            measured = [document for probe in documents.values() for document in probe]
        else:
            raise RecipeError(
                f"The preconditioner {preconditioner} needs training documents to measure the curvature on",
                where="influence.preconditioner",
                remedy="Give `curvature`, or choose identity or adam",
            )
        solve = ekfac_directions if preconditioner == "ekfac" else datainf_directions
        gradients, spent = solve(
            adapter, gradients, measured, damping=damping, context=adapter.context(context)
        )
    return {
        name: Direction(
            name,
            preconditioner,
            v,
            *facts[name],
            forward_tokens=3.0 * facts[name][1] + spent / len(gradients),
            probe_keys=keys[name],
        )
        for name, v in gradients.items()
    }


def load_adam_moments(folder: Path | str) -> AdamMoments:
    """Second moments from `optimizer.safetensors` and `state.json` of one of the trainer's checkpoints."""
    folder = Path(folder)
    if not (folder / "optimizer.safetensors").is_file() or not (folder / "state.json").is_file():
        raise _no_moments(str(folder))
    state = read_json(folder / "state.json")
    tensors = load_file(folder / "optimizer.safetensors")
    second = {n.removeprefix(SECOND): t for n, t in tensors.items() if n.startswith(SECOND)}
    try:
        step = int(state["step"])
        training = state["settings"]["training"]
        beta2, epsilon = float(training["beta2"]), float(training["epsilon"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"The optimizer's state does not say {error}",
            where=str(folder / "state.json"),
            remedy="Use a checkpoint that this version's trainer has written",
        ) from error
    if any(name.startswith("momentum_buffer.") for name in tensors):
        raise RecipeError(
            "The model was trained with Muon, which keeps no second moments of the layers' matrices",
            where=str(folder),
            remedy="Train the models that influence is measured with by adamw, or choose another preconditioner",
        )
    if not second or step < 1:
        raise _no_moments(str(folder))
    return AdamMoments(second, step, beta2, epsilon)


def _no_moments(where: str) -> RecipeError:
    return RecipeError(
        "The adam preconditioner needs the optimizer's second moments, and there are none",
        where=where,
        remedy="Use a training checkpoint with optimizer.safetensors and state.json, or choose identity",
    )
