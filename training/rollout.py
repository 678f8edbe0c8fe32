"""Rollouts: what the model answers to a prompt, token by token, with budgets for thought and answer.

An own decoding loop over the decoder's preallocated cache. Each prompt is read once and its cache shared by
its replicas; rows that have finished are dropped, so that ragged lengths cost what they hold; the random
number of a token depends on (seed, step, prompt, replica, position) alone (training.sampling).

Budgets (Elastic Reasoning, arXiv 2505.05315, with exact masks): a thought that has not closed after T tokens
is closed by forcing the closing string, and the answer then gets up to S tokens, on the same cache. Forced
tokens are flagged: the policy did not choose them, so they carry no gradient. A rollout that stays within its
budgets is token for token the rollout without budgets. The paper's code differs: it re-reads prompt and
thought for the answer, and trains on the forced token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from curation.errors import DataError, RecipeError
from curation.progress import progress
from training.model import Decoder
from training.sampling import UniformStreams, choose_tokens

FinishReason = Literal["end", "length", "end_while_thinking"]
DROP_SHARE = 8  # rows are dropped when an eighth of them has finished: a drop copies the cache of the others


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer; `index` keys its random numbers and must be unique within a step."""

    index: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class RolloutSettings:
    """How to decode; lengths in tokens.

    max_tokens         : longest completion when there are no budgets
    temperature        : 0 is greedy
    top_p              : below 1 the sampler is not the trained policy; see training.sampling
    thinking_tokens    : T; the thought is closed by force after so many tokens. The completion is taken to
                         begin inside the thought, or with its opening string
    answer_tokens      : S; longest answer after the closing string; needed with thinking_tokens
    closing            : the string that ends a thought; may be several tokens
    end_while_thinking : what an end token inside the thought does when there are budgets. "stop" ends the
                         rollout, as without budgets, with the finish reason "end_while_thinking"; "close"
                         puts the forced closing string in its place and goes on to the answer
    batch_rollouts     : rollouts decoded side by side (all replicas of a prompt always are)
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    thinking_tokens: int | None = None
    answer_tokens: int | None = None
    closing: str = "</think>"
    end_while_thinking: Literal["stop", "close"] = "stop"
    batch_rollouts: int = 64

    def __post_init__(self) -> None:
        if (self.thinking_tokens is None) != (self.answer_tokens is None):
            raise RecipeError(
                "Budgets need both thinking_tokens and answer_tokens",
                where="rollout",
                remedy="Give both, or neither",
            )
        for name in ("max_tokens", "thinking_tokens", "answer_tokens", "batch_rollouts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(
                    f"{name} is {value}", where="rollout", remedy="Give a positive number of tokens"
                )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise RecipeError(
                f"temperature is {self.temperature} and top_p {self.top_p}",
                where="rollout",
                remedy="Give a temperature of at least 0 and a top_p above 0 and at most 1",
            )

    def longest(self, closing_tokens: int) -> int:
        """The longest completion that these settings allow, with a closing string of so many tokens."""
        if self.thinking_tokens is None or self.answer_tokens is None:
            return self.max_tokens
        return self.thinking_tokens + closing_tokens + self.answer_tokens


@dataclass(frozen=True)
class Ending:
    """What ends a completion and a thought, in token ids.

    end_ids : tokens that end a completion
    closing : the tokens of the closing string, as forced
    decode  : ids -> text, with which a closing string of several tokens is also found when the model spells
              it in other tokens; None compares ids only
    """

    end_ids: frozenset[int]
    closing: tuple[int, ...] = ()
    closing_text: str = "</think>"
    decode: Callable[[list[int]], str] | None = None

    @classmethod
    def of(cls, tokenizer: Any, settings: RolloutSettings, end_ids: Sequence[int] = ()) -> Ending:
        """Of a tokenizer; `end_ids` are added to its end-of-text token (a model may have more)."""
        closing = tuple(tokenizer.encode(settings.closing, add_special_tokens=False))
        ends = frozenset(end_ids) | (
            {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else frozenset()
        )
        if not ends:
            raise DataError(
                "The tokenizer has no end-of-text token, so no answer would ever end",
                where="tokenizer",
                remedy="Set its eos_token",
            )
        if settings.thinking_tokens is not None and not closing:
            raise RecipeError(
                "The closing string has no tokens",
                where="rollout.closing",
                remedy="Give one such as </think>",
            )

        def decode(ids: list[int]) -> str:
            return tokenizer.decode(ids, skip_special_tokens=False)

        return cls(ends, closing, settings.closing, decode)

    def closes(self, ids: list[int]) -> bool:
        """Whether the closing string stands at the end of `ids`."""
        length = len(self.closing)
        if length and tuple(ids[-length:]) == self.closing:
            return True
        if length < 2 or self.decode is None:
            return False
        return self.closing_text in self.decode(ids[-(length + 8) :])

    def rest_to_force(self, ids: list[int]) -> list[int]:
        """The closing tokens that are still missing, when the model has begun to write them itself."""
        for begun in range(min(len(self.closing) - 1, len(ids)), 0, -1):
            if tuple(ids[-begun:]) == self.closing[:begun]:
                return list(self.closing[begun:])
        return list(self.closing)


@dataclass(frozen=True)
class Rollout:
    """One completion of one prompt.

    completion_ids  : tokens, the end token included when the model wrote one
    logprobs        : of each of them under the policy, nats, at the sampling temperature (1 when greedy),
    float32
    forced          : whether each was forced; forced tokens belong to the text, not to the loss
    truncated       : it ran into its token limit (finish_reason "length")
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
    together = max(settings.batch_rollouts // replicas, 1)
    rollouts: list[Rollout] = []
    training = model.training
    model.eval()
    try:
        with ExitStack() as stack:
            task = stack.enter_context(progress(label, len(prompts), "prompts")) if label else None
            for first in range(0, len(prompts), together):
                batch = prompts[first : first + together]
                rows = _decode(model, batch, settings, ending, replicas, seed, step)
                rollouts += [row.rollout() for row in rows]
                if task:
                    task.advance(len(batch))
    finally:
        model.train(training)
    return rollouts


@torch.inference_mode()
def _decode(
    model: Decoder,
    prompts: Sequence[Prompt],
    settings: RolloutSettings,
    ending: Ending,
    replicas: int,
    seed: int,
    step: int,
) -> list[_Row]:
    """Decode one batch: read the prompts, copy their cache for each replica, then decode all rows in step."""
    device = model.output_weight.device
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=device)
    width = int(lengths.max())
    ids = torch.zeros(len(prompts), width, dtype=torch.int64, device=device)
    for at, prompt in enumerate(prompts):
        ids[at, : len(prompt.ids)] = torch.tensor(prompt.ids)
    cache = model.new_cache(len(prompts), width + settings.longest(len(ending.closing)))
    hidden = model(ids, cache=cache)
    cache.truncate(lengths)
    last = hidden[torch.arange(len(prompts), device=device), lengths - 1].repeat_interleave(replicas, 0)
    cache = cache.expand(replicas)
    rows = [_Row(prompt, replica, settings, ending) for prompt in prompts for replica in range(replicas)]
    live, position = rows, 0
    streams = UniformStreams(seed, step, [(row.prompt.index, row.replica) for row in rows])
    while True:
        uniforms = None if settings.temperature == 0 else streams.at(position).to(device)
        sampled, logprobs = choose_tokens(
            model.logits(last), uniforms, temperature=settings.temperature, top_p=settings.top_p
        )
        tokens = [row.token_for(token) for row, token in zip(live, sampled.tolist(), strict=True)]
        chosen = torch.tensor(tokens, device=device)[:, None]
        taken = logprobs.gather(-1, chosen)[:, 0].tolist()
        for row, token, logprob in zip(live, tokens, taken, strict=True):
            row.take(token, logprob)
        going = [at for at, row in enumerate(live) if row.finish is None]
        if not going:
            return rows
        if (len(live) - len(going)) * DROP_SHARE >= len(live):
            kept = torch.tensor(going, device=device)
            cache, chosen = cache.select(kept), chosen[kept]
            streams.select(going)
            live = [live[at] for at in going]
        last = model(chosen, cache=cache)[:, 0]
        position += 1


@dataclass
class _Row:
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

    def rollout(self) -> Rollout:
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
