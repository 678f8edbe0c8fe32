"""Influence from files (`mixwright influence`): a Hugging Face folder, samples, a file for each probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.atomic import hash_folder
from curation.documents import Document
from curation.errors import DataError, RecipeError
from curation.readers import BrokenRecord, read_file
from mixing.influence.adapters import adapt
from mixing.influence.checkpoints import DEFAULT_SETTINGS, InfluenceSettings, score_with, write_benefits
from mixing.influence.directions import Preconditioner, load_adam_moments, probe_directions
from mixing.influence.documents import SampleDocument, spread_over_sources
from training.text_encoding import text_encoder

BROKEN_SHARE = 0.01  # of a file's records that may be unreadable


def score_files(
    model_dir: Path | str,
    samples_file: Path | str,
    probes: Mapping[str, Path | str],
    preconditioner: Preconditioner = "identity",
    out: Path | str | None = None,
    settings: InfluenceSettings = DEFAULT_SETTINGS,
    tokenizer_dir: Path | str | None = None,
) -> pa.Table:
    """Benefit of every document of `samples_file` for every probe: the rows of `BENEFIT_SCHEMA`, written to
    `out`.

    model_dir      : a Hugging Face folder of a causal model with its tokenizer, a name on the hub, or a
                     checkpoint folder of our trainer (then `tokenizer_dir` is needed)
    samples_file   : documents `{"id"?, "text", "source"?}` in a .jsonl, .jsonl.gz, .jsonl.zst, .parquet or
                     .txt file
    probes         : capability -> such a file
    preconditioner : "adam" needs optimizer.safetensors and state.json in `model_dir`
    Samples are `[bos] + tokens + [eos]` where the tokenizer has them, probes `[bos] + tokens`. The numbers
    of a file named `x.parquet` are explained in `x.json` beside it. Raises DataError for files without
    documents and for a tokenizer that does not fit the model, RecipeError for "adam" without an optimizer
    state.
    """
    if not probes:
        raise RecipeError("There is no probe", where="--probe", remedy="Give at least one as NAME=FILE")
    settings = replace(settings, preconditioner=preconditioner)
    moments = load_adam_moments(model_dir) if preconditioner == "adam" else None
    model, tokenizer = _load(model_dir, tokenizer_dir)
    samples, notes = read_samples(samples_file, tokenizer, with_end=True)
    wanted = {}
    for name, file in probes.items():
        wanted[name], broken = read_samples(file, tokenizer, with_end=False)
        notes += broken
    notes += same_texts(wanted, samples)
    directions = probe_directions(
        model,
        wanted,
        preconditioner,
        parameters=settings.parameters,  # type: ignore[arg-type]
        moments=moments,
        curvature=[samples[i] for i in spread_over_sources(samples, settings.curvature_documents)],
        damping=settings.damping,
        context=settings.context,
        batch_tokens=settings.batch_tokens,
    )
    scores = score_with(model, samples, directions, settings, label="influence")
    reference = Path(model_dir).name
    table = pa.concat_tables([scores.table(name, reference=reference) for name in probes])
    if out is not None:
        local = Path(model_dir)
        inputs = {"model": hash_folder(local) if local.is_dir() else str(model_dir)}
        record = {**scores.record, "inputs": inputs, "notes": scores.record["notes"] + notes}
        write_benefits(Path(out), table, record)
    return table


def read_samples(
    file: Path | str, tokenizer: Any, *, with_end: bool
) -> tuple[list[SampleDocument], list[str]]:
    """The documents of a file as token ids, and a note that names what could not be read.

    Raises DataError when there is no document, or more than BROKEN_SHARE of the records cannot be read.
    """
    documents: list[Document] = []
    broken: list[BrokenRecord] = []
    for record in read_file(Path(file)):
        if isinstance(record, BrokenRecord):
            broken.append(record)
        else:
            documents.append(record)
    first = f"{broken[0].why}, at {broken[0].where}" if broken else ""
    if not documents:
        raise DataError(
            f"The file has no documents{f' that can be read: {first}' if first else ''}",
            where=str(file),
            remedy='Give records such as {"text": "..."}',
        )
    if len(broken) > BROKEN_SHARE * (len(broken) + len(documents)):
        raise DataError(
            f"{len(broken)} of {len(broken) + len(documents)} records cannot be read: {first}",
            where=str(file),
            remedy="Mend or remove them",
        )
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    # As the trainer stores documents: where there is no bos, they begin with eos.
    begin = eos if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = eos if with_end else []
    encoded = text_encoder(tokenizer)([d.text for d in documents])
    samples = [
        SampleDocument(d.id, d.source, np.asarray([*begin, *ids, *end], np.int64))
        for d, ids in zip(documents, encoded, strict=True)
    ]
    return samples, [f"{len(broken)} records of {file} were left out: {first}"] if broken else []


def same_texts(
    probes: Mapping[str, Sequence[SampleDocument]], samples: Sequence[SampleDocument]
) -> list[str]:
    """A note for each probe set that shares documents or texts with the samples: they praise themselves."""
    texts = {s.ids.tobytes() for s in samples} | {s.ids[:-1].tobytes() for s in samples}
    names = {s.id for s in samples}
    notes = []
    for capability, documents in probes.items():
        shared = [d.id for d in documents if d.id in names or d.ids.tobytes() in texts]
        if shared:
            notes.append(
                f"{len(shared)} documents of the probe {capability} are samples too, among them {shared[0]}"
            )
    return notes


def _load(model_dir: Path | str, tokenizer_dir: Path | str | None) -> tuple[Any, Any]:
    """A float32 causal model and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = (Path(model_dir) / "state.json").is_file() and not (Path(model_dir) / "config.json").is_file()
    if ours and tokenizer_dir is None:
        raise RecipeError(
            "A checkpoint of the trainer does not hold its tokenizer",
            where=str(model_dir),
            remedy="Give the tokenizer's folder too",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_dir or model_dir))
        if ours:
            from training.checkpoint import load_checkpoint_model

            return _matching(load_checkpoint_model(model_dir, averaged=False), tokenizer, model_dir)
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(model_dir), dtype=torch.float32, attn_implementation="eager"
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"The model cannot be loaded: {str(error).splitlines()[0]}",
            where=str(model_dir),
            remedy="Give a Hugging Face folder with config.json, weights and a tokenizer",
        ) from error
    return _matching(model, tokenizer, model_dir)


def _matching(model: Any, tokenizer: Any, model_dir: Path | str) -> tuple[Any, Any]:
    """Both, or DataError when the tokenizer has tokens that the model lacks."""
    vocabulary = adapt(model).vocabulary
    if len(tokenizer) > vocabulary:
        raise DataError(
            f"The tokenizer has {len(tokenizer)} tokens and the model {vocabulary}: they do not match",
            where=str(model_dir),
            remedy="Use the tokenizer that the model was trained with",
        )
    return model, tokenizer
