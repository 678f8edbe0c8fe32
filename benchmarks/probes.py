"""Likelihood of a text set: probes.likelihood beside lm-evaluation-harness and beside a bare forward pass.

    python -m benchmarks.probes [FILE.parquet | FILE.jsonl.gz ...] [--tokens 100000] [--rounds 3] [--write]

Without files, the text is this Python installation's own. All score the same texts with the same weights in windows
of the whole context, without bos among what is predicted, from the text to the sums. The bare pass is the decoder on
the windows' tokens in the same batches, with the product that makes the logits and nothing after it.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch

from benchmarks.measure import machine, paired, publish, table
from benchmarks.training_tokens import read_texts
from curation.documents import Document
from curation.progress import set_progress_mode
from probes.likelihood import rolling_windows, score_documents, tokenize_documents
from training.grpo_update import autocast
from training.huggingface import save_huggingface
from training.model import Decoder, ModelConfig
from training.tokenizer import train_tokenizer

CONTEXT, VOCABULARY, BATCH_TOKENS = 512, 4096, 2048


def enough_texts(files: list[Path], tokenizer_folder: Path, tokens: int) -> tuple[list[Document], Any]:
    """Texts of at least so many tokens together, and a tokenizer trained on them."""
    texts = [text for _, text in read_texts(files, tokens * 6 / 1e6)]
    tokenizer = train_tokenizer(texts, VOCABULARY, tokenizer_folder)
    sizes = list(accumulate(len(tokenizer(text)["input_ids"]) for text in texts))
    enough = next((at for at, size in enumerate(sizes, 1) if size >= tokens), len(sizes))
    return [Document(str(at), text, "text") for at, text in enumerate(texts[:enough])], tokenizer


def bare_forward(model: Decoder, documents: list[Document], tokenizer: Any) -> None:
    """Read every window and make its logits; the windows are sorted by length, as anybody would."""
    tokenized = tokenize_documents(documents, tokenizer)
    windows = [
        document.ids[window.begin : window.end - 1]
        for document in tokenized
        for window in rolling_windows(len(document.ids), CONTEXT, CONTEXT)
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
    documents: list[Document], tokenizer: Any, folder: Path
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """What runs, and the nats of each, which must agree."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from probes.harness import MixwrightLM

    config = ModelConfig(
        len(tokenizer), 128, 4, heads=4, kv_heads=2, head_dim=32, ffn_dim=384, max_positions=CONTEXT
    )
    model = Decoder(config).init_weights(0).requires_grad_(False)
    save_huggingface(model, folder, tokenizer)
    rows = BATCH_TOKENS // CONTEXT
    theirs = {
        f"lm-eval, batch {size}": HFLM(
            pretrained=str(folder), batch_size=size, device="cpu", dtype="float32", add_bos_token=False
        )
        for size in (1, rows)
    }
    adapter = MixwrightLM(folder, add_bos_token=False, device="cpu", batch_tokens=BATCH_TOKENS)
    requests = [Instance("loglikelihood_rolling", {}, (d.text,), at) for at, d in enumerate(documents)]
    nats: dict[str, float] = {}

    def ours(name: str, precision: str) -> Callable[[], None]:
        def work() -> None:
            with autocast(precision, model)():
                scored = score_documents(
                    model,
                    tokenize_documents(documents, tokenizer),
                    context=CONTEXT,
                    stride=CONTEXT,
                    batch_tokens=BATCH_TOKENS,
                )
            nats[name] = math.fsum(scored["nats"].to_pylist())

        return work

    def harness(name: str, lm: Any) -> Callable[[], None]:
        def work() -> None:
            nats[name] = -math.fsum(lm.loglikelihood_rolling(requests, disable_tqdm=True))

        return work

    work: dict[str, Callable[[], object]] = {
        name: ours(name, precision)
        for name, precision in (("probes.likelihood", "float32"), ("the same in bfloat16", "bfloat16"))
    }
    work["bare forward pass"] = lambda: bare_forward(model, documents, tokenizer)
    for name, lm in (theirs | {"mixwright within lm-eval": adapter}).items():
        work[name] = harness(name, lm)
    return work, nats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_progress_mode("quiet")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents, tokenizer = enough_texts(arguments.files, folder / "tokenizer", arguments.tokens)
        tokens = sum(len(d.ids) - 1 for d in tokenize_documents(documents, tokenizer))
        work, nats = contestants(documents, tokenizer, folder / "model")
        times = paired(work, rounds=arguments.rounds)
    reference = nats["probes.likelihood"]
    rows = [
        [
            name,
            f"{tokens / time.seconds:,.0f}",
            f"{time.ratio(times['probes.likelihood']):.2f}",
            f"{abs(nats[name] / reference - 1):.1e}" if name in nats else "",
        ]
        for name, time in times.items()
    ]
    ratios = {
        name: times["probes.likelihood"].ratio(time) for name, time in times.items() if "lm-eval," in name
    }
    against = " and ".join(f"{ratio:.2f} times as fast as {name}" for name, ratio in ratios.items())
    bare = times["bare forward pass"].ratio(times["probes.likelihood"])
    text = (
        "## Likelihood of a text set\n\n"
        f"{len(documents):,} documents, {tokens:,} tokens of a byte-level BPE of {len(tokenizer):,}; a decoder of 4 "
        f"layers x 128, windows of {CONTEXT}, batches of {BATCH_TOKENS:,} tokens, float32 unless said, "
        f"one thread; CPU time of the process with tokenisation, median of {arguments.rounds} paired rounds "
        f"(`python -m benchmarks.probes`). probes.likelihood is {against} (goal 3), "
        f"and takes {bare:.2f} of a bare forward pass (goal 1.15).\n\n"
        + table(["", "tokens/s", "speed of probes.likelihood = 1", "relative difference of nats"], rows)
        + f"\n{machine('torch', 'transformers', 'lm_eval')}\n"
    )
    publish("probes", text, write=arguments.write)


if __name__ == "__main__":
    main()
