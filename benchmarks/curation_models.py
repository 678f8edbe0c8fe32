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

from benchmarks.measure import CORPORA, machine, publish, table
from curation.documents import Document

NAMES = ("stackexchange", "math_text", "wiki", "formal", "books")
RULE = "raw > 4"


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


def classifier(*, write: bool, documents: int = 80, timed_every: int = 2) -> None:
    """BERT-base at 512 tokens: the naive float32 pipeline and ours in each format; then the rechecks on all documents.

    Speeds are those of every `timed_every`-th document, all formats one after another in about two minutes; what the
    rechecks cost is computed from these speeds and from how many documents they really took.
    """
    from curation.educational import EducationalClassifier, parse_rule, passing
    from curation.recheck import decide_documents
    from curation.score_tables import score_source

    torch.set_num_threads(1)
    shares = {"stackexchange": 0.4, "math_text": 0.3, "wiki": 0.1, "formal": 0.1, "books": 0.1}
    texts = [text for name, share in shares.items() for text in real_texts(name, round(share * documents))]
    found = [Document(f"{i:06d}", text, "mixed") for i, text in enumerate(texts)]
    rule = parse_rule(RULE)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _classifier_folder(Path(scratch), texts)
        int8, half = (EducationalClassifier(str(folder), precision=name) for name in ("int8", "bfloat16"))
        formats = {"int8": int8, "bfloat16": half, "float32": half.in_float32()}
        some = found[::timed_every]
        naive, (_, tokens) = timed(lambda: _naive_scores(folder, [document.text for document in some]))
        cost = {"naive": naive / len(some)}
        for name, scorer in formats.items():
            _warm(scorer, found)
            cost[name] = timed(lambda scorer=scorer: scorer.score(some))[0] / len(some)  # type: ignore[misc]
        facts = machine("torch", "transformers")
        exact = score_source(found, formats["float32"], Path(scratch) / "exact")
        truth = set(passing(exact, rule)["id"].to_list())
        rows = [["transformers, float32, file order, batches of 32", *_speed(cost, cost["naive"]), "-"]]
        rows.append(["ours, float32", *_speed(cost, cost["float32"]), "-"])
        sentences = []
        for name, scorer in (("bfloat16", half), ("int8", int8)):
            place = Path(scratch) / name
            table_ = score_source(found, scorer, place)
            decision = decide_documents(found, table_, rule, scorer, place)
            report = decision.recheck
            assert report is not None
            alone = set(passing(table_.select("id", "educational_score"), rule)["id"].to_list())
            rows.append([f"ours, {name} alone", *_speed(cost, cost[name]), len(truth ^ alone)])
            changed = len(truth ^ set(decision.passing["id"].to_list()))
            for count in (documents, 10_000):
                label = f"ours, {name} and recheck, {count:,} documents"
                rows.append(
                    [
                        label,
                        *_speed(cost, _with_recheck(report, cost, count)),
                        changed if count == documents else "-",
                    ]
                )
            sentences.append(
                f"{report.sentence('mixed')} Standard deviation of the differences: {report.deviation:.2g}."
            )
    heading = (
        "## Educational classifier, 12 x 768, 512 tokens, one thread\n\n"
        f"{len(texts)} documents of five corpora, {tokens / len(some):.0f} tokens each after truncation; rule "
        f"`{RULE}`, which {len(truth)} pass; scores have a standard deviation of "
        f"{exact['educational_score'].to_numpy().std():.2g}. CPU time of {len(some)} of them, one round; lines with a "
        "recheck are computed from the formats' speeds and from how many documents the recheck took, at 10,000 with "
        "the same share inside the bands and a sample of 64.\n\n" + "\n\n".join(sentences) + "\n\n"
    )
    body = table(["pipeline", "documents per CPU-second", "times the first", "changed verdicts"], rows)
    publish("curation: classifier", f"{heading}{body}\n{facts}\n", write=write)


def _speed(cost: dict[str, float], seconds: float) -> list[str]:
    """Documents per CPU-second, and how often the naive pipeline's."""
    return [f"{1 / seconds:.2f}", f"{cost['naive'] / seconds:.2f}"]


def _with_recheck(report: Any, cost: dict[str, float], documents: int) -> float:
    """CPU seconds for each of `documents`, from what the recheck of `report.documents` took."""
    from curation.recheck import SAMPLE_LEAST, SAMPLE_MOST, SAMPLE_SHARE

    sample = min(max(SAMPLE_LEAST, round(SAMPLE_SHARE * documents)), SAMPLE_MOST)
    seconds = cost[report.first]
    for name, taken in (("bfloat16", report.halfway), ("float32", report.rechecked)):
        if taken:
            inside = (taken - report.sample) / max(1, report.documents - report.sample)
            seconds += cost[name] * (sample + inside * (documents - sample)) / documents
    return seconds


