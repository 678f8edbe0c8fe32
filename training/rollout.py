"""Rollouts: what the model answers to a prompt, token by token, with budgets for thought and answer.

An own decoding loop. Each prompt is read once and its cache shared by its replicas (on a CPU literally, see
training.decoding; elsewhere a copy of it); rows that have finished are dropped, so that ragged lengths cost what
they hold; the random number of a token depends on (seed, step, prompt, replica, position) alone (training.sampling).

Budgets (Elastic Reasoning, arXiv 2505.05315, with exact masks): a thought that has not closed after T tokens
is closed by forcing the closing string, and the answer then gets up to S tokens, on the same cache. Forced
tokens are flagged: the policy did not choose them, so they carry no gradient. A rollout that stays within its
budgets is token for token the rollout without budgets. The paper's code differs: it re-reads prompt and
thought for the answer, and trains on the forced token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from curation.errors import DataError
from curation.progress import progress
from training.budgets import Ending, RolloutSettings
from training.decoding import PackedRows, PackedWeights, packed_weights
from training.model import Decoder
from training.sampling import UniformStreams, choose_tokens

__all__ = ["Ending", "FinishReason", "Prompt", "Rollout", "RolloutSettings", "roll_out"]

FinishReason = Literal["end", "length", "end_while_thinking", "stop"]
DROP_SHARE = 8  # rows are dropped when an eighth of them has finished: a drop copies the cache of the others


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer; `index` keys its random numbers and must be unique within a step."""

    index: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """One completion of one prompt.

    completion_ids  : tokens, the end token included when the model wrote one
    logprobs        : of each of them under the policy, nats, at the sampling temperature (1 when greedy),
    float32
    forced          : whether each was forced; forced tokens belong to the text, not to the loss
    truncated       : it ran into its token limit (finish_reason "length"; "stop" is a stop string of the ending)
    thinking_tokens : tokens up to and with the closing string; all of them if the thought never closed
    """

    prompt_index: int
    replica: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    forced: tuple[bool, ...]
    truncated: bool
    finish_reason: FinishReason
    thinking_tokens: int


def roll_out(
    model: Decoder,
    prompts: Sequence[Prompt],
    settings: RolloutSettings,
    ending: Ending,
    *,
    replicas: int = 1,
    seed: int = 0,
    step: int = 0,
    label: str | None = None,
) -> list[Rollout]:
    """`replicas` completions of each prompt, in the order of prompts and replicas.

    The same (seed, step, prompt index, replica) gives the same tokens whatever else is decoded (up to float32
    rounding of the logits, which differs between batch shapes and decides a token about once in 10**6).
    Run it under `torch.autocast` for bfloat16 products. Raises DataError for a prompt that is empty or leaves
    no room for its completion in the model's context. `label` shows progress.
    """
    check_prompts(model, prompts, settings, ending)
    together = max(settings.batch_rollouts // replicas, 1)
    rollouts: list[Rollout] = []
    training = model.training
    model.eval()
    try:
        with ExitStack() as stack:
            task = stack.enter_context(progress(label, len(prompts), "prompts")) if label else None
            packed = packed_weights(model)
            for first in range(0, len(prompts), together):
                batch = prompts[first : first + together]
                rows = _decode(model, packed, batch, settings, ending, replicas, seed, step)
                rollouts += [row.rollout() for row in rows]
                if task:
                    task.advance(len(batch))
    finally:
        model.train(training)
    return rollouts


def check_prompts(
    model: Decoder, prompts: Sequence[Prompt], settings: RolloutSettings, ending: Ending
) -> None:
    """Raise DataError for a prompt that is empty or leaves no room for its completion in the model's context."""
    longest = settings.longest(len(ending.closing))
    for prompt in prompts:
        if not prompt.ids or len(prompt.ids) + longest > model.config.max_positions:
            what = (
                f"The prompt has {len(prompt.ids)} tokens and its completion may have {longest}, but the "
                f"model reads {model.config.max_positions}"
            )
            raise DataError(
                what if prompt.ids else "The prompt is empty",
                where=f"prompt {prompt.index}",
                remedy="Leave it out, or shorten the completion (max_tokens, or the budgets)",
            )


@torch.inference_mode()
def _decode(
    model: Decoder,
    packed: PackedWeights | None,
    prompts: Sequence[Prompt],
    settings: RolloutSettings,
    ending: Ending,
    replicas: int,
    seed: int,
    step: int,
) -> list[Row]:
    """Decode one batch: read the prompts, then decode a row for each replica of each, all in step."""
    device = model.output_weight.device
    room = settings.longest(len(ending.closing))
    last, state = _read_prompts(model, packed, [prompt.ids for prompt in prompts], replicas, room)
    logits = model.logits(last).repeat_interleave(replicas, 0)
    rows = [Row(prompt, replica, settings, ending) for prompt in prompts for replica in range(replicas)]
    live, position = rows, 0
    streams = UniformStreams(seed, step, [(row.prompt.index, row.replica) for row in rows])
    while True:
        uniforms = None if settings.temperature == 0 else streams.at(position).to(device)
        sampled, normaliser = choose_tokens(
            logits, uniforms, temperature=settings.temperature, top_p=settings.top_p
        )
        tokens = [row.token_for(token) for row, token in zip(live, sampled.tolist(), strict=True)]
        chosen = torch.tensor(tokens, device=device)
        picked = logits.gather(-1, chosen[:, None])[:, 0].float() / (settings.temperature or 1.0)
        taken = (picked - normaliser).tolist()
        for row, token, logprob in zip(live, tokens, taken, strict=True):
            row.take(token, logprob)
        going = [at for at, row in enumerate(live) if row.finish is None]
        if not going:
            return rows
        if len(going) < len(live) and (len(live) - len(going)) * state.drop_share >= len(live):
            order = state.keep(going)
            chosen = chosen[torch.tensor(order, device=device)]
            streams.select(order)
            live = [live[at] for at in order]
        logits = state.read(chosen)
        position += 1


def _read_prompts(
    model: Decoder,
    packed: PackedWeights | None,
    prompts: Sequence[tuple[int, ...]],
    replicas: int,
    room: int,
) -> tuple[torch.Tensor, PackedRows | CacheRows]:
    """The hidden state [N, D] of each prompt's last token, and its rows, with room for so many more tokens."""
    if not isinstance(model, Decoder):
        last, cache = model.prefill(prompts)  # the adapter of training.transformers_model knows its own cache
        return last, CacheRows(model, cache.expand(replicas))
    device = model.output_weight.device
    lengths = torch.tensor([len(ids) for ids in prompts], device=device)
    width = int(lengths.max())
    padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in prompts], device=device)
    cache = model.new_cache(len(prompts), width + (0 if packed else room))
    hidden = model(padded, cache=cache)
    cache.truncate(lengths)
    last = hidden[torch.arange(len(prompts), device=device), lengths - 1]
    if packed is None:
        return last, CacheRows(model, cache.expand(replicas))
    return last, PackedRows(packed, cache.keys, cache.values, lengths, replicas, room)


