"""A small run folder as the stages leave it, with invented but plausible numbers: what the page's tests read.

Mixtures, the comparison and the influence summary are written by the code that writes them in a run, so that their
shape cannot drift from what the page reads; leave-one-out, which needs trained models, is spelled out.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import write_json, write_text
from curation.documents import Document, document_id, write_documents
from mixing.comparison import compare
from mixing.evidence import Evidence
from mixing.fit.evidence_of import evidence_of
from mixing.fit.search import Simplex
from mixing.fit.tables import ProxyTable
from mixing.influence.score import BENEFIT_SCHEMA
from mixing.influence.summary import summarise
from mixing.mixture import make_mixture, write_mixture
from mixing.posterior import fit_posterior, pareto_front

EVIL_SOURCE = "<script>alert(1)</script>"
EVIL_TEXT = "Look: </script><img src=x onerror=alert(2)> </pre><svg onload=alert(3)> \u202egnp.exe\x07 &amp; {{ 7*7 }}"
CAPABILITIES = ("code", "mathematics", "knowledge")
# Source, its capabilities, and what it is worth to code, mathematics and knowledge (bits per byte).
SOURCES: dict[str, tuple[tuple[str, ...], tuple[float, float, float]]] = {
    "standard_library": (("code",), (0.081, 0.004, 0.012)),
    "sympy_source": (("code", "mathematics"), (0.034, 0.058, -0.003)),
    "docstrings": (("code", "knowledge"), (0.021, 0.009, 0.027)),
    "language_reference": (("knowledge",), (0.008, 0.002, 0.064)),
    "readmes": (("knowledge",), (0.003, -0.001, 0.041)),
    "word_problems": (("mathematics",), (-0.009, 0.093, -0.006)),
    "licences_and_tables": ((), (-0.014, -0.012, -0.019)),
}
TOKENS = 420_000
BUDGET = 600_000
STEPS = (73, 146, 219, 293)
TEXTS = (
    "def bisect_left(a, x, lo=0, hi=None):\n    '''Return the index where to insert item x in list a.'''\n    ...",
    "Maria has 7 boxes of 12 pencils and gives 15 away. 7 * 12 = 84, and 84 - 15 = 69. The answer is 69.",
    "The with statement is used to wrap the execution of a block with methods defined by a context manager.",
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software",
    "0.1371  0.2240  0.9915\n0.5120  0.0021  0.3377\n0.8842  0.1030  0.4404",
)


def make_run(folder: Path, *, evil: bool = True, effect: float = -0.006) -> Path:
    """Write the run folder; `effect` is what the leave-one-out mixture does to bits per byte against uniform."""
    sources = dict(SOURCES)
    if evil:
        sources[EVIL_SOURCE] = (("knowledge",), (0.001, 0.0, 0.011))
    rng = np.random.default_rng(7)
    _recipe(folder, sources)
    ids = _documents(folder, sources, rng)
    _curation(folder, sources, ids)
    effects = _leave_one_out(folder, sources, rng)
    _evaluation(folder, sources, ids, rng)
    _influence(folder, sources, ids, effects, rng)
    _tokens(folder, sources, ids)
    _mixtures(folder, sources, effects)
    write_json(folder / "front" / "pareto.json", {"schema": 1, "runs": 18, **_front(tuple(sources))})
    _comparison(folder, sources, rng, effect)
    _training(folder, rng)
    _compression(folder, sources)
    _stages(folder)
    return folder


def _recipe(folder: Path, sources: dict) -> None:
    rows = "\n".join(
        f"  - {{name: {json.dumps(name)}, kind: python, capabilities: [{', '.join(caps)}]}}"
        for name, (caps, _) in sources.items()
    )
    write_text(
        folder / "recipe.yaml",
        f"""mixwright: 1
name: quickstart
seed: 0
sources:
{rows}
curation:
  labels:
    educational:
      - {{name: worked, label: 5, sources: [word_problems], why: A problem with each step of its solution is a lesson.}}
      - {{name: shuffled, label: 0, corrupt: shuffle_words, why: Words out of order teach nothing.}}
    reasoning:
      - {{name: argued, label: 1, pattern: '\\b(because|therefore)\\b', minimum_matches: 2, why: It gives reasons.}}
influence: {{checkpoint_weights: step}}
final:
  phases:
    - {{name: broad, share: 0.6, mixture: uniform}}
    - {{name: focused, share: 0.4, mixture: recommended}}
