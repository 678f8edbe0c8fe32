"""Ask-LLM: a language model is asked whether a document is worth including, and its next token is the score.

After Sachdeva et al., "How to train data-efficient LLMs" (arXiv 2402.09668), in the form of MobileLLM-R1
(arXiv 2509.24945, section 5.1.1): the answer is "1" (include) or "0", the score P("1"), and the top 10 %
within each source are kept. One batched forward pass per document, no generation, logits at the last position
only.

For each document we keep
    margin        float32, log P("1") - log P("0"); ranks documents. P("1") itself saturates: in bfloat16 it
                  is exactly 1 for thousands of documents, which makes ties at the cut
    p1            P("1") over the vocabulary, the paper's score
    p1_calibrated P("1") / (P("1") + P("0")) = sigmoid(margin), which does not suffer when the model would
                  rather say something else
    truncated     whether the judge saw only the head of the document
The probabilities of "1" and " 1" are summed where a tokenizer has both.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from curation.batches import (
    check_vocabulary,
    check_weights,
    length_sorted_batches,
    one_thread,
    padded,
    quiet_loading,
)
from curation.documents import Document
from curation.errors import DataError
from curation.judge_prompt import Prompt, PromptTokens
from curation.score_tables import model_fingerprint

COLUMNS = ("margin", "p1", "p1_calibrated", "truncated")
KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class AskLLM:
    """The scorer (see score_tables.Scorer) of one judge and one prompt; columns `COLUMNS`.

    model        : folder or hub id of a causal or encoder-decoder model of transformers; or a folder with one
                   such folder for each prompt, under the prompt's name, as `raters.train_judge` makes it
    prompt       : see judge_prompt.load_prompt
    chat         : ask in the tokenizer's chat template, if it has one; instruction models need it, base
        models not
    max_document_tokens : the head of a document that the judge sees, less where its context is shorter
    batch_tokens : padded document tokens per forward pass
    precision    : of the weights; the last layer and the scores are float32 always
    share_prefix : compute the prompt before the document once and reuse its keys and values (causal models
                   with plain attention; others fall back to computing it each time)
    variant      : end of the table's name, for a second table of the same judge and prompt
    """

    model: str
    prompt: Prompt
    chat: bool = True
    max_document_tokens: int = 1024
    batch_tokens: int = 8192
    precision: Literal["float32", "bfloat16"] = "float32"
    share_prefix: bool = True
    device: str = "cpu"
    unsafe_weights: bool = False
    variant: str = ""

    @property
    def name(self) -> str:
        return f"ask_llm-{self.prompt.name}{self.variant}"

    @property
    def columns(self) -> tuple[str, ...]:
        return COLUMNS

    @property
    def _folder(self) -> str:
        own = Path(self.model) / self.prompt.name
        return str(own) if own.is_dir() else self.model

    def fingerprint(self) -> dict[str, Any]:
        """Judge, prompt text and every setting."""
        names = ("chat", "max_document_tokens", "batch_tokens", "precision", "share_prefix", "device")
        settings = {name: getattr(self, name) for name in names}
        return {"model": model_fingerprint(self._folder), "prompt": self.prompt.sha256, **settings}

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        """The four columns, [n] each."""
        stamp = str(model_fingerprint(self._folder))
        judge = _load(self._folder, self.precision, self.device, self.unsafe_weights, stamp)
        tokens = judge.prompt_tokens(self.prompt, self.chat)
        room = judge.room(tokens)
        rows, cut = tokens.documents([d.text for d in documents], min(self.max_document_tokens, room))
        scores = np.empty((len(rows), 3), dtype=np.float32)
        with one_thread(), torch.inference_mode():
            shared = judge.prefix(tokens.prefix) if self.share_prefix else None
            for batch in length_sorted_batches([len(row) for row in rows], self.batch_tokens):
                bodies = [rows[index] + tokens.suffix for index in batch]
                logits = judge.last_logits(tokens.prefix, bodies, shared)
                scores[batch] = answer_scores(logits, tokens.ones, tokens.zeros).cpu().numpy()
        return dict(zip(COLUMNS, (*scores.T, np.array(cut, dtype=bool)), strict=True))


def answer_scores(logits: torch.Tensor, ones: list[int], zeros: list[int]) -> torch.Tensor:
    """[n, V] float32 logits to [n, 3]: margin, p1 over the vocabulary, p1 / (p1 + p0).

    With one token per answer, margin = logit("1") - logit("0"): logits 2 and 1 give margin 1, calibrated
    0.7311.
    """
    one = torch.logsumexp(logits[:, ones], dim=-1)
    zero = torch.logsumexp(logits[:, zeros], dim=-1)
    margin = one - zero
    p1 = torch.exp(one - torch.logsumexp(logits, dim=-1))
    return torch.stack((margin, p1, torch.sigmoid(margin)), dim=-1)


class Judge:
    """A loaded model with its tokenizer, and the one forward pass that scoring and training share."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.encoder_decoder = bool(model.config.is_encoder_decoder)
        known = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in known
        self._takes_keep = "logits_to_keep" in known
        pad = tokenizer.pad_token_id
        self.pad_id = pad if pad is not None else (tokenizer.eos_token_id or 0)

    def prompt_tokens(self, prompt: Prompt, chat: bool) -> PromptTokens:
        """The prompt in this model's tokens; `chat` counts only where the tokenizer has a template."""
        chat = chat and bool(getattr(self.tokenizer, "chat_template", None))
        return PromptTokens(self.tokenizer, prompt, chat=chat, ends=self.encoder_decoder)

    def room(self, tokens: PromptTokens) -> int:
        """Document tokens that fit the context beside the prompt."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**20
        room = context - len(tokens)
        if room < 1:
            raise DataError(
                f"The prompt takes {len(tokens)} tokens, and the judge's context holds only {context}",
                where=tokens.prompt.name,
                remedy="Use a shorter prompt, or a judge with a longer context",
            )
        return room

    def prefix(self, prefix: list[int]) -> KeysAndValues | None:
        """Keys and values [1, heads, prefix, head_dim] of each layer; None where they cannot be shared."""
        if self.encoder_decoder or not self._takes_positions or len(prefix) < 2:
            return None
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        config = self.model.config.get_text_config()
        if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=config).layers):
            return None  # sliding windows and recurrent states cannot be taken apart at the prefix
        ids = torch.tensor([prefix], device=self.model.device)
        keep = {"logits_to_keep": 1} if self._takes_keep else {}
        cache = self.model(
            input_ids=ids, past_key_values=DynamicCache(), use_cache=True, **keep
        ).past_key_values
        if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return None
        layers: list[Any] = cache.layers
        return [(layer.keys, layer.values) for layer in layers]

    def last_logits(
        self, prefix: list[int], bodies: list[list[int]], shared: KeysAndValues | None
    ) -> torch.Tensor:
        """Float32 logits [n, V] of the token that follows prefix + body, for each body; differentiable.

        Rows are padded on the left, so that the answer is at the last position of each.
        """
        device = self.model.device
        if self.encoder_decoder:
            ids, mask = padded([prefix + body for body in bodies], self.pad_id, "right")
            start = torch.full((len(bodies), 1), self.model.config.decoder_start_token_id, device=device)
            output = self.model(
                input_ids=ids.to(device), attention_mask=mask.to(device), decoder_input_ids=start
            )
            return output.logits[:, -1].float()
        ids, mask = padded(bodies if shared else [prefix + body for body in bodies], self.pad_id, "left")
        options: dict[str, Any] = {"use_cache": shared is not None}
        if self._takes_keep:
            options["logits_to_keep"] = 1
        if shared:
            mask = torch.cat((mask.new_ones(len(bodies), len(prefix)), mask), dim=1)
            options["past_key_values"] = _repeated(shared, len(bodies))
        if self._takes_positions:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            options["position_ids"] = positions.to(device)
        output = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), **options)
        return output.logits[:, -1].float()


def _repeated(shared: KeysAndValues, rows: int) -> Any:
    """A fresh cache in which every row starts with the shared prefix; the model appends to copies of it."""
    from transformers import DynamicCache

    return DynamicCache([(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in shared])


@lru_cache(maxsize=1)
def _load(folder: str, precision: str, device: str, unsafe_weights: bool, stamp: str) -> Judge:
    """The judge, once per process and state of the folder (`stamp`)."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    try:
        with quiet_loading():
            kind = AutoConfig.from_pretrained(folder)
            loader = AutoModelForSeq2SeqLM if kind.is_encoder_decoder else AutoModelForCausalLM
            tokenizer = AutoTokenizer.from_pretrained(folder)
            weights = None if unsafe_weights else True
            both: Any = loader.from_pretrained(
                folder, dtype=dtype, use_safetensors=weights, output_loading_info=True
            )
            model, loaded = both
    except (OSError, ValueError) as error:
        raise DataError(
            f"The judge cannot be loaded: {str(error).splitlines()[0].rstrip('.')}",
            where=folder,
            remedy="Give a causal language model with safetensors weights and its tokenizer",
        ) from error
    check_vocabulary(tokenizer, folder)
    whole = "Give a whole causal or encoder-decoder language model, not an encoder or a model's body alone"
    check_weights(loaded["missing_keys"], folder, "judge", whole)
    if dtype != torch.float32:
        _float32_head(model)
    model.requires_grad_(False)
    return Judge(model.eval().to(device=device), tokenizer)


def _float32_head(model: Any) -> None:
    """Give the model a float32 copy of its output layer: bfloat16 logits near 10 are 1/16 apart, and tie."""
    head = model.get_output_embeddings()
    copy = torch.nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)
    copy.weight = torch.nn.Parameter(head.weight.detach().float().clone(), requires_grad=False)
    if head.bias is not None:
        copy.bias = torch.nn.Parameter(head.bias.detach().float().clone(), requires_grad=False)
    copy.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    model.set_output_embeddings(copy)
