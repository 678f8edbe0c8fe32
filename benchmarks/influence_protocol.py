"""What the paper's whole protocol costs (3 domain models x 10 checkpoints), and a sample in its place.

    python -m benchmarks.influence_protocol models --out F      # real text, three domain models, 30 checkpoints
    python -m benchmarks.influence_protocol cost --out F        # CPU seconds of few and of more documents, and of F
    python -m benchmarks.influence_protocol sample --out F      # weights within two points from an adaptive sample
    python -m benchmarks.influence_protocol truth --out F       # all documents at all checkpoints; goes on if stopped
    python -m benchmarks.influence_protocol table --out F [--write]

`truth` stops after `--seconds` (130), and every part keeps what it did in F. Documents are short pieces of six
real sources and of made-up noise, thousands of each; a domain model reads two of the real ones. F is one forward
pass with the losses of one of those models over one document, measured in the same process.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.measure import CORPORA, machine, publish, table
from benchmarks.study.corpora import cut, real_sources
from curation.atomic import read_json, write_json
from curation.memory import keep_freed_memory
from curation.progress import set_progress_mode
from mixing.influence import (
    AssemblySettings,
    CheckpointJob,
    InfluenceSettings,
    SampleDocument,
    SampleStore,
    Stopping,
    adapt,
    adaptive_influence,
    densities,
    influence_at_checkpoints,
    joint_benefit,
    positive_weights,
    write_store,
)
from mixing.influence.adapters import scoring
from mixing.influence.benefit_tables import read_record
from mixing.influence.decoder_twin import decoder_twin
from mixing.influence.documents import BatchPlan
from mixing.influence.loading import load_reference
from training.huggingface import save_huggingface
from training.losses import linear_cross_entropy
from training.model import Decoder, ModelConfig
from training.tokenizer import train_tokenizer

DOMAINS = {
    "code": ("forum", "python"),
    "mathematics": ("math_books", "word_problems"),
    "knowledge": ("medical", "wiki"),
}
SOURCES = (*sorted(s for pair in DOMAINS.values() for s in pair), "noise")
CHECKPOINTS, UPDATES, ROWS = (
    10,
    20,
    32,
)  # of each model: checkpoints, updates between two, documents an update
PIECE, EACH, PROBE, VOCABULARY = 160, 4000, 16, 768
COSTED = (256, 1024)  # documents whose cost is measured: the difference is what documents cost
HALF_WIDTH = 0.02
SETTINGS = InfluenceSettings(context=128, part_documents=2048)
CONFIG = ModelConfig(VOCABULARY, 64, 2, heads=2, kv_heads=1, head_dim=32, ffn_dim=192, max_positions=128)


def make_models(out: Path) -> None:
    """Store of samples, probes, and `models/<capability>/step-N` of three models trained from scratch."""
    pieces: dict[str, list[str]] = {}
    for name, files in real_sources(CORPORA).items():
        if name in SOURCES:
            found = dict.fromkeys(p for _, text in files for p in cut(text, PIECE))
            order = np.random.default_rng(0).permutation(len(found))
            every = list(found)
            pieces[name] = [every[i] for i in order[: EACH + 2 * PROBE]]
    tokenizer = train_tokenizer((t for p in pieces.values() for t in p[:1500]), VOCABULARY, out / "tokenizer")

    def documents(name: str) -> list[SampleDocument]:
        found = tokenizer(pieces[name], add_special_tokens=False)["input_ids"]
        ends = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
        return [
            SampleDocument(f"{name}-{i}", name, np.array(ends[0] + ids + ends[1], np.int32))
            for i, ids in enumerate(found)
        ]

    split = {name: documents(name) for name in SOURCES}
    write_store(out / "samples", (d for name in SOURCES for d in split[name][2 * PROBE :]))
    for capability, names in DOMAINS.items():
        write_store(out / "probes" / capability, (d for name in names for d in split[name][:PROBE]))
        train_domain(out / "models" / capability, [d for name in names for d in split[name][2 * PROBE :]])


def train_domain(folder: Path, documents: list[SampleDocument]) -> None:
    """AdamW, random documents, a checkpoint every UPDATES updates."""
    model, rng = Decoder(CONFIG).init_weights(0), np.random.default_rng(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    adapter = adapt(model)
    for step in range(1, CHECKPOINTS * UPDATES + 1):
        rows = [documents[i] for i in rng.integers(len(documents), size=ROWS)]
        batch = next(iter(plan_of(rows, 10**6)))
        hidden = adapter.hidden(batch).flatten(0, 1)
        loss = linear_cross_entropy(hidden, model.output_weight, batch.labels.flatten(), reduction="mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % UPDATES == 0:
            save_huggingface(model, folder / f"step-{step}")
    print(f"{folder.name}: loss {loss.item():.2f}")


def plan_of(documents: list[SampleDocument], batch_tokens: int = SETTINGS.batch_tokens) -> BatchPlan:
    return BatchPlan(
        documents,
        context=SETTINGS.context,
        windows="first",
        reduction="mean",
        batch_tokens=batch_tokens,
        device=torch.device("cpu"),
    )


def jobs_of(out: Path) -> list[CheckpointJob]:
    """30: each model at each checkpoint, asked about its own capability."""
    return [
        CheckpointJob(out / "models" / c / f"step-{s * UPDATES}", "domain", s * UPDATES, (c,))
        for c in DOMAINS
        for s in range(1, CHECKPOINTS + 1)
    ]


def probes_of(out: Path) -> dict[str, list[SampleDocument]]:
    return {c: SampleStore(out / "probes" / c)[:] for c in DOMAINS}


def timed(work: Callable[[], object]) -> float:
    """CPU seconds."""
    began = time.process_time()
    work()
    return time.process_time() - began


def seconds_of_f(out: Path, documents: list[SampleDocument]) -> float:
    """CPU seconds of a forward pass with losses over `documents`: the faster model, in the fastest batches."""
    model = adapt(load_reference(jobs_of(out)[-1].checkpoint))
    twin = decoder_twin(model)
    assert twin is not None
    best = []
    for adapter, batch_tokens in product((model, twin.adapter), (1024, SETTINGS.batch_tokens)):
        plan = plan_of(documents, batch_tokens)
        with scoring(adapter), torch.no_grad():

            def work(adapter: torch.nn.Module = adapter, plan: BatchPlan = plan) -> None:
                for batch in plan:
                    adapter(batch)

            work()
            best.append(sorted(timed(work) for _ in range(3))[1])
    return min(best)


def measure_cost(out: Path) -> None:
    """The whole protocol on few and on more documents, everything included."""
    store, probes = SampleStore(out / "samples"), probes_of(out)
    rng, seconds = np.random.default_rng(2), []
    for count in COSTED:
        chosen = [store[i] for i in rng.choice(len(store), count, replace=False)]
        at = out / "cost" / f"{count}-{time.time_ns()}"
        seconds.append(timed(partial(influence_at_checkpoints, jobs_of(out), probes, chosen, at, SETTINGS)))
    # In the end, so that F is of the same minute; `chosen` are the more numerous documents.
    f = seconds_of_f(out, chosen) / len(chosen)
    each = (seconds[1] - seconds[0]) / (COSTED[1] - COSTED[0])
    found = {"f": f, "each": each / f, "fixed": (seconds[0] - COSTED[0] * each) / f, "seconds": seconds}
    files = sorted(at.glob("*.parquet"))
    found["engines"] = sorted({read_record(file)["engine"] for file in files})
    found["machine"] = machine("torch", "transformers")
    write_json(out / "cost.json", found)
    print(found)


def measure_sample(out: Path) -> None:
    """Weights within HALF_WIDTH by an adaptive sample of all documents, in CPU seconds and in F."""
    store = SampleStore(out / "samples")
    at = out / "sampled" / str(time.time_ns())
    found = []

    def work() -> None:
        stopping, assembly = Stopping(half_width=HALF_WIDTH), AssemblySettings()
        found.append(
            adaptive_influence(jobs_of(out), probes_of(out), store, at, SETTINGS, assembly, stopping)
        )

    seconds = timed(work)
    documents = [store[i] for i in np.random.default_rng(3).choice(len(store), 512, replace=False)]
    result = {
        "seconds": seconds,
        "f": seconds_of_f(out, documents) / len(documents),
        "units": found[0].sampled.units,
        "documents": len(store),
        "counted": found[0].forward_tokens / found[0].full_tokens,
        **found[0].sampled.record(),
        "machine": machine("torch", "transformers"),
    }
    write_json(out / "sample.json", result)
    print({k: v for k, v in result.items() if k not in ("weights", "looks")})


def measure_truth(out: Path, until: float) -> None:
    """All documents at all checkpoints; returns when `until` has come, and goes on from there when called again."""
    store, probes, began = SampleStore(out / "samples"), probes_of(out), time.process_time()
    state = read_json(out / "truth.json") if (out / "truth.json").exists() else {"seconds": 0.0}
    for job in jobs_of(out):
        if time.monotonic() > until:
            break
        influence_at_checkpoints([job], probes, store, out / "full", SETTINGS)
    state["seconds"] += time.process_time() - began
    files = [job.file(out / "full", c) for job in jobs_of(out) for c in job.capabilities]
    state["checkpoints"] = sum(file.exists() for file in files)
    if all(file.exists() for file in files):
        joint = joint_benefit(pa.concat_tables([pq.read_table(file) for file in files]))
        state["weights"] = positive_weights(densities(joint))
    write_json(out / "truth.json", state)
    print(state)


def section(out: Path) -> str:
    """What was found, as a section of docs/benchmarks.md."""
    cost, sample = read_json(out / "cost.json"), read_json(out / "sample.json")
    count = sample["documents"]
    whole = cost["fixed"] / count + cost["each"]
    share = sample["seconds"] / sample["f"] / count / whole
    rows = [
        ("a document, 30 directions", f"{cost['each']:.1f} F", "60 F"),
        ("directions, pilots, models read: all together", f"{cost['fixed']:,.0f} F", ""),
        (f"so the protocol for {count:,} documents", f"{whole:.1f} F a document", "60 F"),
        ("weights within 2 points by a sample", f"{100 * share:.1f} % of that", "5 %"),
        ("the same by the run's own count of tokens", f"{100 * sample['counted']:.1f} %", ""),
    ]
    scored = ", ".join(f"{n} {u}" for n, u in sample["units"].items())
    text = (
        "## Influence: the whole protocol, and a sample in its place\n\n"
        f"Three domain models ({CONFIG.layers} layers, {CONFIG.dim} wide, {VOCABULARY} tokens of vocabulary, "
        f"trained from scratch) at {CHECKPOINTS} checkpoints each, one direction a checkpoint (identity, engine "
        f"{', '.join(cost['engines'])}); {count:,} pieces of {PIECE} characters of six real sources and of noise. CPU "
        "time, one thread; F is the fastest forward pass with losses of the last model (transformers or our decoder, "
        "1,024 or 4,096 tokens at a time) over one document, in the same process. A document's cost is the difference "
        f"of {COSTED[1]} and {COSTED[0]} documents.\n\n"
        + table(["", "measured", "goal"], rows)
        + f"\n{sample['why']}. Scored: {scored}; looks: {len(sample['looks'])}.\n"
    )
    if (out / "truth.json").exists():
        truth = read_json(out / "truth.json")
        if "weights" in truth:
            lines = [
                [
                    w["source"],
                    f"{w['weight']:.3f}",
                    f"{w['low']:.3f} to {w['high']:.3f}",
                    f"{truth['weights'][w['source']]:.3f}",
                ]
                for w in sample["weights"]
            ]
            text += "\nAgainst all documents at all 30 checkpoints, at a level of 95 %:\n\n"
            text += table(["source", "sampled weight", "interval", "weight of all"], lines)
    return text + f"\nCost: {cost['machine']}. Sample: {sample['machine']}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["models", "cost", "sample", "truth", "table"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=130)
    parser.add_argument("--write", action="store_true", help="put the section into docs/benchmarks.md")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.seconds
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    set_progress_mode("quiet")
    keep_freed_memory()
    out: Path = arguments.out
    if arguments.part == "models":
        make_models(out)
    elif arguments.part == "cost":
        measure_cost(out)
    elif arguments.part == "sample":
        measure_sample(out)
    elif arguments.part == "truth":
        measure_truth(out, until)
    else:
        publish("influence protocol", section(out), write=arguments.write)


if __name__ == "__main__":
    main()
