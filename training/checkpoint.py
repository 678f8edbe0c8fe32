"""Checkpoints: all that a training run needs to go on as if it had never stopped.

    step-N/model.safetensors       the weights, under the decoder's parameter names
    step-N/optimizer.safetensors   Adam's moments, see training.optimizer.moments
    step-N/averaged.safetensors    the mean of the last weights, where one is kept
    step-N/state.json              the step, the data position (one integer), settings and their hash

There is no random state to keep: the weights' draw and the data order are functions of seeds, and nothing
else in training is random. Nor do ranks leave a trace: one process, copies (DDP) and shards (FSDP) write and
read the same files. Folders appear whole or not at all, and hold no pickle.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation.atomic import hash_value, read_json, replacing_folder, write_json
from curation.errors import DataError, RecipeError
from training.model import Decoder, ModelConfig
from training.optimizer import WeightMean, moments, restore_moments
from training.sharding import is_sharded, like, whole

SCHEMA = 1
MODEL, OPTIMIZER, AVERAGED, STATE = (
    "model.safetensors",
    "optimizer.safetensors",
    "averaged.safetensors",
    "state.json",
)


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands.

    step      : updates made
    sequences : the data position: sequences read, so the index of the next one in the data order
    averaged  : updates in the mean of the weights, 0 when none is kept
    settings  : all that the weights depend on, from `describe_run`
    """

    step: int
    sequences: int
    averaged: int
    settings: dict[str, Any]

    @property
    def model(self) -> ModelConfig:
        """The shape of the model."""
        try:
            return described_config(self.settings["model"])
        except (KeyError, TypeError) as error:
            raise _broken(Path(STATE), f"describes no model of this version: {error}") from error


def described_config(described: dict[str, Any]) -> ModelConfig:
    """The ModelConfig of a run's settings; for a model of transformers the adapter's config, in its place."""
    if "transformers" in described:
        from training.transformers_model import TransformersConfig

        return TransformersConfig(**described)  # type: ignore[return-value]
    return ModelConfig(**described)


def new_model(config: ModelConfig) -> Decoder:
    """A model of that shape whose weights are still to be drawn or loaded."""
    return Decoder(config) if isinstance(config, ModelConfig) else config.build()


def describe_run(
    model: ModelConfig, order: str, training: dict[str, Any], start: str | None, tokenizer: str = ""
) -> dict[str, Any]:
    """The settings of a run as JSON holds them; two runs with equal ones have equal weights.

    order     : fingerprint of the data order
    start     : hash of the weights it starts from, if they are not drawn
    tokenizer : hash of the tokenizer that made the data, "" where that is not known
    """
    described = {"model": asdict(model), "order": order, "training": training, "start": start}
    if tokenizer:
        described["tokenizer"] = tokenizer
    return json.loads(json.dumps(described))


def refuse_other_settings(found: dict[str, Any], wanted: dict[str, Any], where: Path) -> None:
    """Raise RecipeError, naming what differs, unless both settings are equal."""
    if hash_value(found) == hash_value(wanted):
        return
    old, new = _flat(found), _flat(wanted)
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    shown = "; ".join(
        f"{key} has changed"
        if key in ("order", "start", "tokenizer")
        else f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in changed
    )
    raise RecipeError(
        f"This folder holds a run with other settings: {shown}",
        where=str(where),
        remedy="Choose another folder, or delete this one to begin again (`order` is the data and mixture)",
    )


def write_checkpoint(
    folder: Path,
    state: TrainingState,
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    mean: WeightMean | None,
) -> None:
    """Write a checkpoint; the same state gives the same bytes."""
    write_tensors(folder, state, gather_tensors(model, optimizer, mean))