def _classifier_folder(scratch: Path, texts: list[str]) -> Path:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from curation.rater_tokenizer import train_rater_tokenizer

    folder = scratch / "classifier"
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


def _warm(scorer: Any, documents: list[Document]) -> None:
    scorer.score(documents[:2])


def _naive_scores(folder: Path, texts: list[str], batch: int = 32) -> tuple[np.ndarray, int]:
    """As the model's card does it: batches in file order, padded to their longest, float32."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scores, tokens = [], 0
    with torch.inference_mode():
        for start in range(0, len(texts), batch):
            inputs = tokenizer(
                texts[start : start + batch],
                return_tensors="pt",
                padding="longest",
                truncation=True,
                max_length=512,
            )
            tokens += int(inputs["attention_mask"].sum())
            scores.append(model(**inputs).logits.squeeze(-1).numpy())
    return np.concatenate(scores), tokens


def embedding(*, write: bool, documents: int = 300) -> None:
    """MiniLM-L6's shape at 256 tokens: sentence-transformers' default encode and ours with the recheck."""
    from sentence_transformers import SentenceTransformer

    from curation.embedding import embed
    from curation.embedding_recheck import embed_near
    from curation.semantic_duplicates import find_duplicates

    torch.set_num_threads(1)
    texts = [text for name in NAMES for text in real_texts(name, documents // len(NAMES))]
    with tempfile.TemporaryDirectory() as scratch:
        folder = _embedder_folder(Path(scratch), texts)
        library = SentenceTransformer(str(folder), device="cpu")
        library.encode(texts[:2])
        naive, theirs = timed(
            lambda: library.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        )
        for precision in ("float32", "bfloat16"):
            embed(texts[:2], folder, precision=precision)
        single, exact = timed(lambda: embed(texts, folder))
        half, rough = timed(lambda: embed(texts, folder, precision="bfloat16"))
        cosines = np.sort((exact @ exact.T)[np.triu_indices(len(texts), 1)])
        threshold = float(
            cosines[-10]
        )  # the ten nearest pairs are duplicates; random weights have no fixed scale
        both, (vectors, report) = timed(lambda: embed_near(texts, folder, threshold, precision="bfloat16"))
    assert report is not None
    truth = [pair[:2] for pair in find_duplicates(exact, threshold)]

    def changed(found: np.ndarray) -> int:
        return len(set(truth) ^ {pair[:2] for pair in find_duplicates(found, threshold)})

    def error(found: np.ndarray) -> str:
        return f"{np.abs(found @ found.T - theirs @ theirs.T).max():.1g}"

    rows = [
        [name, f"{len(texts) / seconds:.1f}", f"{naive / seconds:.2f}", error(found), changed(found)]
        for name, seconds, found in (
            ("sentence-transformers, default", naive, theirs),
            ("ours, float32", single, exact),
            ("ours, bfloat16 alone", half, rough),
            (f"ours, bfloat16 and recheck of {report.rechecked}", both, vectors),
        )
    ]
    heading = (
        "## Embeddings, 6 x 384, 256 tokens, one thread\n\n"
        f"{len(texts)} documents of five corpora, random weights, threshold {threshold:.4f} (the tenth nearest "
        f"pair). {report.sentence()} With few documents, the fixed sample of {report.sample} weighs much; of 10,000 "
        "it is 0.6 %.\n\n"
    )
    header = [
        "pipeline",
        "documents per CPU-second",
        "times the first",
        "largest cosine error",
        "changed pairs",
    ]
    note = f"\nOne round. {machine('torch', 'transformers', 'sentence-transformers')}\n"
    publish("curation: embedding", heading + table(header, rows) + note, write=write)


def _embedder_folder(scratch: Path, texts: list[str]) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    from curation.rater_tokenizer import train_rater_tokenizer

    sample = [text[:20_000] for text in texts]
    tokenizer = train_rater_tokenizer(sample, scratch / "tokenizer", vocabulary=16_000)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(scratch / "bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    BertModel(BertConfig(**shape, initializer_range=0.05)).save_pretrained(scratch / "bert")
    transformer = Transformer(str(scratch / "bert"), max_seq_length=256)
    modules = [transformer, Pooling(384, pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(scratch / "st"), create_model_card=False)
    return scratch / "st"
