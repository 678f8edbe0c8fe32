"""Any causal language model of transformers, behind the interface of our decoder.

Fine-tuning and reinforcement learning ask four things of a model: hidden states of packed rows, an output weight
for losses that walk over the vocabulary in chunks, decoding on a cache, and a folder to leave it in. This adapter
gives them for every model that `AutoModelForCausalLM` loads without code from elsewhere. What models differ in is
not believed but tried, once, on a dozen tokens (training.transformers_trials): whether restarting positions keep
packed documents apart (elsewhere each document gets a padded row of its own), whether a cache gives the hidden
states of a whole pass (elsewhere every token reads its row anew, which is slow), and whether the logits are a
linear map of the hidden states, scaled or with a soft cap (elsewhere the model is refused).

The model stays in evaluation mode: dropout would make a run depend on its restarts. Weights are float32.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curation.atomic import read_json, replacing_folder, write_json
from curation.errors import DataError
from training.document_rows import LONG_ROW, by_documents
from training.huggingface import GENERATION, read_config, special_tokens
from training.transformers_cache import CachedRows, RereadRows
from training.transformers_trials import find_head, keeps_documents_apart, takes_cache

MOST_POSITIONS = 1 << 20  # of a model that names no longest context


@dataclass(frozen=True)
class TransformersConfig:
    """The config.json of a model of transformers; `transformers` holds its entries."""

    transformers: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        """Tokens of the output."""
        return int(self._of("vocab_size"))

    @property
    def max_positions(self) -> int:
        """The longest context."""
        found = self._of("max_position_embeddings") or self._of("n_positions") or self._of("max_seq_len")
        return int(found or MOST_POSITIONS)

    def flops_per_token(self, tokens: int) -> float:
        """Of forward and backward, 6 for each weight; attention over `tokens` is left out."""
        with torch.device("meta"):
            model = _auto_model().from_config(self.native())
        return 6.0 * sum(p.numel() for p in model.parameters())

    def build(self) -> TransformersModel:
        """The model with weights that are still to be loaded."""
        return TransformersModel(self, _auto_model().from_config(self.native(), dtype=torch.float32))

    def native(self) -> Any:
        """As transformers describes it."""
        from transformers import AutoConfig

        return AutoConfig.for_model(**self.transformers)

    def _of(self, name: str) -> Any:
        described = self.transformers
        return described.get(name, (described.get("text_config") or {}).get(name))

    def __hash__(self) -> int:
        return hash(json.dumps(self.transformers, sort_keys=True))


def load_transformers(folder: Path | str) -> TransformersModel:
    """The model of a Hugging Face folder, whatever its architecture, in float32.

    Raises DataError when transformers does not know it, needs code from the folder, or its weights do not fit.
    """
    folder = Path(folder)
    config = read_transformers_config(folder)
    try:
        inner, found = _auto_model().from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        raise _unreadable(folder, str(error)) from error
    wrong = [*found["missing_keys"], *found["mismatched_keys"]]
    if wrong:
        raise _unreadable(folder, f"its weights lack {sorted(map(str, wrong))[0]}, or have another shape")
    return TransformersModel(config, inner)


def read_transformers_config(folder: Path | str) -> TransformersConfig:
    """What config.json says. DataError when transformers has no causal language model of that kind."""
    described = read_config(folder)
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        native = AutoConfig.for_model(**described)
        known = type(native) in MODEL_FOR_CAUSAL_LM_MAPPING
    except Exception as error:
        raise _unreadable(folder, str(error)) from error
    if not known:
        raise _unreadable(folder, f"a {native.model_type} is no causal language model")
    how_it_was_loaded = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
    return TransformersConfig({k: v for k, v in described.items() if k not in how_it_was_loaded})


class TransformersModel(nn.Module):
    """A causal model of transformers with the methods that training, losses and rollouts use of a Decoder."""

    def __init__(self, config: TransformersConfig, inner: Any) -> None:
        super().__init__()
        self.config = config
        self.inner = inner.eval().requires_grad_(True)
        # transformers takes the gradient from the embedding of the padding token, which often is the end token too;
        # padding is known by masks here, and a token that stands in a text is trained.
        self.inner.get_input_embeddings().padding_idx = None
        kept = set(dict(self.inner.named_parameters(remove_duplicate=False)))
        held = [name for name in self.inner.state_dict() if name not in kept]
        if held:
            raise DataError(
                f"The model keeps {held[0]} beside its weights, which a checkpoint of ours would lose",
                where=config.transformers.get("model_type", "model"),
                remedy="Train another model",
            )
        self._around: Callable[..., Any] | None = None
        self._forwards: dict[nn.Module, Callable[..., Any]] = {}

    def train(self, mode: bool = True) -> TransformersModel:
        """Keeps the model in evaluation mode, see the file's head."""
        self.training = mode
        return self

    @property
    def output_weight(self) -> Tensor:
        """The output weight [V, D]; [V, D + 1] with the bias as the last column, where there is one."""
        head = self.inner.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return head.weight if bias is None else torch.cat([head.weight, bias[:, None]], 1)

    @property
    def softcap(self) -> float | None:
        """The bound of the logits, cap * tanh(logits / cap), where the model has one."""
        return self._head.softcap

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states, as the model makes them."""
        made = hidden @ self.output_weight.T
        return made if self.softcap is None else self.softcap * torch.tanh(made / self.softcap)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Hidden states [B, T, D]; see Decoder.forward. D counts the 1 that meets an output bias."""
        if cache is not None:
            return cache.read(self, input_ids)
        if document_ids is None:
            return self.hidden(input_ids)
        if positions is not None and input_ids.shape[1] <= LONG_ROW and self._apart:
            return self.hidden(input_ids, position_ids=positions)
        return by_documents(self.read_padded, input_ids, document_ids)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Any]:
        """The hidden state [N, D] of each prompt's last token, and a cache that goes on from there."""
        cache: Any = CachedRows() if self._cached else RereadRows()
        return cache.begin(self, prompts), cache

    def hidden(self, input_ids: Tensor, **more: Any) -> Tensor:
        """What the output weight is applied to, [B, T, D]; `more` goes to the model's own forward."""
        return self._with_head(self.base(input_ids, **more).last_hidden_state)

    def base(self, input_ids: Tensor, **more: Any) -> Any:
        """What the model returns without its head."""
        return self.inner.base_model(input_ids=input_ids, **({"use_cache": False} | more))

    @cached_property
    def takes_positions(self) -> bool:
        """Whether the model can be told positions."""
        return "position_ids" in inspect.signature(self.inner.base_model.forward).parameters

    @property
    def around_layer(self) -> Callable[..., Any] | None:
        """How layers are run, see training.recomputation; setting it wraps each layer of the model."""
        return self._around

    @around_layer.setter
    def around_layer(self, around: Callable[..., Any] | None) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        self._around = around
        layers = [m for m in self.inner.modules() if isinstance(m, GradientCheckpointingLayer)]
        if around is not None and not layers:
            raise DataError(
                "The model does not say which of its parts are layers",
                where="recompute_every",
                remedy="Train it without recomputation",
            )
        for index, layer in enumerate(layers):
            own = self._forwards.setdefault(layer, layer.forward)
            layer.forward = own if around is None else _wrapped(around, index, own)

    def save(
        self, folder: Path | str, tokenizer: Any = None, generation: dict[str, Any] | None = None
    ) -> None:
        """Write the model as transformers does, with `tokenizer` and entries of generation_config.json. Atomic."""
        from training.tokenizer import write_tokenizer

        with replacing_folder(folder) as temporary:
            self.inner.save_pretrained(temporary)
            if tokenizer is not None:
                write_tokenizer(tokenizer, temporary)
            path = temporary / GENERATION
            found = (read_json(path) if path.exists() else {}) | (generation or {})
            write_json(path, found | special_tokens(tokenizer, found))

    def _with_head(self, states: Tensor) -> Tensor:
        if self._head.scale != 1:
            states = states * self._head.scale
        if getattr(self.inner.get_output_embeddings(), "bias", None) is None:
            return states
        return torch.cat([states, states.new_ones(*states.shape[:-1], 1)], -1)

    def read_padded(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states [N, L, D] of rows padded on the right."""
        mask = torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]
        # Without padding no mask is made, which at 32k tokens would be a gigabyte.
        return self.hidden(ids) if bool(mask.all()) else self.hidden(ids, attention_mask=mask.long())

    @cached_property
    def _head(self) -> Any:
        return find_head(self)

    @cached_property
    def _apart(self) -> bool:
        return self.takes_positions and keeps_documents_apart(self)

    @cached_property
    def _cached(self) -> bool:
        return takes_cache(self)


def _wrapped(around: Callable[..., Any], index: int, own: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*given: Any, **named: Any) -> Any:
        return around(index, lambda *values: own(*values, **named), given)

    return forward


def _auto_model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


def _unreadable(folder: Path | str, why: str) -> DataError:
    return DataError(
        f"transformers cannot load this model: {why.splitlines()[0] if why else 'no reason given'}",
        where=str(folder),
        remedy="Give a folder of a causal language model with safetensors that needs no code of its own",
    )
