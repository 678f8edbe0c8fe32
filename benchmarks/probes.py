"""Likelihoods: probes beside lm-evaluation-harness and beside a bare forward pass, on several shapes of work.

    python -m benchmarks.probes [FILE.parquet | FILE.jsonl.gz ...] [--tokens 24000] [--rounds 3] [--write]

Without files, the text is this Python installation's own. The opponent is the harness' HFLM as it comes (batch size 1,
the dtype that the model folder states, float32, its cache of logits) and with batches of as many tokens as ours has.
All score the same texts with the same weights, from the text to the sums, bos before each text as probes do. The bare
pass is the decoder on the windows' tokens in the same batches, with the product that makes the logits
and nothing after.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch

from benchmarks.measure import Timing, machine, paired, publish, table
from benchmarks.training_tokens import read_texts
from curation.documents import Document
from curation.progress import set_progress_mode
from probes.likelihood import rolling_windows, score_documents, tokenize_documents
from probes.task_scoring import Loaded
from training.grpo_update import autocast
from training.huggingface import save_huggingface
from training.model import Decoder, ModelConfig
from training.tokenizer import load_tokenizer, train_tokenizer

CONTEXT, WORDS, BATCH_TOKENS = 1024, 8192, 4096
DOCUMENT_CONTEXT = 512
Pair = tuple[str, str]
HEADINGS = (
    "",
    "tokens",
    "tokens/s",
    "times as fast as lm-eval as it comes",
    "as lm-eval batched",
    "time over a bare forward pass (goal 1.15)",
    "largest difference of nats",
)


@dataclass(frozen=True)
class Shape:
    """Work of one kind: documents, or (context, continuation) pairs; `rows` is the opponent's larger batch.

    context : tokens that a pair may have
    """

    name: str
    vocabulary: int
    documents: tuple[Document, ...] = ()
    pairs: tuple[Pair, ...] = ()
    rows: int = 8
    context: int = CONTEXT


def shapes(texts: list[str], tokenizer: Any, tokens: int, seed: int = 0) -> list[Shape]:
    """Long and short documents, questions with four choices, alone and after five solved ones, and gold answers."""
    rng = random.Random(seed)
    ids = tokenizer("\n".join(texts))["input_ids"]

    def piece(low: int, high: int) -> str:
        size = rng.randint(low, high)
        at = rng.randrange(len(ids) - size)
        return tokenizer.decode(ids[at : at + size])

    def documents(total: int, low: int, high: int) -> tuple[Document, ...]:
        count = max(1, 2 * total // (low + high))
        return tuple(Document(str(n), piece(low, high), "text") for n in range(count))

    def question() -> str:
        return f"Question: {piece(30, 90)}\nAnswer:"

    def answers(low: int, high: int, number: int) -> list[str]:
        return [" " + piece(low, high).strip() + "." for _ in range(number)]

    alone = [(asked, a) for asked in (question() for _ in range(48)) for a in answers(4, 12, 4)]
    five = "".join(question() + answers(4, 12, 1)[0] + "\n\n" for _ in range(5))
    shown = [(asked, a) for asked in (five + question() for _ in range(16)) for a in answers(4, 12, 4)]
    letters = [(asked, f" {a}") for asked in (five + question() for _ in range(32)) for a in "ABCD"]
    eight = "".join(question() + answers(40, 90, 1)[0] + "\n\n" for _ in range(5))
    gold = [(eight + question(), answers(40, 90, 1)[0]) for _ in range(48)]
    found = [
        Shape(
            f"long documents, vocabulary {v // 1024}k",
            v,
            documents(max(tokens // cut, 3000), 1000, 3000),
            rows=4,
        )
        for v, cut in ((8192, 1), (32768, 2), (131072, 8))
    ]
    return [
        *found,
        Shape("short documents (20 to 100 tokens)", WORDS, documents(tokens, 20, 100), rows=32),
        Shape("48 questions, 4 choices of several tokens", WORDS, pairs=tuple(alone), rows=16),
        Shape("the same, 16 after 5 examples", WORDS, pairs=tuple(shown)),
        Shape("32 questions, 4 letters, after 5 examples", WORDS, pairs=tuple(letters)),
        Shape("48 gold answers after 5 examples", WORDS, pairs=tuple(gold)),
    ]


def bare_forward(model: Decoder, documents: tuple[Document, ...], tokenizer: Any) -> None:
    """Read every window and make its logits; the windows are sorted by length, as anybody would."""
    windows = [
        document.ids[window.begin : window.end - 1]
        for document in tokenize_documents(documents, tokenizer)
        for window in rolling_windows(len(document.ids), DOCUMENT_CONTEXT, DOCUMENT_CONTEXT)
    ]
    windows.sort(key=len, reverse=True)
    with torch.inference_mode():
        at = 0
        while at < len(windows):
            width = len(windows[at])
            batch = windows[at : at + max(BATCH_TOKENS // width, 1)]
            ids = torch.zeros(len(batch), width, dtype=torch.int64)
            for row, window in enumerate(batch):
                ids[row, : len(window)] = torch.from_numpy(window)
            model.logits(model(ids))
            at += len(batch)


def contestants(
    shape: Shape, folder: Path, *, narrow: bool
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """What runs, and the nats of each, which must agree; `narrow` adds both in bfloat16."""
    loaded = Loaded.of(folder, batch_tokens=BATCH_TOKENS, device="cpu")
    nats: dict[str, float] = {}

    def ours(name: str, precision: str) -> Callable[[], None]:
        def work() -> None:
            with autocast(precision, loaded.model)():
                if shape.pairs:
                    nats[name] = float(loaded.nats(loaded.pairs(shape.pairs)).sum())
                    return
                scored = score_documents(
                    loaded.model, tokenize_documents(shape.documents, loaded.tokenizer),
                    context=DOCUMENT_CONTEXT, stride=DOCUMENT_CONTEXT, batch_tokens=BATCH_TOKENS,
                )  # fmt: skip
            nats[name] = math.fsum(scored["nats"].to_pylist())

        return work

    work: dict[str, Callable[[], object]] = {"probes": ours("probes", "float32")}
    if shape.documents:
        work["bare forward pass"] = lambda: bare_forward(loaded.model, shape.documents, loaded.tokenizer)
    work["lm-eval as it comes"] = harness(shape, folder, 1, "auto", nats, "lm-eval as it comes")
    work["lm-eval, batched"] = harness(shape, folder, shape.rows, "auto", nats, "lm-eval, batched")
    if narrow:
        work["probes, products in bfloat16"] = ours("probes, products in bfloat16", "bfloat16")
        work["lm-eval, all in bfloat16"] = harness(
            shape, folder, 1, "bfloat16", nats, "lm-eval, all in bfloat16"
        )
    return work, nats


def harness(
    shape: Shape, folder: Path, rows: int, dtype: str, nats: dict[str, float], name: str
) -> Callable[[], None]:
    """The harness on the same requests."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    kind = "loglikelihood" if shape.pairs else "loglikelihood_rolling"
    given: list[tuple[str, ...]] = list(shape.pairs) or [(d.text,) for d in shape.documents]
    requests = [Instance(kind, {}, one, at) for at, one in enumerate(given)]  # type: ignore[arg-type]
    lm = HFLM(
        pretrained=str(folder), batch_size=rows, device="cpu", dtype=dtype, add_bos_token=bool(shape.pairs),
        max_length=shape.context if shape.pairs else DOCUMENT_CONTEXT,
    )  # fmt: skip

    def work() -> None:
        found = getattr(lm, kind)(requests, disable_tqdm=True)
        nats[name] = -math.fsum(value[0] if shape.pairs else value for value in found)

    return work


