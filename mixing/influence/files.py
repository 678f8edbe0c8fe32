"""Influence from files: any Hugging Face folder, a file of samples, a file for each probe (`mixwright influence`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.atomic import hash_folder
from curation.documents import Document, document_id
from curation.errors import DataError, RecipeError
from curation.readers import BrokenRecord, read_file
from mixing.influence.checkpoints import InfluenceSettings, check_held_out, score_with, write_benefits
from mixing.influence.directions import Preconditioner, load_adam_moments, probe_directions
from mixing.influence.documents import SampleDocument, spread_over_sources


def score_files(
    model_dir: Path | str,
    samples_file: Path | str,
    probes: Mapping[str, Path | str],
    preconditioner: Preconditioner = "identity",
    out: Path | str | None = None,
    settings: InfluenceSettings = InfluenceSettings(),
) -> pa.Table:
    """Benefit of every document of `samples_file` for every probe: the rows of `BENEFIT_SCHEMA`, written to `out`.

    model_dir      : a Hugging Face folder of a causal model with its tokenizer, or a name on the hub
    samples_file   : documents `{"id"?, "text", "source"?}` in a .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt file
    probes         : capability -> such a file
    preconditioner : "adam" needs optimizer.safetensors and state.json in `model_dir`
    Samples are `[bos] + tokens + [eos]` where the tokenizer has them, probes `[bos] + tokens`. The numbers of a file
    named `x.parquet` are explained in `x.json` beside it. Raises DataError for files without documents and for a
    tokenizer that does not fit the model, RecipeError for "adam" without an optimizer state.
    """
    if not probes:
        raise RecipeError("There is no probe", where="--probe", remedy="Give at least one as NAME=FILE")
    settings = replace(settings, preconditioner=preconditioner)
    moments = load_adam_moments(model_dir) if preconditioner == "adam" else None
    model, tokenizer = _load(model_dir)
    samples = read_samples(samples_file, tokenizer, with_end=True)
    wanted = {name: read_samples(file, tokenizer, with_end=False) for name, file in probes.items()}
    check_held_out(wanted, samples)
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
        write_benefits(Path(out), table, {**scores.record, "inputs": inputs})
    return table


def read_samples(file: Path | str, tokenizer: Any, *, with_end: bool) -> list[SampleDocument]:
    """The documents of a file as token ids. DataError when there is none, or a record cannot be read."""
    documents: list[Document] = []
    for record in read_file(Path(file)):
        if isinstance(record, BrokenRecord):
            raise DataError(
                f"A record cannot be read: {record.why}", where=record.where, remedy="Mend or remove it"
            )
        documents.append(record)
    if not documents:
        raise DataError("The file has no documents", where=str(file), remedy='Give records {"text": ...}')
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [tokenizer.eos_token_id] if with_end and tokenizer.eos_token_id is not None else []
    encoded = tokenizer([d.text for d in documents], add_special_tokens=False)["input_ids"]
    return [
        SampleDocument(d.id or document_id(d.source, d.text), d.source, np.asarray([*begin, *ids, *end], np.int64))
        for d, ids in zip(documents, encoded, strict=True)
    ]


def _load(model_dir: Path | str) -> tuple[Any, Any]:
    """A float32 causal model and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model_dir))
        model = AutoModelForCausalLM.from_pretrained(
            str(model_dir), dtype=torch.float32, attn_implementation="eager"
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"The model cannot be loaded: {str(error).splitlines()[0]}",
            where=str(model_dir),
            remedy="Give a Hugging Face folder with config.json, weights and a tokenizer",
        ) from error
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocabulary:
        raise DataError(
            f"The tokenizer has {len(tokenizer)} tokens and the model {vocabulary}: they do not belong together",
            where=str(model_dir),
            remedy="Use the tokenizer that the model was trained with",
        )
    return model, tokenizer
