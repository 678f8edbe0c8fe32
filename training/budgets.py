"""How long a rollout may be, and what ends a thought and an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from curation.errors import DataError, RecipeError


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
    engine             : what decodes: our own loop, or "vllm" where it is installed (training.vllm_rollout)
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
    engine: Literal["own", "vllm"] = "own"

    def __post_init__(self) -> None:
        if (self.thinking_tokens is None) != (self.answer_tokens is None):
            raise RecipeError(
                "Budgets need both thinking_tokens and answer_tokens",
                where="rollout",
                remedy="Give both, or neither",
            )
        if self.engine not in ("own", "vllm"):
            raise RecipeError(
                f"There is no engine {self.engine!r}", where="rollout.engine", remedy="Choose own or vllm"
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
    stop    : strings that end a completion as soon as its text holds one, however they are spelled; needs decode
    """

    end_ids: frozenset[int]
    closing: tuple[int, ...] = ()
    closing_text: str = "</think>"
    decode: Callable[[list[int]], str] | None = None
    stop: tuple[str, ...] = ()

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

        if settings.thinking_tokens is not None and settings.closing.strip() not in decode(list(closing)):
            raise RecipeError(
                f"The tokenizer cannot spell the closing string {settings.closing!r}: it comes back as "
                f"{decode(list(closing))!r}",
                where="rollout.closing",
                remedy="Give the string that ends a thought of this model; it may be several tokens",
            )
        return cls(ends, closing, settings.closing, decode)

    def closes(self, ids: list[int]) -> bool:
        """Whether the closing string stands at the end of `ids`."""
        length = len(self.closing)
        if length and tuple(ids[-length:]) == self.closing:
            return True
        if length < 2 or self.decode is None:
            return False
        return self.closing_text in self.decode(ids[-(length + 8) :])

    def stops(self, ids: list[int]) -> bool:
        """Whether one of the stop strings stands at the end of `ids`, in or across its last token."""
        if not self.stop or self.decode is None:
            return False
        # A token holds at least a byte of text; the few more are for a character begun before, and special tokens.
        tail = self.decode(ids[-(max(len(stop.encode()) for stop in self.stop) + 8) :])
        return any(stop in tail for stop in self.stop)

    def rest_to_force(self, ids: list[int]) -> list[int]:
        """The closing tokens that are still missing, when the model has begun to write them itself."""
        for begun in range(min(len(self.closing) - 1, len(ids)), 0, -1):
            if tuple(ids[-begun:]) == self.closing[:begun]:
                return list(self.closing[begun:])
        return list(self.closing)
