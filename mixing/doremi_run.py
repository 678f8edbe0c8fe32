"""The runs of DoReMi (`mixing.doremi`): a reference model, then a proxy that is trained on its excess losses.

    runs/reference/  a proxy run on the reference mixture, as `mixing.runs` makes it, measured on the probes
    proxy/           the proxy's training; each row of metrics.jsonl has `domain_weights` and `excess` by source
    doremi.json      written last: the averaged weights, their course, what the diagnostics say

Both start from the same weights and read the same batches, drawn from the reference mixture, so that a loss is
compared with that of the very same token. Each update of the proxy costs two more forward passes, of itself and of
the reference model: 5/3 of an ordinary update. A killed study goes on from its last checkpoints with the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curation.atomic import hash_value, read_json, write_json
from curation.errors import DataError, RecipeError
from mixing.doremi import (
    ETA,
    SMOOTHING,
    DomainWeights,
    excess_losses,
    stability,
    start_weights,
    token_weights,
    update_weights,
)
from mixing.mixture import check_weights, normalised
from mixing.proxy import ProxyRun, ProxySettings, open_sources, run_settings
from mixing.runs import run_proxies
from training.distributed import choose_device
from training.loop import train
from training.losses import IGNORED
from training.model import Decoder
from training.order import Batch, DataOrder, MixtureSchedule, Phase
from training.result import read_result
from training.run_log import read_rows
from training.start import load_start, start_hash
from training.update import token_losses

REFERENCE, RUNS, PROXY, RESULT = "reference", "runs", "proxy", "doremi.json"
POINTS = 200
"""Moments of the weights' course that doremi.json keeps; all of them are in the proxy's log."""


@dataclass(frozen=True)
class DoremiSettings:
    """seed: of the weights' draw and of the data order; eta, smoothing: Algorithm 1's step and its c."""

    seed: int = 0
    eta: float = ETA
    smoothing: float = SMOOTHING


class DomainWeigher:
    """Group-DRO weights of a batch's tokens from the proxy's excess over a reference model (`BatchWeigher`).

    order     : names the source of each row
    reference : in evaluation, on the device of the proxy
    """

    def __init__(
        self,
        order: DataOrder,
        reference: Decoder,
        reference_hash: str,
        doremi: DoremiSettings,
        *,
        micro_batch_sequences: int | None = None,
        precision: str = "float32",
    ) -> None:
        self.sources = tuple(sorted(order.sources))
        self.weights: DomainWeights = start_weights(len(self.sources))
        self._order, self._reference, self._hash, self._doremi = order, reference, reference_hash, doremi
        self._how: dict[str, Any] = {
            "micro_batch_sequences": micro_batch_sequences,
            "precision": precision,
        }
        # Wrong settings are refused here, not after the reference model was asked.
        update_weights(self.weights, self.weights.excess, eta=doremi.eta, smoothing=doremi.smoothing)

    def describe(self) -> Mapping[str, Any]:
        """The reference model, eta and smoothing."""
        return {
            "method": "doremi",
            "reference": self._hash,
            "eta": self._doremi.eta,
            "smoothing": self._doremi.smoothing,
        }

    def resume(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add up the weights of the log's rows, in their order: the same bits as if never stopped."""
        m = len(self.sources)
        self.weights = start_weights(m)
        for row in rows:
            current = np.array([row["domain_weights"][name] for name in self.sources])
            excess = np.array([row["excess"][name] for name in self.sources])
            self.weights = DomainWeights(
                current, self.weights.total + current, excess, self.weights.updates + 1
            )

    def weigh(self, model: Decoder, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Move the domain weights by this batch's excess losses, and weigh its tokens by them."""
        labelled = (batch.labels != IGNORED).numpy()
        turns = [self._order.turn(batch.first + row)[0] for row in range(len(batch.labels))]
        rows = np.array([self.sources.index(name) for name in turns])
        source = np.broadcast_to(rows[:, None], labelled.shape)[labelled]
        own = token_losses(model, batch, **self._how).double().cpu().numpy()[labelled]
        theirs = token_losses(self._reference, batch, **self._how).double().cpu().numpy()[labelled]
        excess = excess_losses(own, theirs, source, self.weights.excess)
        self.weights = update_weights(
            self.weights, excess, eta=self._doremi.eta, smoothing=self._doremi.smoothing
        )
        weights = np.zeros(labelled.shape)
        weights[labelled] = token_weights(self.weights.current, source)
        columns = {"domain_weights": self._by_source(self.weights.current), "excess": self._by_source(excess)}
        return torch.from_numpy(weights).to(model.output_weight.device), columns

    def _by_source(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self.sources, values.tolist(), strict=True))


