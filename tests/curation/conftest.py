"""Tiny models of the published classes, made once per session: random weights, real architecture and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from curation.judge_prompt import TASKS, load_prompt
from curation.rater_tokenizer import train_rater_tokenizer

PROSE = "The sum of two even numbers is even, because each is twice another number, and so is their sum."


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [PROSE, "def add(first, second):\n    return first + second\n"] * 20
    texts += [load_prompt(f"{task}-v1").before for task in TASKS]
    return train_rater_tokenizer(texts, tmp_path_factory.mktemp("tokenizer") / "tokenizer", vocabulary=600)


@pytest.fixture(scope="session")
def judge_folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LlamaForCausalLM; weights large enough that logits differ clearly."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.2,
        )
    )
    folder = tmp_path_factory.mktemp("judge")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def classifier_folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BertForSequenceClassification with one output, the class of HuggingFaceFW/fineweb-edu-classifier."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(1)
    head = {"num_labels": 1, "problem_type": "regression"}
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
        **head,  # type: ignore[arg-type]
    )
    model = BertForSequenceClassification(config)
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
