"""A chat as the rows that are trained on: one, unless the template writes an earlier turn otherwise than the last.

Templates of reasoning models (Qwen 3, DeepSeek R1, ...) drop the thought of a turn once another follows. What the
model meets when it writes a turn is the rendering up to that turn, so that is what the turn is learnt from: each turn
stands in the rendering that ends with it, or in one of a later turn that begins with the very same text. The later
rendering is preferred, so that a chat which the template never rewrites stays one row, and one with tools, whose
thoughts Qwen 3 keeps until the user speaks again, has a row for each thing that the user said. Every turn is learnt
from in one row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from curation.errors import DataError

MaskMethod = Literal["auto", "markers", "prefixes"]
Turns = Literal["all", "last"]
Message = dict[str, Any]

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OPENING = re.compile(r"\s*(<[^<>\s]+>|\[[A-Z_]+\])")
_CLOSED = re.compile(r"(</[^<>\s]+>|\[/[A-Z_]+\])\s*$")


@dataclass(frozen=True)
class RenderedChat:
    """A chat as token ids, with whether each token was said by the assistant."""

    ids: tuple[int, ...]
    assistant: tuple[bool, ...]


@dataclass(frozen=True)
class ChatRows:
    """The rows of one chat in the order of their last turns, and how many turns were given back what the template
    drops even from a turn with which the chat ends."""

    rows: tuple[RenderedChat, ...]
    restored: int = 0


@dataclass(frozen=True)
class _Turn:
    """The assistant's turn at message `at`: the rendering up to it, in which it begins at a character."""

    at: int
    text: str
    start: int
    content: str
    restored: bool = False


