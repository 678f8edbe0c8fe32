"""Three ways to shorten a model's thoughts by its data alone (LFM-1.3B-Math's post): drop, condition, truncate.

Each takes chats as messages and gives chats as messages, so that they combine and can be read before training.
The post found none of them better than cutting the generation of an unshortened model; they are here to compare.
Lengths are tokens of the thoughts of a chat's assistant, without the strings around them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from curation.atomic import replacing
from curation.errors import DataError, RecipeError
from training.chat import Message, messages_of
from training.examples import Broken, check_broken, read_rows

Level = Literal["low", "medium", "high"]
LEVELS: tuple[Level, Level, Level] = ("low", "medium", "high")


@dataclass(frozen=True)
class Shortening:
    """What is done to the chats, in this order.

    drop_longest : share of the chats, those with the longest thoughts, that is left out (the post: 0.2, which were
                   half of its tokens)
    condition    : put "thinking: low", "medium" or "high" into the system prompt, by the length of the thoughts
    thresholds   : longest thoughts that are low and medium, in tokens; None takes the terciles of the chats
    truncate     : tokens that a thought may have; a longer one is cut there and closed, its answer stays
    opening, closing : the strings around a thought
    """

    drop_longest: float = 0.0
    condition: bool = False
    thresholds: tuple[int, int] | None = None
    truncate: int | None = None
    opening: str = "<think>"
    closing: str = "</think>"

    def __post_init__(self) -> None:
        wrong = {
            "drop_longest": not 0 <= self.drop_longest < 1,
            "truncate": self.truncate is not None and self.truncate < 1,
            "thresholds": self.thresholds is not None and not 0 <= self.thresholds[0] < self.thresholds[1],
            "closing": not self.closing,
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise RecipeError(
                f"{name} cannot be {getattr(self, name)!r}",
                where="shorten",
                remedy="Give a share below 1, two rising thresholds, a positive limit",
            )


@dataclass(frozen=True)
class Shortened:
    """What became of the chats; tokens are those of the thoughts. `levels` counts the conditioned chats."""

    chats: int
    kept: int
    dropped_tokens: int
    cut: int
    tokens_before: int
    tokens_after: int
    thresholds: tuple[int, int] | None
    levels: dict[str, int]
    broken: int = 0


def shorten_file(data: Path | str, out: Path | str, tokenizer: Any, how: Shortening) -> Shortened:
    """Shorten the chats of a file (as `read_chats` takes it) into `out`, a .jsonl of {"messages"}; atomic.

    Rows that are no chats are left out and counted; DataError when more than a hundredth of them are.
    """
    chats, broken = [], []
    for row in read_rows(data):
        try:
            if isinstance(row, Broken):
                broken.append(row)
            else:
                chats.append(messages_of(row.value, row.where))
        except DataError as error:
            broken.append(Broken(row.where, error.what))
    check_broken(broken, len(chats), data)
    shortened, report = shorten(chats, tokenizer, how)
    if not shortened:
        raise DataError("No chat is left", where=str(data), remedy="Drop a smaller share")
    with replacing(Path(out)) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for messages in shortened:
            lines.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return Shortened(**(asdict(report) | {"broken": len(broken)}))


def shorten(
    chats: Sequence[list[Message]], tokenizer: Any, how: Shortening
) -> tuple[list[list[Message]], Shortened]:
    """The chats as `how` says, in their order, and what became of them."""
    lengths = [thought_tokens(chat, tokenizer, how) for chat in chats]
    out = int(how.drop_longest * len(chats) + 1e-9)
    longest = sorted(range(len(chats)), key=lambda at: (-lengths[at], at))[:out]
    kept = [at for at in range(len(chats)) if at not in set(longest)]
    bounds = how.thresholds or terciles([lengths[at] for at in kept])
    found, levels, cut, after = [], dict.fromkeys(LEVELS, 0), 0, 0
    for at in kept:
        messages = chats[at]
        if how.condition:
            level = level_of(lengths[at], bounds)
            levels[level] += 1
            messages = with_level(messages, level)
        if how.truncate is not None:
            shorter = [_cut_message(message, tokenizer, how) for message in messages]
            cut += shorter != messages
            messages = shorter
        after += thought_tokens(messages, tokenizer, how) if how.truncate is not None else lengths[at]
        found.append(messages)
    report = Shortened(
        chats=len(chats),
        kept=len(kept),
        dropped_tokens=sum(lengths[at] for at in longest),
        cut=cut,
        tokens_before=sum(lengths),
        tokens_after=after,
        thresholds=bounds if how.condition else None,
        levels=dict(levels.items()) if how.condition else {},
    )
    return found, report


def terciles(lengths: Sequence[int]) -> tuple[int, int]:
    """The lengths below or at which a third, and two thirds, of the chats are.

    >>> terciles([5, 1, 2, 4, 3, 6])
    (2, 4)
    """
    ordered = sorted(lengths)
    if not ordered:
        return 0, 0
    first, second = (ordered[max(-(-len(ordered) * part // 3) - 1, 0)] for part in (1, 2))
    return first, second


def level_of(length: int, thresholds: tuple[int, int]) -> Level:
    """The level of a chat whose thoughts have `length` tokens.

    >>> [level_of(n, (100, 200)) for n in (100, 101, 201)]
    ['low', 'medium', 'high']
    """
    return LEVELS[sum(length > bound for bound in thresholds)]


def with_level(messages: list[Message], level: Level) -> list[Message]:
    """The chat with "thinking: <level>" as the last line of its system prompt, which is made where there is none.

    >>> with_level([{"role": "user", "content": "1 + 1?"}], "low")[0]
    {'role': 'system', 'content': 'thinking: low'}
    """
    line = f"thinking: {level}"
    if messages and messages[0]["role"] == "system":
        said = messages[0]["content"]
        return [messages[0] | {"content": f"{said}\n{line}" if said else line}, *messages[1:]]
    return [{"role": "system", "content": line}, *messages]


def thought_tokens(messages: Sequence[Message], tokenizer: Any, how: Shortening) -> int:
    """Tokens of all thoughts of a chat's assistant; 0 where it shows none."""
    thoughts = (_parts(m["content"], how)[1] for m in messages if m["role"] == "assistant")
    return sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in thoughts if t)


def truncate_thought(content: str, tokenizer: Any, how: Shortening) -> str:
    """What an assistant said with its thought cut after `how.truncate` tokens and closed; the answer stays.

    A thought that was never closed is closed too when it is cut: the model is to learn to stop thinking.
    """
    before, thought, after = _parts(content, how)
    spans = tokenizer(thought, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if how.truncate is None or len(spans) <= how.truncate:
        return content
    return before + thought[: spans[how.truncate - 1][1]] + (after or how.closing)


def _cut_message(message: Message, tokenizer: Any, how: Shortening) -> Message:
    if message["role"] != "assistant":
        return message
    return message | {"content": truncate_thought(message["content"], tokenizer, how)}


def _parts(content: str, how: Shortening) -> tuple[str, str, str]:
    """What stands before a thought, with its opening; the thought; the closing and what follows.

    A template's header may have opened the thought; content without either string is all answer.
    """
    begin = content.find(how.opening) if how.opening else -1
    start = begin + len(how.opening) if begin >= 0 else 0
    end = content.find(how.closing, start)
    if end < 0 and begin < 0:
        return "", "", content
    end = len(content) if end < 0 else end
    return content[:start], content[start:end], content[end:]