def row_of(shape: Shape, tokens: int, times: dict[str, Timing], nats: dict[str, float]) -> list[str]:
    """One line of the table."""
    ours = times["probes"]

    def faster(name: str) -> str:
        return f"{ours.ratio(times[name]):.2f}" if name in times else ""

    bare = f"{times['bare forward pass'].ratio(ours):.2f}" if shape.documents else ""
    off = max(abs(nats[n] / nats["probes"] - 1) for n in nats if "bfloat16" not in n)
    return [shape.name, f"{tokens:,}", f"{tokens / ours.seconds:,.0f}", faster("lm-eval as it comes"),
            faster("lm-eval, batched"), bare, f"{off:.0e}"]  # fmt: skip


def narrow_words(times: dict[str, Timing], nats: dict[str, float]) -> str:
    """What bfloat16 does, to ours and to theirs."""
    ours, theirs = times["probes, products in bfloat16"], times["lm-eval, all in bfloat16"]
    wide, theirs_wide = times["probes"], times["lm-eval as it comes"]
    off = {name: f"{abs(nats[name] / nats['probes'] - 1):.0e}" for name in nats if "bfloat16" in name}
    return (
        "On the first row, products in bfloat16 (sums, norms, softmax in float32) are "
        f"{ours.ratio(wide):.2f} times as fast as probes in float32, {ours.ratio(theirs_wide):.2f} times as fast as "
        f"lm-eval as it comes and {ours.ratio(theirs):.2f} times as fast as lm-eval all in bfloat16; nats then differ "
        f"relatively by {off['probes, products in bfloat16']}, lm-eval's by {off['lm-eval, all in bfloat16']}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--tokens", type=int, default=24_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_progress_mode("quiet")
    logging.disable(logging.WARNING)
    rows, narrow = [], ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [text for _, text in read_texts(arguments.files, 2.0)]
        train_tokenizer(texts, WORDS, folder / "tokenizer")
        tokenizer = load_tokenizer(folder / "tokenizer")
        for number, shape in enumerate(shapes(texts, tokenizer, arguments.tokens)):
            model = folder / f"model-{shape.vocabulary}"
            if not model.exists():
                config = ModelConfig(
                    shape.vocabulary,
                    256,
                    4,
                    heads=8,
                    kv_heads=4,
                    head_dim=32,
                    ffn_dim=768,
                    max_positions=CONTEXT,
                )
                save_huggingface(Decoder(config).init_weights(0), model, tokenizer)
            work, nats = contestants(shape, model, narrow=number == 0)
            times = paired(work, rounds=arguments.rounds)
            loaded = Loaded.of(model, device="cpu")
            asked = (
                loaded.pairs(shape.pairs) if shape.pairs else tokenize_documents(shape.documents, tokenizer)
            )
            rows.append(row_of(shape, sum(len(one.ids) - 1 for one in asked), times, nats))
            narrow = narrow or narrow_words(times, nats)
            print(rows[-1], {name: round(time.seconds, 2) for name, time in times.items()}, flush=True)
    reached = [row[0] for row in rows if float(row[3]) >= 3]
    text = (
        "## Likelihoods beside lm-evaluation-harness\n\n"
        f"A decoder of 4 layers x 256 with a byte-level BPE of {WORDS:,} (larger vocabularies: more rows that no text "
        f"uses), documents in windows of {DOCUMENT_CONTEXT}, pairs in a context of {CONTEXT:,}, batches of "
        f"{BATCH_TOKENS:,} tokens, float32, one thread; CPU time of the process with tokenisation, median of "
        f"{arguments.rounds} paired rounds (`python -m benchmarks.probes`). As it comes, lm-eval runs batches of "
        "one with its cache of logits, in the dtype of the folder (float32), and a log-softmax over the whole "
        "vocabulary at every token; batched, as many rows as fit our tokens. Above 1 ours is faster; tokens count what "
        "each pair "
        f"would feed alone. The goal of 3 is reached by {len(reached)} of {len(rows)} rows"
        f"{': ' + '; '.join(reached) if reached else ''}. Both sides do the same products for documents, which leaves "
        "no room for 3 there.\n\n"
        + table(HEADINGS, rows)
        + f"\n{narrow}\n\n{machine('torch', 'transformers', 'lm_eval')}\n"
    )
    publish("probes", text, write=arguments.write)


if __name__ == "__main__":
    main()