def gather_tensors(
    model: Decoder, optimizer: torch.optim.Optimizer, mean: WeightMean | None, *, wanted: bool = True
) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file of a checkpoint, whole also where they are sharded.

    Of a sharded run every rank must call this; those that do not write the checkpoint with wanted=False keep
    nothing of it. Sharded tensors are moved to the CPU one by one, others are the live ones.
    """
    found: dict[str, dict[str, Tensor]] = {
        MODEL: dict(model.named_parameters()),
        OPTIMIZER: moments(model, optimizer),
    }
    if mean is not None and mean.count:
        found[AVERAGED] = mean.weights
    kept: dict[str, dict[str, Tensor]] = {}
    for file, tensors in found.items():
        kept[file] = {}
        for name, tensor in tensors.items():
            full = whole(tensor)
            if wanted:
                kept[file][name] = full.cpu() if is_sharded(tensor) else full
    return kept


def write_tensors(folder: Path, state: TrainingState, tensors: dict[str, dict[str, Tensor]]) -> None:
    """Write the checkpoint of what `gather_tensors` has returned."""
    with replacing_folder(folder) as temporary:
        for file, content in tensors.items():
            _write_tensors(content, temporary / file)
        record = {"schema": SCHEMA, "settings_hash": hash_value(state.settings), **asdict(state)}
        write_json(temporary / STATE, record | {"versions": {"torch": torch.__version__}})


def read_state(folder: Path | str) -> TrainingState:
    """Where the run stood when it wrote this checkpoint. DataError when it is not one, or is broken."""
    path = Path(folder) / STATE
    try:
        record = read_json(path)
        state = TrainingState(*(record[key] for key in ("step", "sequences", "averaged", "settings")))
        matches = record["schema"] == SCHEMA and record["settings_hash"] == hash_value(state.settings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path, f"cannot be read: {error}") from error
    if not matches:
        raise _broken(path, "is of another version, or was altered")
    return state


def restore_checkpoint(
    folder: Path, settings: dict[str, Any], model: Decoder, optimizer: torch.optim.Optimizer
) -> tuple[TrainingState, WeightMean | None]:
    """Put a checkpoint's weights and moments into `model` and `optimizer`; its state and its mean.

    A sharded model and its optimizer get their parts of it. Raises RecipeError when it was written under
    other settings, DataError when a file is broken.
    """
    state = read_state(folder)
    refuse_other_settings(state.settings, settings, folder)
    parameters = dict(model.named_parameters())
    _copy_weights(model, _read_tensors(folder / MODEL), folder / MODEL)
    saved = {
        key: like(parameters[name], tensor) if name in parameters else tensor
        for key, tensor in _read_tensors(folder / OPTIMIZER).items()
        for name in [key.partition(".")[2]]  # "<moment>.<parameter>"
    }
    try:
        restore_moments(model, optimizer, saved, state.step)
    except KeyError as error:
        raise _broken(folder / OPTIMIZER, f"has no tensor {error}") from error
    if not state.averaged:
        return state, None
    averaged = _read_tensors(folder / AVERAGED)
    if sorted(averaged) != sorted(parameters):
        raise _broken(folder / AVERAGED, "has other tensors than the model")
    mean = ((name, like(p, averaged[name].to(p.device))) for name, p in parameters.items())
    return state, WeightMean(mean, state.averaged)


def load_checkpoint_model(folder: Path | str, *, averaged: bool | None = None) -> Decoder:
    """The model of a checkpoint, weights only, on the CPU.

    averaged : True for the mean of the last weights, False for the weights of that very step (Adam's moments
               belong to these), None for the mean where there is one
    """
    folder = Path(folder)
    state = read_state(folder)
    if averaged and not state.averaged:
        raise DataError(
            "This checkpoint keeps no mean of the weights",
            where=str(folder),
            remedy="Train with average_from, or take a checkpoint after that part of the run",
        )
    wants_mean = state.averaged > 0 if averaged is None else averaged
    path = folder / (AVERAGED if wants_mean else MODEL)
    model = new_model(state.model)
    _copy_weights(model, _read_tensors(path), path)
    return model


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in `folder` by step, in rising order."""
    found = {
        int(path.name.removeprefix("step-")): path
        for path in folder.glob("step-*")
        if path.name.removeprefix("step-").isdecimal()
    }
    return dict(sorted(found.items()))


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint; a kill half-way leaves nothing that looks like one."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(hidden, ignore_errors=True)
        folder.replace(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _copy_weights(model: Decoder, saved: dict[str, Tensor], where: Path) -> None:
    parameters = dict(model.named_parameters())
    if {n: t.shape for n, t in saved.items()} != {n: p.shape for n, p in parameters.items()}:
        raise _broken(where, "has other tensors than the model of its state.json")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(like(parameter, saved[name]))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _broken(path, f"cannot be read: {error}") from error


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _broken(path: Path, why: str) -> DataError:
    return DataError(
        f"The checkpoint {why}",
        where=str(path),
        remedy="Delete this checkpoint; the run continues from the one before it",
    )
