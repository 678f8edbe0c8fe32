"""Exactness and speed of influence scores, in forward passes of the same model, beside kronfluence.

    python -m benchmarks.influence prepare --width 128 --out F       # trains the model, exact values of the pilot
    python -m benchmarks.influence speed --width 128 --out F         # the engines of one width
    python -m benchmarks.influence growth --width 128 --out F        # time and memory of more samples and probes
    python -m benchmarks.influence kronfluence --width 256 --out F   # where it is installed
    python -m benchmarks.influence table --out F [--write]

Every part is short enough for a machine that is to be left alone meanwhile, and leaves what it found in F. Widths are
128, 256 and 512.

The model is a Llama of transformers of 4 layers, trained for a moment on three Markov chains; samples are of those
and of uniform noise, 256 tokens each. F is its forward pass without gradients, with the loss of each token; F of the
decoder the same through our decoder with the same weights. Times are of the scores alone, after
directions, pilot and choice of rank. F reads 512, 1,024 or 2,048 tokens at a time, whatever is fastest; the engines get
the default batches and cut them themselves. Beside them stand the model's matrix products alone, attention's left out:
what no engine of that precision can be below. bergson, dattri and TRAK were not installable beside the others and
are left out with a line. The protocol as a whole: benchmarks.influence_protocol.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.influence_kronfluence import measure_kronfluence
from benchmarks.measure import Timing, machine, paired, publish, table
from curation.atomic import read_json, write_json
from curation.memory import keep_freed_memory, peak_memory
from mixing.influence.adapters import adapt, scoring
from mixing.influence.decoder_twin import decoder_twin
from mixing.influence.directions import Direction, probe_directions
from mixing.influence.documents import BatchPlan, SampleDocument
from mixing.influence.pilot import Agreement
from mixing.influence.scorers import Scorer, score_plan
from mixing.influence.trial import Trial
from training.losses import linear_cross_entropy

TOKENS, STEPS, PROBE, PILOT = 256, 40, 12, 64
VOCABULARY = {128: 4096}
TIMED = {128: 48, 256: 24, 512: 8}  # documents of a timed pass
F_TOKENS = (512, 1024, 2048)  # of one batch of a forward pass; the fastest is taken
PRODUCT_TOKENS = 1024
CHAINS = ("chain 0", "chain 1", "chain 2")
Loaded = tuple[LlamaForCausalLM, list[SampleDocument], dict[str, list[SampleDocument]]]


def texts(vocabulary: int, count: int) -> dict[str, list[np.ndarray]]:
    """`count` rows of three Markov chains of four successors each, and of noise."""
    rng = np.random.default_rng(1)
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*CHAINS, "noise")}
    for name in CHAINS:
        after = rng.integers(0, vocabulary, (vocabulary // 4, 4))
        chances = rng.dirichlet(np.full(4, 0.5), size=vocabulary // 4).cumsum(1)
        for _ in range(count):
            row = np.zeros(TOKENS + 1, np.int64)
            row[0] = rng.integers(vocabulary)
            for at, draw in enumerate(rng.random(TOKENS), 1):
                state = row[at - 1] % len(after)
                row[at] = after[state, min(3, int((chances[state] < draw).sum()))]
            found[name].append(row)
    found["noise"] = [rng.integers(0, vocabulary, TOKENS + 1) for _ in range(count)]
    return found


def prepare(width: int, weights: Path) -> Loaded:
    """A model that has begun to learn (kept in `weights`), samples for the pilot, and a probe for each chain."""
    vocabulary, each = VOCABULARY.get(width, 8192), PILOT // 2
    rows = texts(vocabulary, STEPS + PROBE + each)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=4,
        num_attention_heads=max(width // 64, 2),
        num_key_value_heads=max(width // 128, 1),
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    twin = decoder_twin(adapt(model))
    assert twin is not None
    decoder = twin.adapter.model.requires_grad_(True)  # the same weights
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    if weights.exists():
        decoder.load_state_dict(load_file(weights))
    for step in range(0 if weights.exists() else STEPS):
        batch = torch.from_numpy(np.stack([r[step] for r in rows.values()]))
        hidden = decoder(batch[:, :-1]).flatten(0, 1)
        loss = linear_cross_entropy(hidden, decoder.output_weight, batch[:, 1:].flatten(), reduction="mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file({n: p.detach().contiguous() for n, p in decoder.named_parameters()}, weights)
    probes = {
        name: [SampleDocument(f"probe {name} {i}", name, r) for i, r in enumerate(rows[name][STEPS:][:PROBE])]
        for name in CHAINS
    }
    samples = [
        SampleDocument(f"{name} {i}", name, r)
        for i in range(each)
        for name, r in ((n, rows[n][STEPS + PROBE + i]) for n in rows)
    ]
    return model.eval(), samples, probes


def plan_of(documents: Any, batch_tokens: int = 4096) -> BatchPlan:
    """Whole documents, in the default batches."""
    return BatchPlan(
        documents,
        context=TOKENS,
        windows="first",
        reduction="mean",
        batch_tokens=batch_tokens,
        device=torch.device("cpu"),
    )


class Contest:
    """One model: its engines with their agreement, and what is to be timed."""

    def __init__(self, width: int, out: Path) -> None:
        self.width, self.out = width, out
        model, samples, probes = prepare(width, out / f"model-{width}.safetensors")
        self.model, self.samples, self.probes = model, samples, probes
        self.directions = probe_directions(model, probes)
        self.agreed: dict[str, Agreement] = {}
        self.passes: dict[str, float] = {}
        self.trials: dict[tuple[int, torch.dtype | None], Trial] = {}
        self.timed = samples[: TIMED.get(width, 8)]
        self.plan = plan_of(self.timed)
        self.adapter = adapt(model)
        twin = decoder_twin(self.adapter)
        assert twin is not None
        self.work: dict[str, Callable[[], object]] = {
            "F": self._forward(self.adapter),
            "F of the decoder": self._forward(twin.adapter),
            "F of the decoder, bfloat16": self._forward(twin.adapter, torch.bfloat16),
        }
        matrices = [p for _, p in twin.adapter.model.named_parameters() if p.dim() == 2]
        assert model.config.tie_word_embeddings  # the embedding is the output weight, so all of them multiply
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            self.work[f"products alone, there and back, {name}"] = self._products(matrices, dtype)

    def add_engines(self) -> None:
        """The engines, each after its pilot."""
        one = dict(list(self.directions.items())[:1])
        with scoring(self.adapter):
            self._add("exact, one direction", one, "ghost", None)
            self._add("difference, one direction", one, "finite_difference", None)
            for dtype in (None, torch.bfloat16):
                name = "low rank" if dtype is None else "bfloat16 low rank"
                self._add(f"{name}, one direction", one, "ghost_low_rank", dtype)
                self._add(f"{name}, three directions", self.directions, "ghost_low_rank", dtype)

    def _forward(self, adapter: Any, dtype: torch.dtype | None = None) -> Callable[[], None]:
        def work(plan: BatchPlan) -> None:
            with torch.no_grad(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                for batch in plan:
                    adapter(batch)

        tried = {n: partial(work, plan_of(self.timed, n)) for n in F_TOKENS}
        times = paired({str(n): t for n, t in tried.items()}, rounds=2)
        return tried[min(F_TOKENS, key=lambda n: times[str(n)].seconds)]

    def _products(self, matrices: list[torch.Tensor], dtype: torch.dtype) -> Callable[[], None]:
        pairs = [
            tuple(torch.randn(PRODUCT_TOKENS, size, dtype=dtype) for size in reversed(w.shape))
            for w in matrices
        ]
        weights = [w.detach().to(dtype) for w in matrices]

        def work() -> None:
            for _ in range(len(self.timed) * TOKENS // PRODUCT_TOKENS):
                for w, (x, g) in zip(weights, pairs, strict=True):
                    torch.mm(x, w.T, out=g)
                    torch.mm(g, w, out=x)
                    x.fill_(1.0)  # repeated products would overflow

        return work

    def _add(self, name: str, chosen: dict[str, Direction], engine: str, dtype: torch.dtype | None) -> None:
        vectors = [d.vectors for d in chosen.values()]
        key = len(vectors), dtype
        if key not in self.trials:
            self.trials[key] = Trial(self.adapter, vectors, self.samples, plan_of, 32, TOKENS, dtype)
            self.trials[key]._exact = self.exact()[:, : len(vectors)]  # of the float32 model, made once
        trial = self.trials[key]
        scorer, agreed, _ = trial.choose(engine)
        assert agreed is not None
        self.agreed[name], self.passes[name] = agreed, scorer.forwards

        def work(scorer: Scorer = scorer, count: int = len(vectors)) -> None:
            with scoring(self.adapter):
                score_plan(scorer, self.plan, count)

        self.work[name] = work

    def exact(self) -> np.ndarray:
        """The pilot's derivatives by forward mode for the three directions, kept on the disk."""
        file = self.out / f"exact-{self.width}.npy"
        if not file.exists():
            vectors = [d.vectors for d in self.directions.values()]
            with scoring(self.adapter):
                trial = Trial(self.adapter, vectors, self.samples, plan_of, 32, TOKENS)
                np.save(file, trial.exact())
        return np.load(file)

    def rows(self, times: dict[str, Timing]) -> list[list[str]]:
        """One line for each contestant."""
        found = []
        for name, timing in times.items():
            agreed = self.agreed.get(name)
            found.append(
                [
                    str(self.width),
                    name,
                    *(f"{1 / timing.ratio(times[base]):.2f}" for base in ("F", "F of the decoder")),
                    "" if agreed is None else f"{1 - agreed.pearson:.1e}",
                    "" if agreed is None else f"{1 - agreed.within_source:.1e}",
                    "" if agreed is None else f"{agreed.signs:.3f}",
                    f"{self.passes[name]:.2f}" if name in self.passes else "",
                ]
            )
        return found


