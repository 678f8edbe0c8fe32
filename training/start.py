"""What post-training starts from: a Hugging Face folder or a checkpoint of the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.checkpoint import STATE, load_checkpoint_model, read_state
from training.huggingface import config_from_huggingface, load_huggingface, read_config
from training.model import Decoder, ModelConfig
from training.tokenizer import load_tokenizer


def load_start(start: Path) -> Decoder:
    """The model of a checkpoint or of a Hugging Face folder."""
    return load_checkpoint_model(start) if (start / STATE).exists() else load_huggingface(start)


def start_tokenizer(start: Path, tokenizer: Any) -> Any:
    """The given tokenizer, that of the given folder, or that of the model folder to start from."""
    if tokenizer is None or isinstance(tokenizer, str | Path):
        return load_tokenizer(tokenizer or start)
    return tokenizer


def start_config(start: Path) -> ModelConfig:
    """The shape of the model in a checkpoint or a Hugging Face folder."""
    if (start / STATE).exists():
        return read_state(start).model
    return config_from_huggingface(read_config(start), where=str(start / "config.json"))
