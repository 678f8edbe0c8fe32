"""The model passes of curation against the plain pipelines that they replace, on real texts, one thread.

The models have the published shapes and random weights. Without a trained head the benchmark makes one that reads
the direction in which the documents' states differ most, scaled to a standard deviation of 1 around 3: a random
direction would see mostly what all documents share, and bfloat16 would look worse than it is.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.curation_recheck import rechecked
from benchmarks.measure import CORPORA, machine, publish, table
from curation.documents import Document

NAMES = ("stackexchange", "math_text", "wiki", "formal", "books")
CUT = 4
POOL = 1000
"""Documents that the classifier's are drawn from, in a fixed random order: a longer draw holds the shorter one."""
PASSING = (0.1, 0.05, 0.01)
"""Shares that the further cuts of the classifier let pass."""
COMPUTED, JITTER = 10_000, 0.02
"""Documents of a computed line, and the spread of their scores around real ones."""


def real_texts(name: str, count: int) -> list[str]:
    """`count` texts, evenly spread over a corpus, in file order."""
    with gzip.open(CORPORA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    return texts[:: max(1, len(texts) // count)][:count]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def classifier(
    *, write: bool, documents: int = 1000, scratch: Path | None = None, timed_documents: int = 24
) -> None:
    """BERT-base at 512 tokens: the naive float32 pipeline and ours in each format with their rechecks.

    All documents are scored in float32 for the truth and in each rough format. That takes long, so it is done in
    pieces that are kept in `scratch`: call it again until all are there. Each call is one more paired round: naive
    and ours are timed one after another, in about two minutes, on the next `timed_documents`. Lines with a recheck
    count the documents that it really scored, at the speeds of these rounds.
    """
    from curation.educational import EducationalClassifier

    torch.set_num_threads(1)
    shares = {"stackexchange": 0.4, "math_text": 0.3, "wiki": 0.1, "formal": 0.1, "books": 0.1}
    texts = [text for name, share in shares.items() for text in real_texts(name, round(share * POOL))]
    order = np.random.default_rng(0).permutation(len(texts))[:documents]
    found = [Document(f"{i:06d}", texts[row], "mixed") for i, row in enumerate(order)]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if scratch is None else scratch
        folder = _classifier_folder(place, texts)
        int8, half = (EducationalClassifier(str(folder), precision=name) for name in ("int8", "bfloat16"))
        formats = {"float32": half.in_float32(), "bfloat16": half, "int8": int8}
        scores = {name: _scores_in_pieces(found, scorer, place / name) for name, scorer in formats.items()}
        rounds = _timed_rounds(found, formats, scores["float32"], folder, place, timed_documents)
    rows = _classifier_rows(scores, rounds)
    tokens, off = np.mean([one["tokens"] for one in rounds]), max(one["off"] for one in rounds)
    errors = []
    for name in ("bfloat16", "int8"):
        off_by = scores[name] - scores["float32"]
        errors.append(
            f"{name} differs by {off_by.mean():.2g} on average, with a standard deviation of {off_by.std():.2g} around "
            f"that, and by {np.abs(off_by).max():.2g} at most"
        )
    heading = (
        "## Educational classifier, 12 x 768, 512 tokens, one thread\n\n"
        f"{len(found)} documents of five corpora, all scored in float32 and in both rough formats. The scores have a "
        f"standard deviation of {scores['float32'].std():.2g}; {errors[0]}; {errors[1]}. The head is made up, so "
        f"the cuts are `raw > {CUT}`, which many pass, and those that let smaller shares pass. Speeds are CPU time, "
        f"medians of {len(rounds)} paired rounds (their range behind) of {timed_documents} documents each, "
        f"{tokens:.0f} tokens a document after truncation; our float32 is within {off:.1g} of the naive pipeline's. "
        f"Lines with a recheck add the documents that it really scored again, at the rounds' speeds. Those for "
        f"{COMPUTED:,} are computed: their scores are drawn from the {len(found)} with a spread of {JITTER}, their "
        "differences from all that were measured. Changed verdicts of a format alone are given for each cut.\n\n"
    )
    header = ["pipeline", "pass", "in float32 too", "documents per CPU-second", "times the first", "changed"]
    facts = machine("torch", "transformers")
    publish("curation: classifier", f"{heading}{table(header, rows)}\n{peaks()}\n\n{facts}\n", write=write)


def _timed_rounds(
    found: list[Document],
    formats: dict[str, Any],
    exact: np.ndarray,
    folder: Path,
    place: Path,
    documents: int,
) -> list[dict[str, float]]:
    """CPU seconds a document of each pipeline, in one more round than `place` has, and in those."""
    path = place / f"rounds_{documents}.json"
    rounds: list[dict[str, float]] = json.loads(path.read_text()) if path.exists() else []
    start = documents * len(rounds) % max(1, len(found) - documents)
    some, cost = found[start : start + documents], {}
    for name, scorer in formats.items():
        scorer.score(found[:2])
        cost[name] = timed(lambda scorer=scorer: scorer.score(some))[0] / len(some)  # type: ignore[misc]
    naive = _naive(folder)
    naive([document.text for document in found[:2]])
    seconds, (scores, tokens) = timed(lambda: naive([document.text for document in some]))
    cost |= {"naive": seconds / len(some), "tokens": tokens / len(some)}
    cost["off"] = float(np.abs(scores - exact[start : start + documents]).max())
    rounds.append(cost)
    path.write_text(json.dumps(rounds))
    return rounds


def _classifier_rows(scores: dict[str, np.ndarray], rounds: list[dict[str, float]]) -> list[list[Any]]:
    """The lines of the table."""
    from curation.educational import EducationalRule

    exact = scores["float32"].astype(np.float64)
    cuts = [float(CUT), *(float(np.quantile(exact, 1 - share)) for share in PASSING)]
    rows: list[list[Any]] = [
        ["transformers, float32, file order, batches of 32", "", "", *speed(rounds, "naive", 0), ""],
        ["ours, float32", "", "", *speed(rounds, "float32", 0), ""],
    ]
    for name in ("bfloat16", "int8"):
        alone = [int(((exact > cut) != (scores[name] > cut)).sum()) for cut in cuts]
        rows.append([f"ours, {name} alone", "", "", *speed(rounds, name, 0), ", ".join(map(str, alone))])
        for cut in cuts:
            report, changed = rechecked(EducationalRule("raw", cut), exact, scores[name], name)
            share = report.rechecked / report.documents
            passed = f"{100 * np.mean(exact > cut):.0f} %"
            rows.append(
                [f"ours, {name} and recheck", passed, report.rechecked, *speed(rounds, name, share), changed]
            )
        chance = np.random.default_rng(0)
        drawn = chance.choice(exact, COMPUTED) + JITTER * chance.standard_normal(COMPUTED)
        rough = drawn + chance.choice(scores[name] - exact, COMPUTED)
        for cut in cuts:
            report, changed = rechecked(EducationalRule("raw", cut), drawn, rough, name)
            share = report.rechecked / report.documents
            passed = f"{100 * np.mean(drawn > cut):.0f} %"
            label = f"ours, {name} and recheck, {COMPUTED:,}, computed"
            rows.append([label, passed, report.rechecked, *speed(rounds, name, share), changed])
    return rows


def _scores_in_pieces(found: list[Document], scorer: Any, folder: Path, size: int = 50) -> np.ndarray:
    """Scores of all documents; pieces that `folder` has are not computed again."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = []
    for start in range(0, len(found), size):
        path = folder / f"{start:06d}.npy"
        if not path.exists():
            np.save(folder / "unfinished.npy", scorer.score(found[start : start + size])["educational_score"])
            (folder / "unfinished.npy").rename(path)
        pieces.append(np.load(path))
    return np.concatenate(pieces)


def peaks(rows: int = 2048, size: int = 768) -> str:
    """What this processor's products reach in each format, so that it can be seen what could be had at all."""
    from curation.int8 import Int8Product, fast_int8
    from curation.packed_encoder import HalfLinear, Site

    weight, x = torch.randn(4 * size, size), torch.randn(rows, size)
    half = HalfLinear(Site(0, "up", weight, torch.zeros(4 * size)))
    narrow = x.to(torch.bfloat16)
    works = {"float32": lambda: x @ weight.T, "bfloat16": lambda: half(narrow)}
    if fast_int8():
        product = Int8Product(weight, torch.zeros(4 * size))
        rounded = product.rounded(x)
        works["int8"] = lambda: product.of_rounded(*rounded)
    with torch.inference_mode():
        best = {name: min(timed(work)[0] for _ in range(7)) for name, work in works.items()}
    speeds = [f"{2 * rows * size * 4 * size / seconds / 1e9:.0f} in {name}" for name, seconds in best.items()]
    return f"Products of {rows} x {size} with {size} x {4 * size}, G operations per CPU-second: {', '.join(speeds)}."


def speed(rounds: list[dict[str, float]], name: str, in_float32: float) -> list[str]:
    """Documents per CPU-second and how often the naive pipeline's, when a share of them is scored in float32 too."""
    seconds = np.array([one[name] + in_float32 * one["float32"] for one in rounds])
    times = np.array([one["naive"] for one in rounds]) / seconds
    return [
        f"{1 / np.median(seconds):.2f}",
        f"{np.median(times):.2f} ({times.min():.2f} to {times.max():.2f})",
    ]


def _classifier_folder(scratch: Path, texts: list[str]) -> Path:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from curation.rater_tokenizer import train_rater_tokenizer

    folder = scratch / "classifier"
    if (folder / "model.safetensors").exists():
        return folder
    sample = [text[:20_000] for text in texts]
    AutoTokenizer.from_pretrained(
        train_rater_tokenizer(sample, scratch / "tokenizer", vocabulary=16_000)
    ).save_pretrained(folder)
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_labels=1)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        some = [tokenizer(text, truncation=True, max_length=512, return_tensors="pt") for text in texts[::8]]
        states = torch.cat([model.bert(**inputs).pooler_output for inputs in some])
        centre = states.mean(0)
        direction = torch.linalg.svd(states - centre, full_matrices=False).Vh[0]
        spread = ((states - centre) @ direction).std()
        model.classifier.weight.copy_((direction / spread)[None])
        model.classifier.bias.copy_(3 - (centre @ direction / spread)[None])
    model.save_pretrained(folder)
    return folder


def _naive(folder: Path, batch: int = 32) -> Callable[[list[str]], tuple[np.ndarray, int]]:
    """As the model's card does it: batches in file order, padded to their longest, float32. Scores, and tokens read."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def score(texts: list[str]) -> tuple[np.ndarray, int]:
        scores, tokens = [], 0
        with torch.inference_mode():
            for start in range(0, len(texts), batch):
                some = texts[start : start + batch]
                cut = {"truncation": True, "max_length": 512}
                inputs = tokenizer(some, return_tensors="pt", padding="longest", **cut)
                tokens += int(inputs["attention_mask"].sum())
                scores.append(model(**inputs).logits.squeeze(-1).numpy())
        return np.concatenate(scores), tokens

    return score
