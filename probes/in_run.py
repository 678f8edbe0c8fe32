"""Probes measured while a model trains: what training.loop's `evaluate` is given, for loss trajectories and RankMe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from curation.documents import Document
from probes.intervals import bits_per_byte
from probes.likelihood import score_documents, tokenize_documents
from probes.rankme import rankme_of_model
from training.model import Decoder

RANKME_DOCUMENTS = 64


def probe_evaluation(
    probes: Mapping[str, Sequence[Document]], tokenizer: Any, *, context: int, stride: int
) -> Callable[[Decoder, int], dict[str, float]]:
    """A function of (model, step) for `train(evaluate=...)`: probe losses and RankMe, a number by name.

    "bits_per_byte/NAME" of every probe set; "rankme/NAME" of the hidden states at the tokens of its first 64
    documents, cut after `context` tokens; "rankme/embeddings" of the output weight (MobileLLM-R1, Eq. 9). The
    documents are tokenized now, once.
    """
    tokenized = {name: tokenize_documents(documents, tokenizer) for name, documents in probes.items()}

    def evaluate(model: Decoder, step: int) -> dict[str, float]:
        found = {}
        for name, documents in tokenized.items():
            table = score_documents(model, documents, context=context, stride=stride)
            found[f"bits_per_byte/{name}"] = bits_per_byte(table)
        texts = {name: [d.ids for d in documents[:RANKME_DOCUMENTS]] for name, documents in tokenized.items()}
        for name, value in rankme_of_model(model, texts, context=context).items():
            found[f"rankme/{name}"] = value
        return found

    return evaluate