class CacheRows:
    """Rows on the cache of a model: the general way, of which training.decoding is the fast one."""

    drop_share = DROP_SHARE

    def __init__(self, model: Decoder, cache: Any) -> None:
        self.model, self.cache = model, cache

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [n, V] after one more token [n] in every row."""
        return self.model.logits(self.model(tokens[:, None], cache=self.cache)[:, 0])

    def keep(self, rows: list[int]) -> list[int]:
        """Keep only `rows`; returns them in the order in which they stand from now on."""
        self.cache = self.cache.select(torch.tensor(rows, device=self.model.output_weight.device))
        return rows


@dataclass
class Row:
    """One rollout while it is decoded: what it holds and what phase it is in."""

    prompt: Prompt
    replica: int
    settings: RolloutSettings
    ending: Ending
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    to_force: list[int] = field(default_factory=list)
    closed_at: int | None = None
    finish: FinishReason | None = None

    @property
    def budgeted(self) -> bool:
        """Whether thought and answer have budgets."""
        return self.settings.thinking_tokens is not None

    def token_for(self, sampled: int) -> int:
        """The token at the next position: the one to force, if there is one, else the sampled one."""
        if (
            not self.to_force
            and self.budgeted
            and self.closed_at is None
            and sampled in self.ending.end_ids
            and self.settings.end_while_thinking == "close"
        ):
            self.to_force = self.ending.rest_to_force(self.ids)
        return self.to_force[0] if self.to_force else sampled

    def take(self, token: int, logprob: float) -> None:
        """Append `token` and move on to the next phase if it is time. A finished row takes nothing more."""
        if self.finish is not None:
            return
        forced = bool(self.to_force)
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.forced.append(forced)
        if forced:
            del self.to_force[0]
        if self.closed_at is None and not self.to_force and self.ending.closes(self.ids):
            self.closed_at = len(self.ids)
        elif not forced and token in self.ending.end_ids:
            thinking = self.budgeted and self.closed_at is None
            self.finish = "end_while_thinking" if thinking else "end"
            return
        if self.ending.stops(self.ids):
            self.finish = "stop"
            return
        self._limit()

    def _limit(self) -> None:
        settings = self.settings
        if settings.thinking_tokens is None or settings.answer_tokens is None:
            if len(self.ids) >= settings.max_tokens:
                self.finish = "length"
        elif self.closed_at is not None:
            if len(self.ids) - self.closed_at >= settings.answer_tokens:
                self.finish = "length"
        elif not self.to_force and len(self.ids) >= settings.thinking_tokens:
            self.to_force = self.ending.rest_to_force(self.ids)

    def left(self) -> int:
        """Tokens that the row may still take in its phase."""
        settings = self.settings
        if settings.thinking_tokens is None or settings.answer_tokens is None:
            return settings.max_tokens - len(self.ids)
        if self.closed_at is None:
            return settings.thinking_tokens - len(self.ids)
        return self.closed_at + settings.answer_tokens - len(self.ids)

    def rollout(self) -> Rollout:
        """What it has become, once it has finished."""
        if self.finish is None:
            raise RuntimeError("a rollout was read before it had finished")
        thinking = len(self.ids) if self.closed_at is None else self.closed_at
        return Rollout(
            self.prompt.index,
            self.replica,
            self.prompt.ids,
            tuple(self.ids),
            tuple(self.logprobs),
            tuple(self.forced),
            self.finish == "length",
            self.finish,
            thinking,
        )
