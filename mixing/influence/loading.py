"""Reference models: a checkpoint of our trainer, a Hugging Face folder or a name on the hub, and its step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curation.atomic import hash_file, hash_value, read_json
from curation.errors import DataError, RecipeError

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
TRAINER_STATE = "trainer_state.json"  # of transformers' Trainer


def is_trainer_checkpoint(folder: Path | str) -> bool:
    """Whether `folder` is a `step-N` of our trainer and not a Hugging Face folder."""
    return (Path(folder) / "state.json").is_file() and not (Path(folder) / "config.json").is_file()


def load_reference(folder: Path | str, *, device: str = "cpu", dtype: str = "float32") -> nn.Module:
    """The causal model of a checkpoint in evaluation mode.

    device : "cpu", "cuda", "cuda:1" ..., or "auto" for a GPU where there is one
    Of our trainer's checkpoints the weights of that very step are taken, which the optimizer's moments belong
    to, not the mean of the last. Raises DataError when there is no model, RecipeError for a device that is not
    there.
    """
    if dtype not in DTYPES:
        raise RecipeError(
            f"There is no dtype {dtype!r}", where="influence.dtype", remedy=f"Choose {', '.join(DTYPES)}"
        )
    place = choose_place(device)
    local = Path(folder)
    if local.is_dir() and not any(local.glob("*.safetensors")) and not any(local.glob("*.bin")):
        raise DataError(
            "The checkpoint has no weights",
            where=str(local),
            remedy="Train the reference model first, or give a folder with model.safetensors",
        )
    if is_trainer_checkpoint(local):
        from training.checkpoint import load_checkpoint_model

        return load_checkpoint_model(local, averaged=False).to(device=place, dtype=DTYPES[dtype]).eval()
    from transformers import AutoModelForCausalLM

    _check_is_there(folder)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=DTYPES[dtype])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"The model cannot be loaded: {_reason(error, folder)}",
            where=str(folder),
            remedy="Give a Hugging Face folder with config.json, weights and a tokenizer",
        ) from error
    return model.to(place).eval()


def load_tokenizer_of(folder: Path | str, tokenizer: Path | str | None = None) -> Any:
    """The tokenizer of a checkpoint, or the one that is given; our trainer's checkpoints hold none."""
    if tokenizer is None and is_trainer_checkpoint(folder):
        raise RecipeError(
            "A checkpoint of the trainer does not hold its tokenizer",
            where=str(folder),
            remedy="Give the tokenizer's folder too (--tokenizer)",
        )
    from transformers import AutoTokenizer

    _check_is_there(tokenizer or folder)
    try:
        return AutoTokenizer.from_pretrained(str(tokenizer or folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"The model cannot be loaded: its tokenizer: {_reason(error, tokenizer or folder)}",
            where=str(tokenizer or folder),
            remedy="Give a folder with tokenizer.json, by --tokenizer if it is not the model's",
        ) from error


def choose_place(device: str) -> torch.device:
    """The torch device of a name; RecipeError when it is not there."""
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        place = torch.device(wanted)
    except RuntimeError as error:
        raise RecipeError(
            f"There is no device {device!r}", where="influence.device", remedy="Choose auto, cpu or cuda"
        ) from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            "This machine has no GPU that torch can use",
            where="influence.device",
            remedy="Choose cpu or auto",
        )
    return place


def hash_reference(folder: Path | str) -> str:
    """Hex sha256 of a local checkpoint's weights and configuration; of the name where it is on the hub."""
    local = Path(folder)
    if not local.is_dir() and not isinstance(folder, Path) and str(folder).count("/") <= 1:
        return hash_value(str(folder))
    wanted = ("*.safetensors", "*.bin", "config.json", "state.json")
    files = sorted({f for pattern in wanted for f in local.glob(pattern) if f.is_file()})
    if not any(f.suffix in (".safetensors", ".bin") for f in files):
        raise DataError(
            "The checkpoint has no weights",
            where=str(local),
            remedy="Train the reference model first, or correct the path",
        )
    return hash_value([(f.name, hash_file(f)) for f in files])


def step_of(folder: Path | str) -> int | None:
    """The step of a checkpoint: from its own state, else from a name such as step-400 or checkpoint-400."""
    for name, key in (("state.json", "step"), (TRAINER_STATE, "global_step")):
        path = Path(folder) / name
        if path.is_file():
            value = read_json(path).get(key)
            if isinstance(value, int):
                return value
    named = re.search(r"(?:step|checkpoint|iter)[-_]?(\d+)$", Path(folder).name)
    return int(named.group(1)) if named else None


def learning_rate_at(folder: Path | str) -> float | None:
    """The learning rate of the update that made a checkpoint, from the run's log; None where there is no log.

    Our trainer writes `metrics.jsonl` two folders above `step-N`; transformers' Trainer keeps `log_history` in
    the checkpoint, of which the last entry up to the step counts.
    """
    folder, step = Path(folder), step_of(folder)
    if step is None:
        return None
    if (folder / TRAINER_STATE).is_file():
        rows = read_json(folder / TRAINER_STATE).get("log_history", [])
    else:
        from training.run_log import read_rows

        rows = read_rows(folder.parent.parent / "metrics.jsonl")
    rates = [row for row in rows if "learning_rate" in row and row.get("step", step + 1) <= step]
    return float(max(rates, key=lambda row: row["step"])["learning_rate"]) if rates else None


def _check_is_there(folder: Path | str) -> None:
    """DataError for a path that is no folder and that the hub could not have as a name either."""
    if not Path(folder).is_dir() and not HUB_NAME.fullmatch(str(folder)):
        raise DataError("There is no such folder", where=str(folder), remedy="Correct the path of the model")


def _reason(error: Exception, folder: Path | str) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if Path(folder).is_dir():
        return reason
    return f"there is no folder of that name, and the hub does not give it: {reason}"