def run_doremi(
    settings: ProxySettings,
    folder: Path | str,
    *,
    reference: Mapping[str, float] | None = None,
    doremi: DoremiSettings | None = None,
) -> dict[str, Any]:
    """Train both models into `folder` and return what doremi.json holds; `mixing.fit(method="doremi")` reads it.

    settings  : of both runs; settings.probes measure the reference model only
    reference : mixture that both read, by source; uniform unless given. Sources of weight 0 take no part

    Finished, it does nothing; killed, it continues. Raises RecipeError for a mixture or settings that cannot be.
    """
    folder, chosen = Path(folder), doremi or DoremiSettings()
    given = dict(reference) if reference is not None else dict.fromkeys(settings.tokens, 1.0)
    weights = {name: share for name, share in normalised(given).items() if share > 0}
    check_weights(weights, where="reference mixture")
    if len(weights) < 2:
        raise RecipeError(
            "DoReMi weighs sources against each other, and the reference mixture has one",
            where="reference mixture",
            remedy="Give two sources or more a share",
        )
    first = run_settings(ProxyRun(REFERENCE, weights, chosen.seed), settings)
    # The proxy's last checkpoint is of no use to anyone; the reference model's is what the proxy is held against.
    shared = replace(settings, keep="weights")
    run = ProxyRun(REFERENCE, weights, chosen.seed)
    (made,) = run_proxies([run], shared, folder / RUNS, description="DoReMi's reference model")
    trained = read_result(made.folder / "train").final
    sources = open_sources(run, settings)
    phase = Phase("proxy", first.steps * first.batch_sequences, dict(weights))
    schedule = MixtureSchedule((phase,), seed=chosen.seed, block=settings.block)
    order = DataOrder(schedule, sources, first.sequence_tokens)
    training = replace(first, evaluate_steps=(), checkpoint_steps=())
    out = folder / PROXY
    weigher = DomainWeigher(
        order,
        load_start(trained).eval().to(choose_device(training.device)),
        start_hash(trained) or "",
        chosen,
        micro_batch_sequences=training.micro_batch_sequences,
        precision=training.precision,
    )
    done = train(
        settings.model,
        order,
        training,
        out,
        init_from=settings.init_from,
        progress_label="DoReMi's proxy",
        weigher=weigher,
    )
    record = _record(read_rows(out / "metrics.jsonl"), weights, chosen, weigher.sources)
    record |= {
        "budget_tokens": done.tokens,
        "flops": made.flops + made.evaluation_flops + done.flops * 5 / 3,
        "inputs": hash_value(read_json(out / "training.json")),
    }
    write_json(folder / RESULT, record)
    return record


def _record(
    rows: Sequence[Mapping[str, Any]],
    reference: Mapping[str, float],
    doremi: DoremiSettings,
    sources: tuple[str, ...],
) -> dict[str, Any]:
    if not rows:
        raise DataError("The proxy's log has no updates", where="metrics.jsonl", remedy="Run DoReMi again")
    history = np.array([[row["domain_weights"][name] for name in sources] for row in rows])
    total = np.zeros(len(sources))
    for current in history:  # in the order of the updates, as `DomainWeights` adds them
        total = total + current
    shown = np.unique(np.linspace(0, len(rows) - 1, min(POINTS, len(rows))).round().astype(int))
    return {
        "schema": 1,
        "method": "doremi",
        "weights": dict(zip(sources, (total / len(rows)).tolist(), strict=True)),
        "notes": list(stability(history, sources)),
        "reference": dict(reference),
        "seed": doremi.seed,
        "eta": doremi.eta,
        "smoothing": doremi.smoothing,
        "updates": len(rows),
        "trajectory": {
            "step": [int(rows[i]["step"]) for i in shown],
            "weights": {name: history[shown, j].tolist() for j, name in enumerate(sources)},
            "excess": {name: [float(rows[i]["excess"][name]) for i in shown] for name in sources},
        },
    }