def measure_growth(contest: Contest) -> list[str]:
    """Sentences: twice and four times the samples with the engine of three directions, and one to three probes."""
    lines = []
    with scoring(contest.adapter):
        contest._add("three", contest.directions, "ghost_low_rank", None)
        scorer, _, _ = contest.trials[3, None].choose("ghost_low_rank")
        for count in (16, 32, 64):
            began = time.process_time()
            score_plan(scorer, plan_of(contest.samples[:count]), 3)
            seconds = time.process_time() - began
            lines.append(f"{count} samples {seconds:.2f} s, peak {peak_memory() / 2**20:,.0f} MiB")
        work = {"F": contest.work["F of the decoder"]}
        for k in (1, 2, 3):
            chosen = dict(list(contest.directions.items())[:k])
            contest._add(f"{k}", chosen, "ghost_low_rank", None)
            work[f"{k}"] = contest.work[f"{k}"]
        times = paired(work, rounds=5)
    probes = ", ".join(f"{k} {1 / times[f'{k}'].ratio(times['F']):.2f}" for k in (1, 2, 3))
    return [
        f"Growth with the samples, {contest.width} wide, three directions, one process: "
        + "; ".join(lines)
        + ".",
        f"Growth with the probes, {contest.width} wide, in F of the decoder (low rank): {probes}.",
    ]


