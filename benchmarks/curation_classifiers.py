"""Classifiers of one's own, judges in bfloat16: `python -m benchmarks.curation_classifiers PART [--write]`.

Real text from the development corpora (MIXWRIGHT_CORPORA, or ../shared/corpora beside the checkout).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.measure import CORPORA, machine, paired, publish, table
from curation.ask_llm import AskLLM
from curation.atomic import hash_file
from curation.classifiers import fasttext_training
from curation.classifiers.annotated import Annotated
from curation.classifiers.fasttext_model import MODEL, FastTextClassifier, load_fasttext
from curation.classifiers.fasttext_training import FastTextSettings, train_fasttext
from curation.classifiers.regression import RegressionSettings, train_regression
from curation.documents import Document, document_id
from curation.errors import MachineError
from curation.judge_prompt import load_prompt
from curation.judge_scores import judge_scores
from curation.labels import LabelledExample
from curation.rater_tokenizer import train_rater_tokenizer
from curation.rater_training import RaterSettings
from curation.raters import train_classifier
from curation.score_tables import score_source, top_share

SHARES = (0.1, 0.5)


def pieces(corpus: str, words: int, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(origin, text) of `count` runs of `words` words, at most four of one document, by a seeded shuffle."""
    with gzip.open(CORPORA / f"{corpus}.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line) for line in file]
    found = []
    for record in texts:
        split = record["text"].split(" ")
        starts = range(0, max(1, len(split) - words), words)
        chosen = random.Random(record["id"]).sample(list(starts), min(4, len(starts)))
        found += [(record["id"], " ".join(split[start : start + words])) for start in chosen]
    return random.Random(seed).sample(found, min(count, len(found)))


def mathematics(count: int) -> list[Annotated]:
    """Mathematics books (1) against encyclopedia and novels (0), pieces of 120 words, whole documents in a split."""
    rows = [(1.0, o, t) for o, t in pieces("math_text", 120, count)]
    for other in ("wiki", "books"):
        rows += [(0.0, o, t) for o, t in pieces(other, 120, count // 2)]
    return [Annotated(document_id("b", text), text, label, origin) for label, origin, text in rows]


def prediction(examples: list[Annotated], folder: Path) -> str:
    """fastText through our block against fastText on a ready list."""
    train_fasttext(examples, folder / "fasttext")
    texts = [t for name in ("books", "wiki", "stackexchange") for _, t in pieces(name, 200, 3000)]
    texts = (texts * 3)[:10_000]
    documents = [Document(f"{i:06d}", text, "b") for i, text in enumerate(texts)]
    lines = [text.replace("\n", " ") for text in texts]
    scorer = FastTextClassifier(str(folder / "fasttext"))
    plain = load_fasttext(folder / "fasttext" / MODEL)
    rounds = iter(range(100))
    timing = paired(
        {
            "fasttext.predict on a list": lambda: plain.predict(lines, k=2),
            "our scorer": lambda: scorer.score(documents),
            "our scorer, to a score table": lambda: score_source(
                documents, scorer, folder / f"t{next(rounds)}"
            ),
        },
        rounds=3,
    )
    base = timing["fasttext.predict on a list"]
    rows = [
        (name, f"{len(texts) / t.seconds:,.0f}", f"{1 / base.ratio(t):.2f}" if t is not base else "1")
        for name, t in timing.items()
    ]
    return table(("1-gram, dim 100, 200 words", "documents per CPU-second", "of fastText alone"), rows)


def reproducibility(examples: list[Annotated], folder: Path) -> str:
    """Ten trainings each in a process whose memory is not fresh, with and without zeroed memory."""
    rows = []
    for name, context in (
        ("fastText as it is, thread=1", mock.patch.object(fasttext_training, "_zeroed_memory", nullcontext)),
        ("ours", nullcontext()),
    ):
        with context:
            results = list(_trainings(examples, folder))
        rows.append((name, results.count("NaN"), len(set(results) - {"NaN"})))
    return table(("10 trainings, seed 0", "ended in NaN", "different models"), rows)


def _trainings(examples: list[Annotated], folder: Path) -> Iterator[str]:
    for _ in range(10):
        junk = [np.full(size, np.nan, dtype=np.float32) for size in range(1000, 400_000, 20_000)]
        del junk
        try:
            train_fasttext(examples, folder / "again", FastTextSettings(dim=16, epochs=1))
            yield hash_file(folder / "again" / MODEL)
        except MachineError:
            yield "NaN"


def quality(examples: list[Annotated], folder: Path) -> str:
    """F1 on mathematics against encyclopedia and novels, of fastText and of heads on two small encoders."""
    texts = [e.text for e in examples]
    tokenizer = train_rater_tokenizer(texts, folder / "tokenizer", vocabulary=4096)
    other = [
        LabelledExample(f"{name}{i}", text, label, "r", name, origin)
        for name, label in (("formal", 0.0), ("stackexchange", 5.0), ("books", 2.0))
        for i, (origin, text) in enumerate(pieces(name, 100, 200, seed=1))
    ]
    settings = RaterSettings(max_tokens=192, dim=128, layers=2)
    train_classifier(other, tokenizer, folder / "trained", settings)
    _randomise(folder / "trained", folder / "random")
    rows = []
    for name, record in (
        ("fastText, 1-gram", train_fasttext(examples, folder / "f1")),
        ("fastText, 2-gram", train_fasttext(examples, folder / "f2", FastTextSettings(word_ngrams=2))),
        ("head, 2 x 128 encoder trained on another task", _head(examples, folder, "trained")),
        ("head, the same encoder with random weights", _head(examples, folder, "random")),
    ):
        held = record["held_out"]
        best, calibration = held["best_threshold"], held["calibration"]
        cells = [
            f"{v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]"
            for v in (best["f1"], held["macro_f1"], calibration["ece"])
        ]
        rows.append((name, held["texts"], *cells, held["leakage"]["near_equal_to_training_texts"]))
    return table(("classifier", "held-out texts", "F1", "macro F1", "calibration error", "leaked"), rows)


def _head(examples: list[Annotated], folder: Path, encoder: str) -> dict[str, Any]:
    return train_regression(
        examples, str(folder / encoder), folder / f"head-{encoder}", RegressionSettings(max_tokens=192)
    )


def _randomise(source: Path, out: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, BertModel

    torch.manual_seed(0)
    BertModel(AutoConfig.from_pretrained(source)).save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)


def judges(folder: Path) -> str:
    """A Llama of 8 layers of 512 with random weights: time and kept documents, bfloat16 with and without re-check."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(train_rater_tokenizer(
        [t for _, t in pieces("wiki", 120, 500)], folder / "judge-tokenizer", vocabulary=4096
    ))  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        initializer_range=0.05,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "judge")
    tokenizer.save_pretrained(folder / "judge")
    documents = [Document(document_id("b", t), t, "b") for _, t in pieces("wiki", 60, 200)]
    by_id = {d.id: d for d in documents}
    full = AskLLM(str(folder / "judge"), load_prompt("reasoning-v1"), max_document_tokens=128)
    half = replace(full, precision="bfloat16")
    margins: dict[str, Any] = {}
    number = iter(range(1000))

    def score(name: str, judge: AskLLM, share: float | None) -> None:
        here = folder / f"judged{next(number)}"
        import polars as pl

        ids = pl.DataFrame({"id": list(by_id)})
        margins[name] = judge_scores(
            judge,
            ids,
            share or 1.0,
            lambda s, wanted: score_source([by_id[i] for i in wanted["id"]], s, here),
        )

    timing = paired(
        {
            "float32": lambda: score("float32", full, None),
            "bfloat16": lambda: score("bfloat16", half, None),
            **{
                f"bfloat16, re-checked at {s:g}": lambda s=s: score(f"bfloat16, re-checked at {s:g}", half, s)
                for s in SHARES
            },
        },
        rounds=1,
        warmup=0,
    )
    rows = []
    for name, t in timing.items():
        changed = [
            len(
                set(top_share(margins[name], "margin", s)["id"])
                - set(top_share(margins["float32"], "margin", s)["id"])
            )
            if "re-checked" not in name or name.endswith(f" {s:g}")
            else "-"
            for s in SHARES
        ]
        rows.append(
            (name, f"{len(documents) / t.seconds:.1f}", f"{t.ratio(timing['float32']):.2f}", *changed)
        )
    return table(
        (
            "judge, 200 texts of 60 words",
            "documents per CPU-second",
            "times float32",
            *(f"changed, top {s:g}" for s in SHARES),
        ),
        rows,
    )


def classifiers(*, write: bool) -> None:
    """Speed and reproducibility of fastText classifiers."""
    with tempfile.TemporaryDirectory() as name:
        folder, examples = Path(name), mathematics(1000)
        facts = machine("fasttext-numpy2-wheel")
        parts = [facts, prediction(examples, folder), reproducibility(examples, folder)]
    publish("curation classifiers", "## Classifiers of one's own\n\n" + "\n\n".join(parts), write=write)


def held_out(*, write: bool) -> None:
    """How good each kind of classifier is on a real task."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        examples = mathematics(1000)
        text = (
            f"Mathematics books against encyclopedia and novels, {len(examples):,} texts of 120 words; one document "
            "never on both sides. Brackets are 95 % intervals.\n\n"
        )
        text += quality(examples, Path(name))
    publish("curation classifiers held out", f"## Held-out quality of classifiers\n\n{text}", write=write)


def bfloat16_judges(*, write: bool) -> None:
    """Speed and verdicts of a judge in bfloat16 with float32 near the cut."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        parts = [machine("transformers", "torch"), judges(Path(name))]
    publish("curation judges", "## Judges in bfloat16\n\n" + "\n\n".join(parts), write=write)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("part", choices=("classifiers", "quality", "judges"))
    arguments = parser.parse_args()
    {"classifiers": classifiers, "quality": held_out, "judges": bfloat16_judges}[arguments.part](
        write=arguments.write
    )
