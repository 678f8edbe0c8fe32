"""What a run starts from, if not from drawn weights: a Hugging Face folder or a checkpoint of the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curation.atomic import hash_file, hash_value
from curation.errors import RecipeError
from training.checkpoint import OPTIMIZER, STATE, load_checkpoint_model, read_state
from training.model import Decoder, ModelConfig


def load_start(start: Path) -> Decoder:
    """The model of a checkpoint or of a Hugging Face folder."""
    if (start / STATE).exists():
        return load_checkpoint_model(start)
    # Imported where it is used: transformers takes longer to import than a run to continue.
    from training.huggingface import load_huggingface

    return load_huggingface(start)


def start_tokenizer(start: Path, tokenizer: Any) -> Any:
    """The given tokenizer, that of the given folder, or that of the model folder to start from."""
    if tokenizer is None or isinstance(tokenizer, str | Path):
        from training.tokenizer import load_tokenizer

        return load_tokenizer(tokenizer or start)
    return tokenizer


def start_config(start: Path) -> ModelConfig:
    """The shape of the model in a checkpoint or a Hugging Face folder."""
    if (start / STATE).exists():
        return read_state(start).model
    from training.huggingface import config_from_huggingface, read_config

    return config_from_huggingface(read_config(start), where=str(start / "config.json"))


def start_hash(start: Path | None) -> str | None:
    """Hash of the weights that a run starts from; None for a run that draws them."""
    if start is None:
        return None
    files = sorted(Path(start).glob("*.safetensors"))
    return hash_value([(file.name, hash_file(file)) for file in files if file.name != OPTIMIZER])


def copy_start(model: Decoder, start: Path, tokenizer: str | None) -> None:
    """Copy the weights of a checkpoint or of a Hugging Face folder into `model`.

    tokenizer : hash of the one that made the data, None where that is not known. RecipeError when a
                checkpoint was trained with another, or is of another shape.
    """
    if (Path(start) / STATE).exists():
        theirs = read_state(start).settings.get("tokenizer")
        if tokenizer is not None and theirs not in (None, tokenizer):
            raise RecipeError(
                "The weights to start from were trained with another tokenizer than the data was made with",
                where=str(start),
                remedy="Tokenize the data with the checkpoint's tokenizer, or start from other weights",
            )
    found = load_start(Path(start))
    weights = dict(found.named_parameters())
    if {n: p.shape for n, p in weights.items()} != {n: p.shape for n, p in model.named_parameters()}:
        raise RecipeError(
            "The weights to start from belong to a model of another shape",
            where=str(start),
            remedy="Give the run the same model settings",
        )
    model.load_state_dict(weights)
