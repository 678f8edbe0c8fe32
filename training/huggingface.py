"""Hugging Face model folders in and out: bit-equal weights, equal logits to transformers' own classes.

Read and written without transformers (only a tokenizer needs it), so a folder with a feature that the decoder
does not have is refused with a sentence instead of being loaded wrongly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation.atomic import replacing_folder, write_json
from curation.errors import DataError
from training.huggingface_config import SUPPORTED, config_from_huggingface, config_to_huggingface
from training.model import Decoder, Family

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
GENERATION = "generation_config.json"
SHARD_BYTES = (
    5 * 10**9
)  # what transformers 4 wrote by default; each file is held in memory once more as it is read


def save_huggingface(
    model: Decoder,
    folder: Path | str,
    tokenizer: Any = None,
    generation: dict[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `model` as a folder that transformers, vLLM and llama.cpp's converter load. Atomic.

    tokenizer  : a transformers tokenizer, saved beside the weights; its special tokens go into the configs
    generation : entries of generation_config.json, for example {"temperature": 0.6, "do_sample": True}, or what
                 `read_generation` found; all its eos ids and the tokenizer's end an answer
    dtype      : precision of the file; by default that of the parameters, so that the bits are the same
    shard_bytes : beyond so many bytes, several files and an index

    The same model gives the same bytes. Raises DataError when the tokenizer has more tokens than the model.
    """
    if tokenizer is not None and len(tokenizer) > model.config.vocab_size:
        raise DataError(
            f"The tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size}",
            where=str(folder),
            remedy="Save the model with the tokenizer it was trained with",
        )
    state = {
        huggingface_name(name, model.config.family): parameter.detach()
        .to("cpu", dtype or parameter.dtype)
        .contiguous()
        for name, parameter in model.named_parameters()
    }
    from training.tokenizer import write_tokenizer  # here, because it imports transformers

    generation = generation or {}
    special = special_tokens(tokenizer, generation)
    described = config_to_huggingface(model.config) | special
    described["torch_dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
    with replacing_folder(folder) as temporary:
        if tokenizer is not None:
            write_tokenizer(tokenizer, temporary)
        write_json(temporary / "config.json", described)
        write_json(temporary / GENERATION, generation | special)
        _write_weights(state, temporary, shard_bytes)


def load_huggingface(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> Decoder:
    """Read a Hugging Face folder (safetensors, one file or shards) into a Decoder of `dtype` parameters.

    Raises DataError naming the file or tensor when a part is missing or of another shape, or a feature of the
    checkpoint is not one of the decoder's.
    """
    folder = Path(folder)
    config = config_from_huggingface(read_config(folder), where=str(folder / "config.json"))
    state = {_from_huggingface(name): tensor for name, tensor in _read_weights(folder).items()}
    if config.tied:
        state.pop("lm_head.weight", None)  # some exporters write the tied copy; transformers ignores it too
    with torch.device("meta"):
        model = Decoder(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    _check_state({name: tuple(t.shape) for name, t in state.items()}, expected, folder)
    # A copy, so that the parameters are plain memory and not a view of the file.
    state = {name: tensor.to(dtype, copy=True) for name, tensor in state.items()}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(True)


def read_config(folder: Path | str) -> dict[str, Any]:
    """The config.json of a model folder."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise DataError(
            "This is not a Hugging Face model folder: there is no config.json",
            where=str(folder),
            remedy="Give the folder that holds config.json and model.safetensors",
        )
    return _read_json(path)


def read_generation(folder: Path | str) -> dict[str, Any]:
    """The generation settings of a model folder, for `save_huggingface`: sampling, and all ids that end an answer.

    The ids are taken from config.json where generation_config.json does not have them.
    """
    folder = Path(folder)
    described = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    found = {name: described[name] for name in SPECIAL if described.get(name) is not None}
    if (folder / GENERATION).is_file():
        found |= _read_json(folder / GENERATION)
    return {k: v for k, v in found.items() if k not in ("transformers_version", "_from_model_config")}


def _write_weights(state: dict[str, Tensor], folder: Path, shard_bytes: int) -> None:
    """One file, or numbered ones of at most `shard_bytes` (a larger tensor has one to itself) and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in state.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def huggingface_name(name: str, family: Family) -> str:
    """The name in a Hugging Face folder of a parameter of the decoder."""
    if name == "lm_head.weight":
        return name
    return "model." + (name.replace(".mlp.", ".feed_forward.") if family == "llama4_text" else name)


def _from_huggingface(name: str) -> str:
    return name.removeprefix("model.").replace(".feed_forward.", ".mlp.")


def special_tokens(tokenizer: Any, generation: dict[str, Any]) -> dict[str, Any]:
    """The ids of bos, eos (a list where there are several) and pad; the tokenizer's, and what it does not have."""
    found = {name: generation[name] for name in SPECIAL if generation.get(name) is not None}
    own = {name: getattr(tokenizer, name) for name in SPECIAL if getattr(tokenizer, name, None) is not None}
    ends = found.get("eos_token_id", own.get("eos_token_id"))
    listed = ends if isinstance(ends, list) else [ends]
    if "eos_token_id" in own and own["eos_token_id"] not in listed:
        # The model may have been given an end of its own, as a chat model is: the old ones still end an answer.
        ends = [own["eos_token_id"], *listed]
    return found | own | ({} if ends is None else {"eos_token_id": ends})


def _read_weights(folder: Path) -> dict[str, Tensor]:
    index = folder / INDEX
    files = {WEIGHTS}
    if not (folder / WEIGHTS).is_file() and index.is_file():
        files = set(_read_json(index).get("weight_map", {}).values())
    state: dict[str, Tensor] = {}
    for name in sorted(files):
        # An index is data from elsewhere: it may not point out of its folder.
        if Path(name).name != name or not (folder / name).is_file():
            raise DataError(
                f"The weights file {name} is missing",
                where=str(folder),
                remedy="Download the model again; weights in other formats than safetensors are not read",
            )
        try:
            state |= load_file(folder / name)
        except SafetensorError as error:
            raise DataError(
                f"The weights cannot be read: {error}",
                where=str(folder / name),
                remedy="Download the file again",
            ) from error
    return {name: tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}


def _check_state(
    found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], folder: Path
) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    for names, what in ((missing, "lack"), (extra, "hold more than the decoder has:")):
        if names:
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise DataError(f"The weights {what} {listed}", where=str(folder), remedy=SUPPORTED)
    for name, shape in expected.items():
        if found[name] != shape:
            raise DataError(
                f"The tensor {name} has the shape {list(found[name])}, but config.json implies {list(shape)}",
                where=str(folder),
                remedy="Use the config.json that belongs to these weights",
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"The file is not JSON: {error}", where=str(path), remedy="Download it again"
        ) from error
    if not isinstance(value, dict):
        raise DataError("The file does not hold a JSON object", where=str(path), remedy="Download it again")
    return value