def has_markers(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template marks what the assistant says."""
    return bool(_MARKER.search(tokenizer.chat_template or ""))


def render_rows(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    method: MaskMethod = "auto",
    turns: Turns = "all",
    where: str = "",
) -> ChatRows:
    """The rows of a chat that training.chat.check_messages has accepted.

    method : "markers" uses the template's {% generation %}, "prefixes" the difference of rendered prefixes,
             "auto" the first where the template has it
    turns  : "last" learns from the assistant's last turn alone
    What follows the last turn is left out. Without markers, a template that drops the thought of a turn even when
    nothing follows (DeepSeek R1's) would leave it out of what is learnt; the turn is then what was said, after the
    header that asks for it. Raises DataError when the template fails, or when a turn cannot be found.
    """
    marked = method == "markers" or (method == "auto" and has_markers(tokenizer))
    spoken = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    find = _marked_turn if marked else _turn
    left = [find(tokenizer, messages, at, where) for at in (spoken if turns == "all" else spoken[-1:])]
    restored = sum(turn.restored for turn in left)
    rows: list[RenderedChat] = []
    while left:
        last = left[-1]
        ends = {turn.at: _end(turn, last, tokenizer) for turn in left}
        held = [(turn, end) for turn in left if (end := ends[turn.at]) is not None]
        left = [turn for turn in left if ends[turn.at] is None]
        if marked:
            whole = len(held) == sum(at <= last.at for at in spoken)
            rows.append(_by_markers(tokenizer, messages, last, None if whole else held, where))
        else:
            rows.append(_by_prefixes(tokenizer, last, held))
    return ChatRows(tuple(reversed(rows)), restored)


def render_text(tokenizer: Any, messages: Sequence[Message], where: str, header: bool = False) -> str:
    """What the template makes of the messages, with the header of the assistant's next turn if asked for."""
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=header)
    except Exception as error:
        raise _template_error(error, where) from error


def encode_rendered(tokenizer: Any, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Ids and character spans of a rendered text, which already holds its special tokens."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return tuple(encoded["input_ids"]), encoded["offset_mapping"]


def _turn(tokenizer: Any, messages: Sequence[Message], at: int, where: str) -> _Turn:
    """What the rendering up to a turn adds to that of the messages before it, after the turn's header."""
    content = messages[at]["content"]
    text = render_text(tokenizer, messages[: at + 1], where)
    begin, start = _begins(tokenizer, messages, at, text, where)
    end = tokenizer.eos_token or ""
    kept = (text[start:].rpartition(end)[0] if end and end in text[start:] else text[start:]).strip()
    said = content.strip()
    if said in text[begin:] or not said.endswith(kept):
        return _Turn(at, text, start, content)
    if not _CLOSED.search(said.removesuffix(kept)):
        raise DataError(
            f"The chat template leaves out what the assistant says in message {at}",
            where=where,
            remedy="Use a template that renders text content",
        )
    header = render_text(tokenizer, messages[:at], where, header=True)
    opening = _OPENING.match(content)
    rest = content[opening.end() :] if opening and header.rstrip().endswith(opening[1]) else content
    rest = rest.lstrip() if header[-1:].isspace() else rest
    return _Turn(at, header + rest + end, len(header), content, restored=True)


def _begins(tokenizer: Any, messages: Sequence[Message], at: int, text: str, where: str) -> tuple[int, int]:
    """The characters of the rendering up to a turn at which its header begins and ends."""
    if not at:
        header = render_text(tokenizer, messages[:1], where, header=True)[len(text) :]
        start = text.find(header) + len(header)
        _must_begin(start >= len(header), at, where)
        return 0, start
    before = render_text(tokenizer, messages[:at], where)
    header = render_text(tokenizer, messages[:at], where, header=True)
    if text.startswith(header):
        return len(before), len(header)
    if text.startswith(before):
        return len(before), _common_tokens(tokenizer, header, text)
    # The turn itself changes what stands before it, as a turn of the assistant behind another may: its header tells.
    asked = header.removeprefix(before)
    begin = text.rfind(asked)
    _must_begin(
        0 < len(asked) < len(header) and begin >= 0 and asked not in messages[at]["content"], at, where
    )
    return begin, begin + len(asked)


def _marked_turn(tokenizer: Any, messages: Sequence[Message], at: int, where: str) -> _Turn:
    """The same where the template marks what was said: where the turn begins is asked only if it matters."""
    text = render_text(tokenizer, messages[: at + 1], where)
    return _Turn(at, text, 0, messages[at]["content"])


def _end(turn: _Turn, last: _Turn, tokenizer: Any) -> int | None:
    """The character at which a turn ends in the rendering up to a later one; None where it is not the same there."""
    if last.text.startswith(turn.text):
        return len(turn.text)
    # A template may write something behind the last turn only (Phi 3 an end of text): the turn still ends with its
    # end token, if the turn itself is the same.
    stop = _common(turn.text, last.text)
    same = turn.text[turn.start : stop]
    ended = bool(tokenizer.eos_token) and tokenizer.eos_token in same
    return stop if ended and turn.content.strip() in same else None


def _by_markers(
    tokenizer: Any,
    messages: Sequence[Message],
    last: _Turn,
    held: Sequence[tuple[_Turn, int]] | None,
    where: str,
) -> RenderedChat:
    """The row that ends with a turn, with the template's marks; of some turns (with their ends) or of all."""
    try:
        rendered = tokenizer.apply_chat_template(
            list(messages[: last.at + 1]), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except Exception as error:
        raise _template_error(error, where) from error
    ids, mask = tuple(rendered["input_ids"]), [bool(flag) for flag in rendered["assistant_masks"]]
    if held is not None:
        begins = [_begins(tokenizer, messages, turn.at, turn.text, where)[0] for turn, _ in held]
        spans = encode_rendered(tokenizer, last.text)[1]
        inside = [
            any(b <= left and right <= end for b, (_, end) in zip(begins, held, strict=True))
            for left, right in spans
        ]
        mask = [flag and here for flag, here in zip(mask, inside, strict=True)]
    if not any(mask):
        raise DataError(
            "The chat template marks no token as said by the assistant",
            where=where,
            remedy="Put {% generation %} around the assistant's content in the template, or choose prefixes",
        )
    return RenderedChat(ids, tuple(mask))


def _by_prefixes(tokenizer: Any, last: _Turn, held: Sequence[tuple[_Turn, int]]) -> RenderedChat:
    """The row that ends with a turn, in which the turns of `held` are learnt, each up to its end."""
    ids, spans = encode_rendered(tokenizer, last.text)
    mask = [False] * len(ids)
    for turn, stop in held:
        said = [i for i, (left, right) in enumerate(spans) if turn.start <= left < right <= stop]
        ends = [i for i in said if ids[i] == tokenizer.eos_token_id]
        for i in said:
            mask[i] = not ends or i <= ends[-1]  # what follows the end of the turn (a line end) is nobody's
    return RenderedChat(ids, tuple(mask))


def _must_begin(fits: bool, at: int, where: str) -> None:
    if not fits:
        raise DataError(
            f"Where message {at} begins in what the chat template makes of the chat cannot be told",
            where=where,
            remedy="Put {% generation %} around the assistant's content in the template, or leave the chat out",
        )


def _template_error(error: Exception, where: str) -> DataError:
    return DataError(
        f"The chat template fails: {error}",
        where=where,
        remedy="Mend the chat, or the tokenizer's chat template",
    )


def _common_tokens(tokenizer: Any, header: str, text: str) -> int:
    """The character at which a turn begins whose header holds more than the rendered turn keeps (an opened thought):
    behind the tokens with which both begin, since "<think>" and an end token may begin with the same character."""
    ids, spans = encode_rendered(tokenizer, text)
    shorter = encode_rendered(tokenizer, header)[0]
    same = next((i for i, (a, b) in enumerate(zip(ids, shorter, strict=False)) if a != b), None)
    return _common(header, text) if same is None else spans[same][0]


def _common(one: str, other: str) -> int:
    """Length of the common beginning of two texts, by halving: chats are long, and turns many."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
