"""Trainers whose mixture is a piece of Python: torchtitan, litgpt (litdata), Hugging Face datasets.

Names and paths come from users and corpora: they enter the programs as Python literals (`repr`), never as
code.
"""

from __future__ import annotations

from curation.errors import RecipeError
from mixing.export.plan import ExportPlan, Share, document_probabilities
from mixing.mixture import Mixture

_TORCHTITAN = '''"""A mixture by mixwright for torchtitan: `mixture` is a dataset configuration for GrainDataLoader.

Every source is packed before it is mixed, so weights count fixed-length rows, that is tokens. (Mixed before
packing they would count documents.) Change `text_of` where the rows have another field.
"""

from torchtitan.components.data import (
    ConcatThenSplitPackingConfig,
    DatasetMixConfig,
    IndexedJsonlSource,
    SingleDatasetConfig,
    WeightedDataset,
)
from torchtitan.hf_datasets.text_datasets import TextProcessor

# (source, files, share of tokens)
SOURCES = [
{rows}
]


def text_of(row):
    return row["text"]


def packed(files):
    documents = SingleDatasetConfig(
        source=IndexedJsonlSource.Config(patterns=(files,)),
        processor=TextProcessor.Config(text_fn=text_of),
        post_filters=(lambda sample: sample is not None,),
    )
    return ConcatThenSplitPackingConfig(dataset=documents)


mixture = DatasetMixConfig(
    datasets=tuple(WeightedDataset(dataset=packed(files), weight=weight) for _, files, weight in SOURCES)
)
'''

_LITDATA = '''"""A mixture by mixwright for litgpt: a data module over litdata streams (pre-tokenised, fixed blocks).

Weights count blocks of BLOCK tokens, that is tokens. litgpt's own modules take no weights.
Use: litgpt pretrain ... --data litdata_mixture.MixtureData
"""

from dataclasses import dataclass, field

from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader
from litgpt.data import DataModule

SEED = {seed}
BLOCK = {block}
VALIDATION = None  # a folder of held-out blocks; litgpt asks for one

# (source, folder, share of tokens)
SOURCES = [
{rows}
]


def mixture(block=BLOCK, seed=SEED):
    streams = [
        StreamingDataset(input_dir=folder, item_loader=TokensLoader(block_size=block), shuffle=True, drop_last=True)
        for _, folder, _ in SOURCES
    ]
    # Weights hold only where the end of one stream does not stop or change the others.
    return CombinedStreamingDataset(
        datasets=streams, seed=seed, weights=[weight for _, _, weight in SOURCES], iterate_over_all=False
    )


@dataclass
class MixtureData(DataModule):
    num_workers: int = 4
    batch_size: int = field(default=1, init=False, repr=False)
    block: int = field(default=BLOCK, init=False, repr=False)

    def connect(self, tokenizer=None, batch_size=1, max_seq_length=BLOCK - 1):
        self.batch_size, self.block = batch_size, max_seq_length + 1  # inputs and their next tokens

    def train_dataloader(self):
        return StreamingDataLoader(
            mixture(self.block), batch_size=self.batch_size, num_workers=self.num_workers, drop_last=True
        )

    def val_dataloader(self):
        if VALIDATION is None:
            raise ValueError("Set VALIDATION in this file to a folder of held-out blocks")
        held_out = StreamingDataset(input_dir=VALIDATION, item_loader=TokensLoader(block_size=self.block))
        return StreamingDataLoader(held_out, batch_size=self.batch_size, num_workers=self.num_workers)
'''

_DATASETS = '''"""A mixture by mixwright for Hugging Face datasets: `mixture()` is a stream of documents.

`interleave_datasets` draws documents, so its probabilities are shares of documents:
share of tokens / mean tokens per document. Every source repeats without end, so that no stopping rule changes
the shares; take as many documents as the budget holds.
"""

from datasets import interleave_datasets, load_dataset

SEED = {seed}
DOCUMENTS = {documents}  # about {budget} tokens; None: without end

# (source, files, share of documents, share of tokens)
SOURCES = [
{rows}
]


def read(files):
    kind = "parquet" if files.endswith(".parquet") else "json"
    return load_dataset(kind, data_files=files, split="train", streaming=True).select_columns(["text"])


def mixture(documents=DOCUMENTS, seed=SEED):
    streams = [read(files).repeat(None) for _, files, _, _ in SOURCES]
    probabilities = [probability for _, _, probability, _ in SOURCES]
    stream = interleave_datasets(
        streams, probabilities=probabilities, seed=seed, stopping_strategy="first_exhausted"
    )
    return stream if documents is None else stream.take(documents)
'''


def torchtitan(
    rows: list[Share], mixture: Mixture, plan: ExportPlan
) -> tuple[dict[str, str], tuple[str, ...]]:
    """A Python file that builds torchtitan's `DatasetMixConfig` (its data pipeline of 2026, on Grain)."""
    lines = [f"    ({row.source!r}, {row.path!r}, {row.weight!r})," for row in rows]
    note = "torchtitan repeats a source as often as its weight asks for: epochs are not limited there"
    return {"torchtitan_mixture.py": _filled(_TORCHTITAN, rows=lines)}, (note,)


def litdata(rows: list[Share], mixture: Mixture, plan: ExportPlan) -> tuple[dict[str, str], tuple[str, ...]]:
    """A Python file with litdata's `CombinedStreamingDataset` and a litgpt data module around it."""
    lines = [f"    ({row.source!r}, {row.path!r}, {row.weight!r})," for row in rows]
    text = _filled(_LITDATA, rows=lines, seed=repr(plan.seed), block=repr(plan.sequence_length + 1))
    note = "litdata draws the source of every block at random: shares scatter like a sample's"
    return {"litdata_mixture.py": text}, (note,)


def datasets(rows: list[Share], mixture: Mixture, plan: ExportPlan) -> tuple[dict[str, str], tuple[str, ...]]:
    """A Python file around `interleave_datasets`, with probabilities converted from tokens to documents."""
    probabilities = document_probabilities(rows, plan)
    lines = [
        f"    ({row.source!r}, {row.path!r}, {probabilities[row.source]!r}, {row.weight!r})," for row in rows
    ]
    documents, budget = None, None
    if rows[0].tokens is not None and plan.tokens_per_document is not None:
        budget = sum(row.tokens or 0 for row in rows)
        mean = sum(probabilities[row.source] * plan.tokens_per_document[row.source] for row in rows)
        documents = max(1, round(budget / mean))
    text = _filled(_DATASETS, rows=lines, seed=repr(plan.seed), documents=repr(documents), budget=str(budget))
    note = "interleave_datasets draws the source of every document at random: shares scatter like a sample's"
    return {"datasets_mixture.py": text}, (note,)


def _filled(template: str, *, rows: list[str], **values: str) -> str:
    """The program; it must compile, whatever the names in it."""
    text = template
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    # Rows last, so that a brace in a source's name is never taken for a place of the template.
    text = text.replace("{rows}", "\n".join(rows))
    try:
        compile(text, "<export>", "exec")
    except (SyntaxError, ValueError) as error:
        raise RecipeError(
            f"A name or path cannot stand in a Python file: {error}",
            where="mixture",
            remedy="Rename the source",
        ) from error
    return text