""",
    )
    write_json(
        folder / "settings.json",
        [
            {
                "setting": "negative source sums",
                "value": "clipped, floor 0 of uniform",
                "paper": "unstated; Eq. 6 has no weights then",
                "why": "Clipped sources are named.",
            },
            {
                "setting": "preconditioner P",
                "value": "adam",
                "paper": "first-order approximation of H^-1, by reference to AutoMixer",
                "why": "No code was published.",
            },
        ],
    )


def _documents(folder: Path, sources: dict, rng: np.random.Generator) -> dict[str, list[str]]:
    ids: dict[str, list[str]] = {}
    for at, name in enumerate(sources):
        texts = [
            f"{TEXTS[(at + i) % len(TEXTS)]}\n\nPiece {i} of source {at}. " + "More of it. " * 60
            for i in range(40)
        ]
        if name == EVIL_SOURCE:
            texts = [f"{EVIL_TEXT} {i}" for i in range(40)]
        documents = [Document(document_id(name, text), text, name) for text in texts]
        ids[name] = [d.id for d in documents]
        place = folder / "documents" / f"source-{at}"
        write_documents(place / "part-00000.parquet", documents)
        broken = 2 if name == "readmes" else 0
        examples = [
            {"where": "readmes.jsonl, line 17", "why": "this is not JSON: Expecting ',' delimiter"},
            {"where": "readmes.jsonl, line 93", "why": "there is no field `text` <b>at all</b>"},
        ]
        write_json(
            place / "read.json",
            {
                "source": name,
                "read": 1250 + 10 * at + broken,
                "broken": broken,
                "empty": 0,
                "documents": 1250 + 10 * at,
                "pieces": 1400,
                "duplicates": 31,
                "not_sampled": 0,
                "kept": 1219 + 10 * at,
                "bytes": 1_480_000 + 1000 * at,
                "broken_examples": examples[:broken],
                "skipped_files": [],
            },
        )
    return ids


def _curation(folder: Path, sources: dict, ids: dict[str, list[str]]) -> None:
    shares = {"read": 1.0, "educational": 0.31, "reasoning": 0.19, "domain": 0.12, "deduplicated": 0.114}
    funnel = []
    for at, name in enumerate(sources):
        read = 1219 + 10 * at
        funnel += [
            {"source": name, "stage": s, "documents": int(read * share)} for s, share in shares.items()
        ]
        funnel.append({"source": name, "stage": "representative", "documents": min(120, int(read * 0.114))})
    write_json(folder / "representative" / "funnel.json", funnel)
    first, second = ids["docstrings"][:2], ids["standard_library"][:2]
    _parquet(
        folder / "representative" / "duplicates.parquet",
        {"dropped": first, "kept_instead": second, "cosine": [0.971, 0.958]},
    )
    made = {"settings": {"layers": 2, "dim": 96}, "labels": {"reasoning": "ab12"}, "tokenizer": "cd34"}
    write_json(
        folder / "raters" / "judge" / "rater.json",
        {
            "made_from": {"rater": "judge", **made},
            "tasks": {
                "reasoning": {
                    "trained_on": 760,
                    "held_out": 140,
                    "positives": 61,
                    "auc": 0.9312,
                    "accuracy": 0.871,
                },
                "code": {
                    "trained_on": 744,
                    "held_out": 133,
                    "positives": 80,
                    "auc": 0.9804,
                    "accuracy": 0.932,
                },
            },
        },
    )
    write_json(
        folder / "raters" / "educational" / "rater.json",
        {
            "made_from": {"rater": "educational classifier", **made},
            "tasks": {
                "educational": {"trained_on": 770, "held_out": 130, "correlation": 0.842, "auc": 0.951}
            },
        },
    )
    write_json(folder / "raters" / "models.json", {"educational": "trained", "judge": "someone/judge-1B"})
    rules = [{"rule": "worked", "label": 5.0, "why": "", "examples": 321}]
    write_json(folder / "raters" / "educational.labels.json", {"educational": rules})
    write_json(
        folder / "representative" / "warnings.json", ["readmes has 90 representative documents, not 120"]
    )
    counts = [
        {"source": n, "documents": 1100, "held_out": 100, "overlapping_held_out_text": 7, "tokens": TOKENS}
        for n in sources
    ]
    write_json(folder / "tokens" / "counts.json", counts)
    for kind, count in (("probes", 6), ("test", 4)):
        for capability in CAPABILITIES:
            rows = [(i, n) for n, (caps, _) in sources.items() if capability in caps for i in ids[n][:count]]
            _parquet(
                folder / kind / f"{capability}.parquet",
                {"id": [r[0] for r in rows], "text": ["text"] * len(rows), "source": [r[1] for r in rows]},
            )


def _evaluation(folder: Path, sources: dict, ids: dict[str, list[str]], rng: np.random.Generator) -> None:
    rows: dict[str, list] = {"probe": [], "id": [], "source": [], "tokens": [], "bytes": [], "nats": []}
    for capability in CAPABILITIES:
        for name, (caps, _) in sources.items():
            for document in ids[name][:6] if capability in caps else ():
                size = int(rng.integers(300, 900))
                row = (capability, document, name, size // 3, size, size * float(rng.normal(1.5, 0.1)))
                for column, value in zip(rows, row, strict=True):
                    rows[column].append(value)
    _parquet(folder / "proxy_runs" / "loo-all-seed1" / "evaluations" / "step-293.parquet", rows)
    write_json(folder / "proxy_runs" / "baseline.json", {"run_id": "loo-all-seed1", "seed": 1})


def _leave_one_out(folder: Path, sources: dict, rng: np.random.Generator) -> list[dict]:
    effects, trajectories = [], []
    for name, (_, worth) in sources.items():
        for capability, truth in zip(CAPABILITIES, worth, strict=True):
            delta = truth + rng.normal(0, 0.002)
            half = 0.004 + abs(rng.normal(0, 0.003))
            effects.append(
                {
                    "source": name,
                    "capability": capability,
                    "delta": delta,
                    "low": delta - half,
                    "high": delta + half,
                    "per_seed": {"1": delta},
                }
            )
            curve = [delta * (1 - math.exp(-1.2 * k)) + rng.normal(0, 0.002) for k in range(1, 4)]
            trajectories.append(
                {"source": name, "capability": capability, "steps": list(STEPS), "delta": [*curve, delta]}
            )
    write_json(
        folder / "leave_one_out" / "leave_one_out.json",
        {
            "schema": 1,
            "unit": "bits per byte",
            "reading": "replaced",
            "tokens_per_run": BUDGET,
            "seeds": [1],
            "level": 0.9,
            "effects": effects,
            "trajectories": trajectories,
            "notes": ["Tokens of the removed source are replaced by those of the others"],
        },
    )
    return effects


def _influence(
    folder: Path, sources: dict, ids: dict[str, list[str]], effects: list[dict], rng: np.random.Generator
) -> None:
    delta = {(e["source"], e["capability"]): e["delta"] for e in effects}
    tables = {}
    for reference, noise in (("domain", 0.03), ("uniform", 0.012)):
        parts = []
        for capability in CAPABILITIES:
            means = {n: delta[n, capability] + rng.normal(0, noise) for n in sources}
            for step in STEPS:
                parts.append(_benefits(reference, capability, step, sources, ids, means, rng))
                name = f"{reference}-{capability}-step-{step}.parquet"
                (folder / "influence").mkdir(parents=True, exist_ok=True)
                pq.write_table(parts[-1], folder / "influence" / name)
        tables[reference] = pa.concat_tables(parts)
    pilot = {
        "engine": "ghost",
        "documents": 32,
        "pearson": 0.99999,
        "within_source": 0.99994,
        "signs_clear": 1.0,
    }
    summary = summarise(
        tables,
        noise=[n for n, (caps, _) in sources.items() if not caps],
        effects=effects,
        pilots=[{"file": "uniform-code-step-73.parquet", **pilot}],
        resamples=60,
    )
    write_json(folder / "influence" / "summary.json", summary)


def _benefits(
    reference: str,
    capability: str,
    step: int,
    sources: dict,
    ids: dict[str, list[str]],
    means: dict[str, float],
    rng: np.random.Generator,
) -> pa.Table:
    rows = [
        (document, name, 2e-4 * (means[name] + rng.normal(0, 0.05)) * (1 + 30 / step))
        for name in sources
        for document in ids[name][6:30]
    ]
    n = len(rows)
    return pa.table(
        {
            "document": [r[0] for r in rows],
            "source": [r[1] for r in rows],
            "capability": [capability] * n,
            "reference": [reference] * n,
            "checkpoint": [step] * n,
            "tokens": rng.integers(60, 256, n).tolist(),
            "benefit": [r[2] for r in rows],
        }
    ).cast(BENEFIT_SCHEMA)


def _tokens(folder: Path, sources: dict, ids: dict[str, list[str]]) -> None:
    """The last source, the hostile one if it is there, is both the best and the worst."""
    worst = list(sources)[-1]
    pieces = [
        ["Look", 0.0],
        [": ", 2e-4],
        ["</script>", -9e-4],
        ["<img src=x onerror=", 4e-4],
        ["\u202egnp", -1e-5],
    ]
    documents = [
        {
            "document": ids[worst][at],
            "source": worst,
            "benefit": sign * 3e-4,
            "tokens": 8,
            "unscored": 3,
            "pieces": [[text, sign * value] for text, value in pieces],
            "rest": 2e-5,
        }
        for at, sign in ((7, 1), (8, -1))
    ]
    found = {name: {"checkpoint": 293, "documents": documents} for name in CAPABILITIES}
    write_json(
        folder / "token_benefits" / "tokens.json",
        {"schema": 1, "reference": "uniform", "capabilities": found},
    )


@cache
def proxy_table(sources: tuple[str, ...]) -> ProxyTable:
    """Two seeds of runs on everything and without each source; losses are linear in the shares, with some noise."""
    rng = np.random.default_rng(11)
    m = len(sources)
    worth = np.array([SOURCES[n][1] if n in SOURCES else (0.001, 0.0, 0.011) for n in sources])
    mixtures = [np.full(m, 1 / m), *((1 - np.eye(m)[j]) / (m - 1) for j in range(m))]
    weights = np.array([w for w in mixtures for _ in range(2)])
    losses = np.array([2.31, 1.72, 2.64]) - 3 * weights @ worth + rng.normal(0, 0.002, (len(weights), 3))
    order = sorted(range(m), key=lambda j: sources[j])
    columns = sorted(range(3), key=lambda c: CAPABILITIES[c])
    return ProxyTable(
        tuple(f"run{i:02d}" for i in range(len(weights))),
        tuple(sources[j] for j in order),
        weights[:, order],
        tuple(CAPABILITIES[c] for c in columns),
        losses[:, columns],
        tuple(1 + i % 2 for i in range(len(weights))),
        4.4e13,
        181.0,
    )


@cache
def _front(sources: tuple[str, ...]) -> dict:
    table = proxy_table(sources)
    simplex = Simplex(table.sources, np.zeros(len(sources)), np.ones(len(sources)))
    return pareto_front(fit_posterior(table), simplex, scalarisations=24, samples=200).record()


_weighed: dict[str, dict[str, Evidence]] = {}


def _evidence(mixtures: dict[str, dict[str, float]]) -> dict[str, Evidence]:
    key = json.dumps(mixtures)
    if key not in _weighed:
        _weighed[key] = evidence_of(mixtures, proxy_table(tuple(next(iter(mixtures.values())))))
    return _weighed[key]


def _mixtures(folder: Path, sources: dict, effects: list[dict]) -> None:
    mean = {n: max(float(np.mean([e["delta"] for e in effects if e["source"] == n])), 0.0) for n in sources}
    total = sum(mean.values())
    shrunk = {n: 0.5 * m / total + 0.5 / len(sources) for n, m in mean.items()}
    summary = json.loads((folder / "influence" / "summary.json").read_text(encoding="utf-8"))
    chosen = {row["source"]: row for row in summary["references"][summary["chosen"]]["weights"]}
    proposals = {
        "uniform": (dict.fromkeys(sources, 1.0), None),
        "influence": (
            {n: r["weight"] for n, r in chosen.items()},
            {n: (r["low"], r["high"]) for n, r in chosen.items()},
        ),
        "leave_one_out": (shrunk, {n: (max(0.0, w - 0.03), w + 0.035) for n, w in shrunk.items()}),
    }
    mixtures = {
        name: make_mixture(
            weights,
            method=name.replace("_", "-"),
            available_tokens=dict.fromkeys(sources, TOKENS),
            budget_tokens=BUDGET,
            max_epochs=4,
            intervals=intervals,
            inputs={"leave_one_out/leave_one_out.json": "0123456789abcdef" * 4},
        )
        for name, (weights, intervals) in proposals.items()
    }
    evidence = _evidence({name: {n: m.weights[n] for n in sources} for name, m in mixtures.items()})
    for name, unweighed in mixtures.items():
        mixture = replace(unweighed, evidence=evidence[name])
        write_mixture(folder / "mixtures" / name / "mixture.json", mixture)
        if name == "leave_one_out":
            write_mixture(folder / "mixture.json", mixture)
    write_json(
        folder / "recommendation" / "recommendation.json",
        {"mixture": "leave_one_out", "why": "It has the fewest bits per byte on the probes."},
    )


def _comparison(folder: Path, sources: dict, rng: np.random.Generator, effect: float) -> None:
    base = {"code": 2.31, "mathematics": 1.72, "knowledge": 2.64}
    change = {"uniform": 0.0, "influence": -0.002, "leave_one_out": effect}
    scores: dict = {name: {} for name in change}
    for seed in (101, 102, 103):
        shared = {c: rng.normal(0, 0.02) for c in CAPABILITIES}
        for name, mean in change.items():
            scores[name][seed] = {
                c: base[c] + shared[c] + mean + (rng.normal(0, 0.004) if mean else 0.0) for c in CAPABILITIES
            }
    weights = {
        name: json.loads((folder / "mixtures" / name / "mixture.json").read_text(encoding="utf-8"))["weights"]
        for name in change
    }
    write_json(folder / "comparison" / "comparison.json", compare(scores, mixtures=weights))


def _training(folder: Path, rng: np.random.Generator) -> None:
    runs = ["loo-all-seed1", *(f"loo-without-{n}-seed1" for n in SOURCES)]
    for run in runs:
        _losses(folder / "proxy_runs" / run / "train", 293, 2048, 4.4, rng)
    for capability in CAPABILITIES:
        _losses(folder / "domain_models" / capability / "train", 293, 2048, 3.9, rng)
    for mixture in ("influence", "leave_one_out", "uniform"):
        for seed in (101, 102, 103):
            _losses(
                folder / "comparison" / "runs" / f"compare-{mixture}-seed{seed}" / "train",
                293,
                2048,
                4.3,
                rng,
            )
    _losses(folder / "training" / "pretrain", 782, 2048, 3.7, rng, taught_from=400)
    result = {
        "final": "checkpoints/step-782",
        "steps": 782,
        "tokens": 1_601_536,
        "flops": 1.5e13,
        "seconds": 96.4,
    }
    write_json(folder / "training" / "pretrain" / "result.json", result)
    _evaluations(folder / "training" / "pretrain", (196, 391, 586, 782))
    _losses(folder / "training" / "sft", 90, 4096, 1.4, rng)
    write_json(
        folder / "training" / "sft" / "result.json",
        {"final": "checkpoints/step-90", "steps": 90, "tokens": 368_640, "flops": 3.5e12, "seconds": 22.1},
    )
    rows = [
        {
            "step": s,
            "reward": -0.55 + 0.03 * s + rng.normal(0, 0.05),
            "accuracy": min(1.0, 0.22 + 0.014 * s + rng.normal(0, 0.03)),
            "length": 31 - 0.3 * s + rng.normal(0, 1),
            "loss": float(rng.normal(0, 0.01)),
        }
        for s in range(1, 17)
    ]
    _lines(folder / "training" / "grpo" / "metrics.jsonl", rows)
    accuracy = {"total": 128, "level": 0.95, "reward": -0.3, "length": 30.5, "truncated": 0.06}
    write_json(
        folder / "training" / "grpo" / "result.json",
        {
            "steps": 16,
            "updates": 16,
            "before": {"step": 0, "right": 29, "value": 29 / 128, "low": 0.163, "high": 0.306, **accuracy},
            "after": {"step": 16, "right": 58, "value": 58 / 128, "low": 0.37, "high": 0.539, **accuracy},
        },
    )
    _lines(
        folder / "training" / "grpo" / "evaluations.jsonl",
        [
            {
                "step": s,
                "right": r,
                "value": r / 128,
                "low": r / 128 - 0.07,
                "high": r / 128 + 0.07,
                **accuracy,
            }
            for s, r in ((0, 29), (8, 41), (16, 58))
        ],
    )
    _model(folder / "model")


def _compression(folder: Path, sources: dict) -> None:
    """As `mixing.compression` writes it: two rounds in which the benefits gather around zero."""
    edges = np.linspace(-0.2, 0.2, 9).tolist()
    counts = ([1, 2, 4, 9, 20, 40, 30, 14], [0, 0, 2, 38, 60, 18, 2, 0])
    rounds = [
        {
            "number": at + 1,
            "documents": dict.fromkeys(sources, 15),
            "tokens": dict.fromkeys(sources, 4000),
            "kept_documents": dict.fromkeys(sources, 12 - 4 * at),
            "kept_tokens": dict.fromkeys(sources, 3000 - 1000 * at),
            "weights": dict.fromkeys(sources, 1 / len(sources)),
            "positive": 104 / 120 if at == 0 else 80 / 120,
            "rms": 0.1 / (1 + at),
            "edges": dict.fromkeys((*CAPABILITIES, "joint"), edges),
            "counts": dict.fromkeys((*CAPABILITIES, "joint"), row),
        }
        for at, row in enumerate(counts)
    ]
    text = "compressed against original on the mean of the capabilities: -0.0123 bits per byte (-0.41%); not separable"
    write_json(
        folder / "training" / "compression" / "compression.json",
        {
            "schema": 1,
            "arms": {
                "compressed": {
                    "1": {"rounds": rounds, "stop": {"reason": "rounds", "text": "All 2 rounds were made"}}
                },
                "original": {"1": {"trained": []}},
            },
            "comparison": {"plain": {"differences": [{"text": text}]}},
        },
    )


def _evaluations(folder: Path, steps: tuple[int, ...]) -> None:
    """As `probes.in_run` measures them: the loss of each probe set, and RankMe of its states and of the weight."""
    rows: list[dict] = []
    for at, step in enumerate(steps):
        rows.append({"step": step})
        for number, name in enumerate(CAPABILITIES):
            rows[-1][f"bits_per_byte/{name}"] = 3.1 + 0.2 * number - 0.25 * at
            rows[-1][f"rankme/{name}"] = 11.0 + 6 * at + number
        rows[-1]["rankme/embeddings"] = 70.0 + at
    _lines(folder / "evaluations.jsonl", rows)


def _losses(
    folder: Path,
    steps: int,
    tokens: int,
    end: float,
    rng: np.random.Generator,
    taught_from: int | None = None,
) -> None:
    rows = [
        {
            "step": s,
            "tokens": s * tokens,
            "loss": end + 4 * math.exp(-s / (steps / 6)) + float(rng.normal(0, 0.05)),
        }
        for s in range(1, steps + 1)
    ]
    if taught_from is not None:
        # As a run with a teacher in its last phase logs it: 0 where there is none.
        for row in rows:
            taught = (steps - row["step"]) / (steps - taught_from)
            row["divergence"] = 0.56 + 0.84 * taught if row["step"] >= taught_from else 0.0
    _lines(folder / "metrics.jsonl", rows)


def _lines(file: Path, rows: list[dict]) -> None:
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def _model(folder: Path) -> None:
    shape = {"model_type": "llama4_text", "num_hidden_layers": 4, "hidden_size": 128, "vocab_size": 4096}
    write_json(folder / "config.json", {"architectures": ["Llama4ForCausalLM"], **shape})
    write_json(folder / "tokenizer.json", {})
    write_json(folder / "check.json", {"largest_logit_difference": 3.8e-6, "tolerance": 1e-4})
    header = json.dumps({"weight": {"dtype": "F32", "shape": [4, 5], "data_offsets": [0, 80]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(80))


def _stages(folder: Path) -> None:
    costs = {
        "documents": (14.2, 20.1, 0.0, 0),
        "representative": (58.0, 101.0, 4.1e12, 3_100_000),
        "proxy_runs": (181.0, 350.0, 4.4e13, 4_800_000),
        "domain_models": (67.0, 130.0, 1.6e13, 1_800_000),
        "leave_one_out": (1.3, 1.3, 0.0, 0),
        "influence": (49.0, 92.0, 9.6e12, 7_300_000),
        "mixtures": (0.2, 0.2, 0.0, 0),
        "comparison": (196.0, 381.0, 5.0e13, 5_400_000),
        "training/pretrain": (98.0, 180.0, 1.5e13, 1_601_536),
        "training/sft": (24.0, 44.0, 3.5e12, 368_640),
        "training/grpo": (41.0, 78.0, 2.2e12, 57_344),
        "model": (4.0, 6.0, 0.0, 0),
    }
    for at, (where, (wall, cpu, flops, tokens)) in enumerate(costs.items()):
        write_json(
            folder / where / "stage.json",
            {
                "stage": where.split("/")[-1],
                "status": "done",
                "settings": [{"seed": 0}],
                "versions": {"mixwright": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.4.6"},
                "seed": 0,
                "started": f"2026-11-20T22:{at:02d}:00+00:00",
                "finished": f"2026-11-20T22:{at:02d}:30+00:00",
                "attempts": 2 if where == "proxy_runs" else 1,
                "wall_seconds": wall,
                "cpu_seconds": cpu,
                "flops": flops,
                "tokens": tokens,
                "inputs": {},
                "outputs": {},
            },
        )


def _parquet(file: Path, columns: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
