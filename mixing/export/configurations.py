"""Trainers that read their mixture from a data file: nanotron, OLMo-core, Megatron-LM, Olmix."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import yaml

from curation.errors import RecipeError
from mixing.export.plan import ExportPlan, Share
from mixing.mixture import Mixture


def nanotron(rows: list[Share], mixture: Mixture, plan: ExportPlan) -> tuple[dict[str, str], tuple[str, ...]]:
    """`data_stages` for a nanotron configuration (Nanoset): a list of folders and a list of weights.

    Nanoset draws fixed-length sequences, so weights are shares of tokens. (Its older `{path: weight}` form is
    not read by versions of 2025 and later.)
    """
    stage = {
        "name": "mixture",
        "start_training_step": 1,
        "data": {
            "seed": plan.seed,
            "num_loading_workers": 1,
            "dataset": {
                "dataset_folder": [row.path for row in rows],
                "dataset_weights": [row.weight for row in rows],
            },
        },
    }
    note = (
        "Nanoset shuffles an index as long as all data together: a budget below one pass draws from it at random, "
        "so its shares scatter like a sample's"
    )
    return {"nanotron.yaml": _yaml({"data_stages": [stage]})}, (note,)


def olmo_core(
    rows: list[Share], mixture: Mixture, plan: ExportPlan
) -> tuple[dict[str, str], tuple[str, ...]]:
    """A `SourceMixtureDatasetConfig` of OLMo-core as YAML: ratios of tokens, with the repetition each needs.

    `max_repetition_ratio` is the epochs rounded up to thousandths (OLMo-core refuses a source that would be
    read more often than that), 1 where fewer. Its own Hamilton rounding then realises the ratios within one
    sequence a file.
    """
    if rows[0].tokens is None:
        raise RecipeError(
            "OLMo-core plans a number of tokens, and nobody said how many",
            where="budget_tokens",
            remedy="Give the tokens to train on",
        )
    budget = sum(row.tokens or 0 for row in rows)
    batch = plan.batch_tokens if plan.batch_tokens is not None else plan.sequence_length
    if batch < 1 or batch % plan.sequence_length:
        raise RecipeError(
            f"A batch of {batch} tokens is not a whole number of sequences of {plan.sequence_length}",
            where="batch_tokens",
            remedy="Give a multiple of the sequence length",
        )
    # OLMo-core fills whole batches, so a source is asked for a little more than its share of the budget.
    reserve = math.ceil(budget / batch) * batch / budget
    sources = []
    for row in rows:
        entry: dict[str, Any] = {"source_name": row.source, "target_ratio": row.weight, "paths": [row.path]}
        if row.epochs is not None:
            entry["max_repetition_ratio"] = max(1.0, math.ceil(row.epochs * reserve * 1000) / 1000)
        sources.append(entry)
    content = {
        "source_list": {"sources": sources},
        "requested_tokens": budget,
        "global_batch_size": batch,
    }
    unknown = [row.source for row in rows if row.epochs is None]
    notes: tuple[str, ...] = ()
    if unknown:
        notes = (
            f"OLMo-core refuses to repeat these, since their size is unknown here: {', '.join(unknown)}; give "
            "their tokens",
        )
    return {"olmo-core.yaml": _yaml(content)}, notes


def megatron(rows: list[Share], mixture: Mixture, plan: ExportPlan) -> tuple[dict[str, str], tuple[str, ...]]:
    """Megatron-LM's blend for `--per-split-data-args-path`: a flat list of weights and prefixes, no path split.

    Its weights are shares of sequences. Validation and test stay without data (`null`). Beside it the same
    list on one line for `--data-args-path`, where no path has a space (that file is split at spaces).
    """
    flat: list[str] = []
    for row in rows:
        flat += [repr(row.weight), row.path]
    files = {"megatron.json": json.dumps({"train": flat, "valid": None, "test": None}, indent=2) + "\n"}
    spaced = [row.path for row in rows if any(c.isspace() for c in row.path)]
    if spaced:
        return files, (f"No megatron.txt, since Megatron splits it at spaces and {spaced[0]!r} has one",)
    files["megatron.txt"] = " ".join(flat) + "\n"
    return files, ()


def olmix(rows: list[Share], mixture: Mixture, plan: ExportPlan) -> tuple[dict[str, str], tuple[str, ...]]:
    """The `ratios.csv` of Olmix with the mixture as its one run (all sources, zeros too), sum exactly 1."""
    names = sorted(mixture.weights)
    reserved = {"run", "name", "index"} & set(names)
    if reserved:
        raise RecipeError(
            f"Olmix keeps the column {sorted(reserved)[0]!r} for itself, and a source has that name",
            where="mixture",
            remedy="Rename the source",
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "name", "index", *names])
    writer.writerow(["mixwright", mixture.method, 0, *(repr(mixture.weights[name]) for name in names)])
    return {"ratios.csv": text.getvalue()}, ()


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
