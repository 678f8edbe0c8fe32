"""Small worlds for the tests of proxy runs: real tokens and probes on disk, or made-up evaluations."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import write_json
from curation.documents import Document, document_id
from mixing.evaluations import EVALUATION_SCHEMA
from mixing.runs import ProxyRun, ProxySettings
from probes.capability import build_probes, without_held_out, write_probes
from training.loop import TrainSettings
from training.model import ModelConfig
from training.tokenizer import train_tokenizer
from training.tokenizing import write_tokens

CAPABILITIES = {"code": ("code",), "wiki": ("knowledge",), "noise": ()}
_WORDS = {
    "code": ["def", "return", "self", "if", "x", "=", "(", ")", "+", "for"],
    "wiki": ["the", "river", "city", "was", "in", "of", "king", "a", "north", "war"],
    "noise": ["zq", "77", "%%", "xk", "##", "qq", "91", "vv", "@@", "pl"],
}


def text(source: str, index: int) -> str:
    rng = np.random.default_rng([len(source), index])
    return " ".join(rng.choice(_WORDS[source], size=60))


def make_settings(
    folder: Path, *, steps: int = 6, evaluate: tuple[int, ...] = (3, 6), **train
) -> ProxySettings:
    """Three sources of real text, tokenized, with probes for code and knowledge, and a model of 2 layers."""
    documents = {
        name: [Document(document_id(name, text(name, i)), text(name, i), name) for i in range(30)]
        for name in _WORDS
    }
    probes = build_probes(documents, CAPABILITIES, share=0.15, seed=0)
    tokenizer = train_tokenizer(
        [d.text for d in documents["code"] + documents["wiki"]], 300, folder / "tokenizer"
    )
    tokens = {}
    for name, chosen in documents.items():
        tokens[name] = folder / "tokens" / name
        pairs = [(d.id, d.text) for d in without_held_out(chosen, probes)]
        write_tokens(pairs, tokenizer, tokens[name], name)
    settings = TrainSettings(
        sequence_tokens=32,
        batch_sequences=4,
        steps=steps,
        learning_rate=3e-3,
        evaluate_steps=evaluate,
        **train,
    )
    return ProxySettings(
        model=ModelConfig(300, 32, 2, heads=2, kv_heads=1, head_dim=16, ffn_dim=64, max_positions=64),
        train=settings,
        tokens=tokens,
        probes=write_probes(folder / "probes", probes),
        tokenizer=folder / "tokenizer",
        block=8,
    )


def write_finished(folder: Path, run: ProxyRun, evaluations: dict[int, dict[str, dict[str, float]]]) -> None:
    """A finished run with made-up nats: {step: {probe: {document: nats}}}; every document has 100 bytes."""
    metrics = []
    for step, probes in evaluations.items():
        rows = [
            {"probe": probe, "id": name, "source": "s", "tokens": 30, "bytes": 100, "nats": nats}
            for probe, documents in probes.items()
            for name, nats in documents.items()
        ]
        path = folder / run.run_id / "evaluations" / f"step-{step}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=EVALUATION_SCHEMA), path)
        for probe, documents in probes.items():
            mean = float(np.mean(list(documents.values())))
            metrics.append(
                {
                    "run_id": run.run_id, "step": step, "probe": probe,
                    "bits_per_byte": mean / 100 / math.log(2), "nats_per_token": mean / 30,
                }
            )  # fmt: skip
    costs = {"steps": max(evaluations), "tokens": 1000, "flops": 1.0, "evaluation_flops": 1.0, "seconds": 1.0}
    result = {"fingerprint": "x", "run": asdict(run), **costs, "cpu_seconds": 1.0, "metrics": metrics}
    write_json(folder / run.run_id / "result.json", result)
