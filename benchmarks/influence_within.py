"""Does influence tell the documents of one source apart? Scores of random halves, counts of sources held constant.

    python -m benchmarks.influence_protocol models --out F     # the text
    python -m benchmarks.influence_within train --out F        # goes on if stopped; about two minutes of CPU time
    python -m benchmarks.influence_within table --out F [--write]

Of each source half of its documents is drawn, always the same number, and a model is trained from scratch on them; so
neither the shares of sources nor the size say anything, which is what "source counts regressed out" asks for. Predicted
is minus the sum of the joint benefits of the documents that were drawn, at checkpoints of a model that read them all.
The seeds of the trainings differ in initial weights and order; their agreement bounds what any prediction can reach.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy import stats

from benchmarks.influence_protocol import CONFIG, SOURCES, plan_of, probes_of
from benchmarks.measure import machine, publish, table
from curation.progress import set_progress_mode
from mixing.influence import SampleDocument, SampleStore, adapt, probe_directions, score
from mixing.influence.adapters import scoring
from training.losses import linear_cross_entropy
from training.model import Decoder

EACH, HALVES, SEEDS, PROXIES = (
    40,
    24,
    2,
    2,
)  # documents a source, drawn halves, trainings of each, models asked
UPDATES, ROWS, RATE, KEPT = 72, 16, 3e-3, 6
DRAWS = 2000


def documents_of(out: Path) -> list[SampleDocument]:
    """The first EACH documents of every source."""
    store, found = SampleStore(out / "samples"), []
    count = dict.fromkeys(SOURCES, 0)
    for at in range(len(store)):
        document = store[at]
        if count[document.source] < EACH:
            count[document.source] += 1
            found.append(document)
    return found


def halves(documents: list[SampleDocument]) -> np.ndarray:
    """bool [HALVES, documents]: half of each source's, every second draw the complement of the one before."""
    rng, names = np.random.default_rng(5), np.array([d.source for d in documents])
    drawn = np.zeros((HALVES, len(documents)), dtype=bool)
    for at in range(0, HALVES, 2):
        for name in SOURCES:
            own = rng.permutation((names == name).nonzero()[0])
            drawn[at, own[: len(own) // 2]] = True
            drawn[at + 1, own[len(own) // 2 :]] = True
    return drawn


def train(documents: list[SampleDocument], seed: int, keep: int = 1) -> list[Decoder]:
    """Epochs in random order; the model at `keep` evenly spaced steps."""
    model, rng = Decoder(CONFIG).init_weights(seed), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    adapter, kept = adapt(model), []
    order = itertools.chain.from_iterable(rng.permutation(len(documents)) for _ in itertools.count())
    for step in range(1, UPDATES + 1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / 8) * max(0.05, 1 - step / UPDATES)
        batch = next(iter(plan_of([documents[i] for i in itertools.islice(order, ROWS)], 10**6)))
        hidden = adapter.hidden(batch).flatten(0, 1)
        loss = linear_cross_entropy(hidden, model.output_weight, batch.labels.flatten(), reduction="mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % (UPDATES // keep) == 0:
            copied = Decoder(CONFIG)
            copied.load_state_dict(model.state_dict())
            kept.append(copied)
    return kept


def probe_losses(model: Decoder, out: Path) -> list[float]:
    """Mean nats per target of each capability's probe."""
    found, adapter = [], adapt(model)
    with scoring(adapter), torch.no_grad():
        for documents in probes_of(out).values():
            plan = plan_of(documents)
            found.append(sum(float(adapter(b).sum()) for b in plan) / plan.targets)
    return found


def run(out: Path, until: float) -> None:
    documents, folder = documents_of(out), out / "within"
    folder.mkdir(exist_ok=True)
    for seed in range(SEEDS):
        for at, drawn in enumerate(halves(documents)):
            file = folder / f"loss-{seed}-{at}.npy"
            if not file.exists() and time.monotonic() < until:
                model = train([d for d, taken in zip(documents, drawn, strict=True) if taken], 100 + seed)[0]
                np.save(file, probe_losses(model, out))
    for seed in range(PROXIES):
        file = folder / f"benefit-{seed}.npy"
        if not file.exists() and time.monotonic() < until:
            np.save(file, benefits(documents, seed, out))


def benefits(documents: list[SampleDocument], seed: int, out: Path) -> np.ndarray:
    """[preconditioners, checkpoints, documents, capabilities], times the tokens of the document."""
    found = []
    for name in ("identity", "ekfac"):
        part = []
        for model in train(documents, seed, KEPT):
            directions = probe_directions(model, probes_of(out), name, curvature=documents)
            scores = score(model, documents, directions, context=128)
            part.append(scores.benefit * scores.tokens[:, None])
        found.append(part)
    return np.array(found)


def section(out: Path) -> str:
    documents, folder = documents_of(out), out / "within"
    drawn = halves(documents).astype(float)
    losses = np.array(
        [[np.load(folder / f"loss-{seed}-{at}.npy") for at in range(HALVES)] for seed in range(SEEDS)]
    )
    asked = np.mean([np.load(folder / f"benefit-{seed}.npy") for seed in range(PROXIES)], axis=0)
    mean = losses.mean(0)
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, HALVES // 2, (DRAWS, HALVES // 2))  # a draw and its complement stay together
    rows = []

    def line(name: str, predicted: np.ndarray, truth: np.ndarray) -> None:
        def of(at: np.ndarray) -> list[float]:
            return [stats.spearmanr(predicted[at, c], truth[at, c])[0] for c in range(truth.shape[1])]

        drawings = [np.mean(of(np.concatenate([2 * p, 2 * p + 1]))) for p in pairs]
        low, high = np.quantile(drawings, (0.05, 0.95))
        each = of(np.arange(HALVES))
        rows.append(
            [name, " / ".join(f"{v:.2f}" for v in each), f"{np.mean(each):.2f}", f"{low:.2f} to {high:.2f}"]
        )

    line("ceiling: the other seed's losses", losses[0], losses[1])
    weights = np.arange(1, KEPT + 1) / sum(range(1, KEPT + 1))
    for at, name in enumerate(("identity", "ekfac")):
        for rule, factor in (("by step", weights), ("last", np.eye(KEPT)[-1])):
            line(f"{name}, {rule}", -(drawn @ np.einsum("t,tdc->dc", factor, asked[at])), mean)
    counts = np.array([plan_of([d]).targets for d in documents])
    line("tokens drawn, no influence", -np.repeat((drawn @ counts)[:, None], 3, axis=1), mean)
    spread = " / ".join(f"{v:.4f}" for v in mean.std(0))
    return (
        "## Within a source\n\n"
        f"{len(SOURCES)} sources of {EACH} documents (the text of `benchmarks.influence_protocol`, "
        f"{CONFIG.layers} layers, {CONFIG.dim} wide), {HALVES} random halves with the same number of documents of each "
        f"source, {SEEDS} trainings of each from scratch ({UPDATES} updates of {ROWS} documents), influence at {KEPT} "
        f"checkpoints of {PROXIES} models that read all documents. Spearman over the halves of predicted and actual "
        "probe loss (mean of the seeds), 90 % intervals by bootstrap over pairs of complementary halves, the mean of "
        "three capabilities.\n\n"
        + table(["predictor", "code / mathematics / knowledge", "mean", "90 %"], rows)
        + f"\nThe halves' losses differ by a standard deviation of {spread} nats.\n\n{machine('torch', 'scipy')}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["train", "table"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--write", action="store_true", help="put the section into docs/fidelity.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    set_progress_mode("quiet")
    if arguments.part == "train":
        run(arguments.out, time.monotonic() + arguments.seconds)
    else:
        document = Path(__file__).parents[1] / "docs" / "fidelity.md"
        publish("fidelity within", section(arguments.out), write=arguments.write, document=document)


if __name__ == "__main__":
    main()
