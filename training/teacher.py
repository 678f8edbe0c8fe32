"""A teacher: any causal language model of the student's tokenizer, asked for hidden states, not for logits.

Its output weight and the hidden states are handed to the chunked losses, so that its logits never exist as a
whole. Documents packed into a row do not see each other in the teacher either.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from curation.atomic import hash_file, hash_value
from curation.errors import DataError, MachineError
from training.huggingface import load_huggingface, read_config
from training.huggingface_config import ARCHITECTURES, config_from_huggingface
from training.model import Decoder

Precision = Literal["float32", "bfloat16"]
PROBE_TOKENS = 24
# How far the ways to the same logits may lie apart, as a share of the largest; they differ in rounding only.
TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.1}


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher.

    weight   : [V, E]; rows beyond the student's vocabulary are cut off. A bias is a last column.
    cut      : rows that were cut: padding of the teacher's output layer
    packs    : whether documents packed in a row can be kept apart inside one forward pass; if not, each
               document is a row of its own
    """

    model: nn.Module
    weight: Tensor
    cut: int
    packs: bool
    biased: bool
    name: str

    @torch.no_grad()
    def hidden(self, input_ids: Tensor, positions: Tensor, document_ids: Tensor) -> Tensor:
        """Hidden states [B, T, E] such that logits = hidden @ weight.T; arguments int64 [B, T] as in `Batch`.

        Raises DataError when they are not finite.
        """
        device = self.weight.device
        ids, positions, documents = (x.to(device) for x in (input_ids, positions, document_ids))
        # The student's autocast is not the teacher's precision.
        with torch.autocast(device.type, enabled=False):
            states = self._states(ids, positions, documents)
        if not bool(states.isfinite().all()):
            raise not_finite(self.name)
        if self.biased:
            states = torch.cat((states, states.new_ones(*states.shape[:-1], 1)), -1)
        return states

    def _states(self, ids: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        if isinstance(self.model, Decoder):
            return self.model(ids, positions=positions, document_ids=documents)
        if self.packs:
            return _packed_states(self.model, ids, positions, documents)
        return _states_apart(self.model, ids, documents)


def not_finite(name: str, where: str = "") -> DataError:
    """A teacher whose logits are NaN or infinite teaches nothing."""
    return DataError(
        f"The logits of the teacher {name} are not finite" + (f" at {where}" if where else ""),
        where="distillation.teacher",
        remedy="Try precision float32, and check the teacher's weights",
    )


def resolve_teacher(name: str) -> Path:
    """The folder of a teacher: the folder itself, or the hub's model of that name, downloaded once."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        wanted = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(name, allow_patterns=wanted))
    except HFValidationError:
        problem: Exception | None = None
    except Exception as error:  # the client has a dozen kinds; all mean that it cannot be had
        problem = error
    raise MachineError(
        f"The teacher {name} is neither a folder nor a model that can be downloaded",
        where="distillation.teacher",
        remedy="Give the folder of a Hugging Face model, or check the name and the network",
    ) from problem


def hash_teacher(folder: Path) -> str:
    """Hex sha256 of a teacher's weights and of the settings that decide its logits."""
    files = sorted(folder.glob("*.safetensors")) + [folder / "config.json"]
    if len(files) == 1 or not files[-1].is_file():
        raise DataError(
            "The teacher's folder holds no Hugging Face model with safetensors weights",
            where=str(folder),
            remedy="Give a folder with config.json, model.safetensors and a tokenizer",
        )
    return _hash_files(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=16)
def _hash_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Read once in a process: the weights of a large teacher take a minute."""
    return hash_value([(file.name, hash_file(file)) for file, _, _ in files])


def load_teacher(folder: Path, *, vocabulary: int, device: torch.device, precision: Precision) -> Teacher:
    """Load a teacher for a student of `vocabulary` tokens, and check on a probe that it is asked rightly.

    Models of our decoder's families run in our decoder, others in transformers' class. The probe compares
    hidden @ weight.T with the class's own logits, so that a model that does more (soft-capping, scaling) is
    refused, and finds out whether it keeps packed documents apart. Raises DataError.
    """
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    config = read_config(folder)
    if config.get("model_type") in ARCHITECTURES and _is_ours(folder):
        ours = load_huggingface(folder, dtype=dtype).to(device).eval().requires_grad_(False)
        return _teacher(ours, ours.output_weight, None, True, vocabulary, folder)
    model = _load_transformers(folder, dtype).to(device).eval().requires_grad_(False)
    head = model.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        raise _unusual(folder, "has no output layer")
    with torch.no_grad():
        packs = _check(model, head, folder, precision)
    return _teacher(model, head.weight, getattr(head, "bias", None), packs, vocabulary, folder)


def forward_flops(folder: Path, context: int) -> float:
    """Floating-point operations of a teacher's forward pass per token; nothing is loaded.

    Of families other than our decoder's: two per number in the weights' files, attention scores left out.
    """
    if _is_ours(folder):
        return config_from_huggingface(read_config(folder), where=str(folder)).flops_per_token(context) / 3
    from safetensors import safe_open

    numbers = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is not a mapping
                size = 1
                for extent in tensors.get_slice(name).get_shape():
                    size *= extent
                numbers += size
    return 2.0 * numbers


def _teacher(
    model: nn.Module, weight: Tensor, bias: Tensor | None, packs: bool, vocabulary: int, folder: Path
) -> Teacher:
    rows = weight.shape[0]
    if rows < vocabulary:
        raise DataError(
            f"The teacher's output layer has {rows:,} tokens, the student's {vocabulary:,}",
            where=str(folder),
            remedy="Give the student the vocabulary of the tokenizer, or choose another teacher",
        )
    weight = weight.detach()[:vocabulary]
    if bias is not None:
        weight = torch.cat((weight, bias.detach()[:vocabulary, None].to(weight.dtype)), 1)
    if not bool(weight.isfinite().all()):
        raise not_finite(str(folder))
    return Teacher(model, weight, rows - vocabulary, packs, bias is not None, str(folder))


def _is_ours(folder: Path) -> bool:
    """Whether our decoder expresses the model: its own words say so, or refuse."""
    try:
        config_from_huggingface(read_config(folder), where=str(folder))
    except DataError:
        return False
    return True


def _load_transformers(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"The teacher cannot be loaded: {error}",
            where=str(folder),
            remedy="Give a causal language model that transformers loads without code of its own",
        ) from error


def _check(model: Any, head: Any, folder: Path, precision: Precision) -> bool:
    """Refuse a model whose logits are not its hidden states times its head; whether it packs documents."""
    size = int(model.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, size, (1, PROBE_TOKENS), generator=generator).to(head.weight.device)
    logits = model(input_ids=tokens, use_cache=False).logits
    scale = float(logits.abs().max()) * TOLERANCE[precision]
    if not logits.isfinite().all():
        raise not_finite(str(folder))
    states = _base(model)(input_ids=tokens, use_cache=False).last_hidden_state
    if not torch.allclose(head(states), logits, rtol=0, atol=scale):
        raise _unusual(folder, "does not make its logits as hidden states times output weight")
    third = PROBE_TOKENS // 3
    lengths = torch.tensor([third, PROBE_TOKENS - third], device=tokens.device)
    documents = torch.arange(2, device=tokens.device).repeat_interleave(lengths)[None]
    positions = torch.cat([torch.arange(int(n), device=tokens.device) for n in lengths])[None]
    apart = _states_apart(model, tokens, documents)
    alone = _base(model)(input_ids=tokens[:, third:], use_cache=False).last_hidden_state
    if not torch.allclose(head(apart[:, third:]), head(alone), rtol=0, atol=scale):
        raise _unusual(folder, "gives other logits when rows of different lengths run together")
    try:
        packed = _packed_states(model, tokens, positions, documents)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    return torch.allclose(head(packed), head(apart), rtol=0, atol=scale)


def _base(model: Any) -> Any:
    return getattr(model, model.base_model_prefix, model)


def _packed_states(model: Any, ids: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
    """Rows of packed documents in one pass, under a mask [B, 1, T, T] that is 0 or the lowest number."""
    from training.attention import document_mask

    allowed = document_mask(documents)
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(allowed.shape, dtype=dtype, device=ids.device)
    mask.masked_fill_(~allowed, torch.finfo(dtype).min)
    return (
        _base(model)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    ).last_hidden_state


def _states_apart(model: Any, ids: Tensor, documents: Tensor) -> Tensor:
    """Every document as a row of its own, padded on the right: right for every causal model."""
    rows, tokens = ids.shape
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = begins.flatten().nonzero()[:, 0]
    ends = torch.cat((starts[1:], starts.new_tensor([rows * tokens])))
    lengths = (ends - starts).tolist()
    flat = ids.flatten()
    found: Tensor | None = None
    # Documents of like length together, so that little is padding; no more padded tokens at once than were packed.
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    while order:
        longest = lengths[order[-1]]
        group = [order.pop() for _ in range(min(len(order), max(rows * tokens // longest, 1)))]
        padded = ids.new_zeros(len(group), longest)
        mask = ids.new_zeros(len(group), longest)
        for row, at in enumerate(group):
            padded[row, : lengths[at]] = flat[starts[at] : ends[at]]
            mask[row, : lengths[at]] = 1
        states = _base(model)(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state
        if found is None:
            found = states.new_empty(rows * tokens, states.shape[-1])
        for row, at in enumerate(group):
            found[starts[at] : ends[at]] = states[row, : lengths[at]]
    assert found is not None
    return found.view(rows, tokens, -1)


def _unusual(folder: Path, why: str) -> DataError:
    return DataError(
        f"The teacher {why}",
        where=str(folder),
        remedy="Choose a teacher with a plain output layer, such as those of Llama, Qwen, SmolLM or GPT-2",
    )
