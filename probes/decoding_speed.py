"""Decoding speed and memory by context length and precision (MobileLLM-R1, Table 10), with the spread of repeats.

A cell is one precision at one context. The prompt is read in pieces, as far as the time given for it allows; the rest
of the cache is filled with copies, whose values do not change what decoding costs. Then the last tokens of the context
are decoded greedily, one row, again and again from the same place. Precisions are measured one after the other, so that
the peak of one does not hold the weights of another; ratios between them bear the machine's drift.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from curation.documents import Document
from curation.errors import MixwrightError, RecipeError
from curation.progress import progress
from probes.intervals import bits_per_byte, paired_difference
from probes.likelihood import LIKELIHOOD_SCHEMA, rolling_windows, tokenize_documents
from probes.memory import available_bytes, peak_bytes, reset_peak
from probes.quantization import DeployedModel, deploy
from training.model import KVCache, ModelConfig

PIECE = 512  # tokens of the prompt read at once
MEMORY_SHARE = 0.8  # of what is available that a cell may ask for


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured.

    decode_tokens   : decoded in each repeat, at the end of the context
    repeats         : counted ones, after one that is not
    prefill_seconds : most time for reading a prompt
    memory_bytes    : what a cell may hold beside the interpreter, to ask what a smaller machine could do
    beyond_positions: also contexts that the model was not made for; speed does not depend on it, text would
    """

    contexts: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)
    precisions: tuple[str, ...] = ("float32", "bf16", "int8", "8da4w")
    decode_tokens: int = 16
    repeats: int = 3
    prefill_seconds: float = 20.0
    memory_bytes: int | None = None
    beyond_positions: bool = False

    def __post_init__(self) -> None:
        if not self.contexts or not self.precisions:
            raise RecipeError("Speed needs a context and a precision at least", where="speed")
        if min(self.decode_tokens, self.repeats) < 1 or min(self.contexts) <= self.decode_tokens:
            raise RecipeError(
                f"A context must hold the {self.decode_tokens} decoded tokens and one more",
                where="contexts",
                remedy="Give longer contexts, or fewer tokens to decode",
            )


def measure_speed(
    folder: Path | str,
    settings: SpeedSettings | None = None,
    *,
    texts: Sequence[Document] = (),
    tokenizer: Any = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure every precision at every context; JSON-able.

    texts  : with the tokenizer, scored in each precision, to tell what it does to bits per byte
    report : called after each precision with all that is known so far, so that a killed call loses one at most

    A cell has `decode` (tokens a second of wall time: median, low, high of the repeats), `cpu_seconds_per_token`,
    `prefill` (tokens a second, and how many were read), bytes of the cache (by formula and as held) and the peak; or
    `skipped`, a sentence that says why. A precision that the machine or the model does not allow is skipped likewise.
    """
    settings = settings or SpeedSettings()
    place = torch.device(device)
    base = peak_bytes(place) if reset_peak(place) else None
    found: dict[str, Any] = {"settings": asdict(settings), "device": place.type, "base_bytes": base,
                             "threads": torch.get_num_threads(), "precisions": []}  # fmt: skip
    reference: pa.Table | None = None
    with progress("speed", len(settings.precisions) * len(settings.contexts), "cells") as bar:
        for name in settings.precisions:
            row: dict[str, Any] = {"name": name, "cells": []}
            found["precisions"].append(row)
            try:
                model = deploy(folder, name, device=place)
            except MixwrightError as error:
                row["skipped"] = str(error)
                bar.advance(len(settings.contexts))
                continue
            row |= {"weight_bytes": model.weight_bytes, "packed_bytes": model.packed_bytes}
            for context in settings.contexts:
                row["cells"].append({"context": context} | _cell(model, context, settings, seed))
                bar.advance()
            if texts:
                table = score_deployed(model, texts, tokenizer)
                reference = table if reference is None else reference
                row["bits_per_byte"] = _moved(table, reference)
            del model
            gc.collect()
            if report:
                report(found)
    return found


def cache_bytes(config: ModelConfig, context: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one row: 2 x layers x kv_heads x head_dim x tokens x bytes of a number.

    >>> from training.model import MOBILELLM_R1_140M
    >>> cache_bytes(MOBILELLM_R1_140M, 32768, torch.bfloat16)
    377487360
    """
    return 2 * config.layers * config.kv_heads * config.head_dim * context * dtype.itemsize


def _cell(model: DeployedModel, context: int, settings: SpeedSettings, seed: int) -> dict[str, Any]:
    config = model.decoder.config
    computed = cache_bytes(config, context, model.dtype)
    cell: dict[str, Any] = {"kv_cache_bytes": computed}
    reason = _too_much(model, context, computed, settings)
    if reason:
        return cell | {"skipped": reason}
    device = model.device
    reset = reset_peak(device)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.vocab_size, (1, context), generator=generator).to(device)
    try:
        with torch.inference_mode():
            cache = model.decoder.new_cache(1, context, model.dtype)
            prompt = context - settings.decode_tokens
            read, seconds = _read_prompt(model, cache, ids[:, :prompt], settings.prefill_seconds)
            _fill(cache, prompt)
            walls, cpus = _decode(model, cache, ids[:, prompt : prompt + 1], prompt, settings)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        return cell | {"skipped": f"Out of memory: {str(error).splitlines()[0]}"}
    speeds = [settings.decode_tokens / wall for wall in walls]
    return cell | {
        "decode": {"median": statistics.median(speeds), "low": min(speeds), "high": max(speeds)},
        "cpu_seconds_per_token": statistics.median(cpus) / settings.decode_tokens,
        "prefill": {"tokens_per_second": read / seconds, "tokens": read},
        "kv_cache_measured": cache.keys.nbytes + cache.values.nbytes,
        "peak_bytes": peak_bytes(device) if reset else None,
    }


