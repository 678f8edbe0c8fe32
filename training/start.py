"""What a run starts from, if not from drawn weights: a Hugging Face folder or a checkpoint of the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from curation.atomic import hash_file, hash_value
from curation.errors import DataError, RecipeError
from training.checkpoint import OPTIMIZER, STATE, load_checkpoint_model, read_state
from training.model import Decoder, ModelConfig


def load_start(start: Path) -> Decoder:
    """The model of a checkpoint or of a Hugging Face folder."""
    if (start / STATE).exists():
        return load_checkpoint_model(start)
    # Imported where it is used: transformers takes longer to import than a run to continue.
    from training.huggingface import load_huggingface

    return load_huggingface(start)


def load_policy(start: Path) -> Decoder:
    """`load_start`, and for a model that the decoder cannot express training.transformers_model's adapter, which
    has the methods of a Decoder that fine-tuning, rollouts and updates use."""
    if (start / STATE).exists() or _is_ours(start):
        return load_start(start)
    from training.transformers_model import load_transformers

    return load_transformers(start)  # type: ignore[return-value]


def policy_config(start: Path) -> ModelConfig:
    """The shape of the model that `load_policy` gives: a ModelConfig, or a TransformersConfig in its place."""
    if (start / STATE).exists() or _is_ours(start):
        return start_config(start)
    from training.transformers_model import read_transformers_config

    return read_transformers_config(start)  # type: ignore[return-value]


def save_policy(
    model: Decoder, folder: Path, tokenizer: Any, generation: dict[str, Any] | None = None
) -> None:
    """Write what `load_policy` gave as a Hugging Face folder."""
    if isinstance(model, Decoder):
        from training.huggingface import save_huggingface

        save_huggingface(model, folder, tokenizer, generation)
    else:
        model.save(folder, tokenizer, generation)


def _is_ours(start: Path) -> bool:
    """Whether the decoder can be the model of a Hugging Face folder; what is broken is for the decoder to name."""
    from training.huggingface import config_from_huggingface, read_config
    from training.huggingface_config import ARCHITECTURES

    described = read_config(start)
    try:
        config_from_huggingface(described)
    except DataError:
        # What is not even described is broken for transformers too, and our sentence says more.
        from transformers import CONFIG_MAPPING

        kind = described.get("model_type")
        return kind not in CONFIG_MAPPING or (kind in ARCHITECTURES and "hidden_size" not in described)
    return True


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
    found = (load_start if isinstance(model, Decoder) else load_policy)(Path(start))
    weights = dict(found.named_parameters())
    if {n: p.shape for n, p in weights.items()} != {n: p.shape for n, p in model.named_parameters()}:
        raise RecipeError(
            "The weights to start from belong to a model of another shape",
            where=str(start),
            remedy="Give the run the same model settings",
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # each tied weight once
            parameter.copy_(weights[name])