def write_table(out: Path, write: bool) -> None:
    """All parts that were run, as a section of docs/benchmarks.md."""
    rows, notes, machines = [], [], {}
    for file in sorted(out.glob("speed-*.json"), key=lambda f: int(f.stem.split("-")[1])):
        found = read_json(file)
        rows += found["rows"]
        machines[file.stem] = found["machine"]
    for file in sorted(out.glob("growth-*.json")) + sorted(out.glob("kronfluence-*.json")):
        notes += read_json(file)["notes"]
        machines[file.stem] = read_json(file)["machine"]
    for name in ("bergson", "dattri", "trak"):
        if not importlib.util.find_spec(name):
            notes.append(f"{name} is not installed: left out.")
    header = [
        "width",
        "",
        "/ F",
        "/ F of the decoder",
        "1 - Pearson",
        "1 - within source",
        "signs",
        "products / F",
    ]
    text = (
        "## Influence: cost in forward passes, and exactness\n\n"
        f"A Llama of 4 layers (transformers, sdpa), {TOKENS} tokens a sample, one thread, CPU time, median of "
        "paired rounds (`python -m benchmarks.influence`). F is its forward pass in float32 with "
        "the losses, reading 512, 1,024 or 2,048 tokens at a time, whatever is fastest; F of the decoder that of our "
        "decoder with the same weights. Agreement is with forward-mode "
        "derivatives of the model itself on 32 samples, the worst of the directions. Products alone are those with the "
        "model's matrices, forward and back to the inputs. Goals: 2.0 for one direction, 2.2 "
        "for three, 1.1 in bfloat16.\n\n"
        + table(header, rows)
        + "\n"
        + "\n\n".join([*notes, *(f"{part}: {on}" for part, on in machines.items())])
        + "\n"
    )
    publish("influence", text, write=write)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["prepare", "speed", "growth", "kronfluence", "table"])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="put the section into docs/benchmarks.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    keep_freed_memory()
    out, width = arguments.out, arguments.width
    out.mkdir(parents=True, exist_ok=True)
    if arguments.part == "table":
        write_table(out, arguments.write)
        return
    contest = Contest(width, out)
    found: dict[str, Any] = {}
    if arguments.part == "prepare":
        contest.exact()
        return
    if arguments.part == "speed":
        contest.add_engines()
        found["rows"] = contest.rows(paired(contest.work, rounds=arguments.rounds))
    elif arguments.part == "growth":
        found["notes"] = measure_growth(contest)
    else:
        found["notes"] = [measure_kronfluence(contest, arguments.rounds)]
    found["machine"] = machine("torch", "transformers", "kronfluence")
    write_json(out / f"{arguments.part}-{width}.json", found)
    print(found)


if __name__ == "__main__":
    main()