def _too_much(model: DeployedModel, context: int, cache: int, settings: SpeedSettings) -> str:
    """Why a cell is not measured, or nothing."""
    config = model.decoder.config
    if context > config.max_positions and not settings.beyond_positions:
        return f"the model reads {config.max_positions:,} positions"
    # A piece of the prompt against all keys, for all heads, beside the cache and one layer's copy of it.
    need = cache + cache // config.layers + 4 * config.heads * PIECE * context
    limit = settings.memory_bytes
    if limit is not None and model.packed_bytes + need > limit:
        return f"out of memory: weights and cache need {(model.packed_bytes + need) / 1e9:.2f} GB of {limit / 1e9:.2f}"
    left = available_bytes(model.device)
    if left is not None and need > MEMORY_SHARE * left:
        return f"out of memory: the cell needs {need / 1e9:.2f} GB, and {left / 1e9:.2f} are left"
    return ""


def _read_prompt(
    model: DeployedModel, cache: KVCache, ids: torch.Tensor, seconds: float
) -> tuple[int, float]:
    began = time.perf_counter()
    read = 0
    for piece in ids.split(PIECE, dim=1):
        model.decoder(piece, cache=cache)
        _wait(ids.device)
        read += piece.shape[1]
        if time.perf_counter() - began > seconds:
            break
    return read, time.perf_counter() - began


def _fill(cache: KVCache, tokens: int) -> None:
    """Fill the cache up to `tokens` with copies of what was read."""
    read = cache.used
    for at in range(read, tokens, read):
        size = min(read, tokens - at)
        cache.keys[:, :, :, at : at + size] = cache.keys[:, :, :, :size]
        cache.values[:, :, :, at : at + size] = cache.values[:, :, :, :size]
    cache.advance(tokens - read)


def _decode(
    model: DeployedModel, cache: KVCache, first: torch.Tensor, prompt: int, settings: SpeedSettings
) -> tuple[list[float], list[float]]:
    walls, cpus = [], []
    start = torch.tensor([prompt], device=first.device)
    for repeat in range(settings.repeats + 1):
        cache.truncate(start)
        token = first
        _wait(first.device)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(settings.decode_tokens):
            token = model.head(model.decoder(token, cache=cache)[:, -1]).argmax(-1, keepdim=True)
        _wait(first.device)
        if repeat:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    return walls, cpus


@torch.inference_mode()
def score_deployed(model: DeployedModel, texts: Sequence[Document], tokenizer: Any) -> pa.Table:
    """Nats of each document, as probes.likelihood scores them, through the deployed head; `LIKELIHOOD_SCHEMA`."""
    documents = tokenize_documents(texts, tokenizer)
    context = model.decoder.config.max_positions
    device = model.device
    nats = []
    for document in documents:
        total = 0.0
        for window in rolling_windows(len(document.ids), context, max(1, context // 2)):
            fed = torch.from_numpy(document.ids[window.begin : window.end - 1])[None].to(device)
            hidden = model.decoder(fed)[0, window.first - window.begin - 1 :]
            labels = torch.from_numpy(document.ids[window.first : window.end]).to(device)
            for states, wanted in zip(hidden.split(PIECE), labels.split(PIECE), strict=True):
                losses = F.cross_entropy(model.head(states).float(), wanted, reduction="none")
                total += float(losses.double().sum())
        nats.append(total)
    columns = {
        "id": [d.id for d in documents], "source": [d.source for d in documents],
        "tokens": [len(d.ids) - 1 for d in documents], "bytes": [d.bytes for d in documents],
        "nats": np.array(nats),
    }  # fmt: skip
    return pa.Table.from_pydict(columns, schema=LIKELIHOOD_SCHEMA)


def _moved(table: pa.Table, reference: pa.Table) -> dict[str, float]:
    """Bits per byte, and their difference to the first precision's with its interval of 95 % over documents."""
    moved = paired_difference(table, reference, level=0.95)
    return {"value": bits_per_byte(table), "difference": moved.value, "low": moved.low, "high": moved.high}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
