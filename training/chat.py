"""Chats as token ids, with an exact mask of what the assistant said.

Where the chat template marks it (`{% generation %}`), the mask is the template's. Elsewhere it is the
difference of rendered prefixes: what a turn adds to the rendering of the turns before it, after the header
that opens an assistant's turn. Both masks end with the end-of-turn token, which the model must learn to say;
both are taken on one tokenisation of the whole chat, so that no token is split where the text was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from curation.errors import DataError
from training.examples import Broken, check_broken, read_rows

ROLES = ("system", "user", "assistant", "tool")
MaskMethod = Literal["auto", "markers", "prefixes"]
Message = dict[str, Any]

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class RenderedChat:
    """A chat as token ids, with whether each token was said by the assistant."""

    ids: tuple[int, ...]
    assistant: tuple[bool, ...]


@dataclass(frozen=True)
class ChatData:
    """The usable chats of a file, in order, and what could not be used."""

    chats: tuple[RenderedChat, ...]
    broken: tuple[Broken, ...]


def has_markers(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template marks what the assistant says."""
    return bool(_MARKER.search(tokenizer.chat_template or ""))


def check_messages(messages: Any, where: str = "") -> list[Message]:
    """`messages` if it is a chat with an assistant's turn; DataError otherwise."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise DataError(
            "The chat is not a list of messages", where=where, remedy='Give [{"role", "content"}, ...]'
        )
    for at, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(
                f"Message {at} has the unknown role {role!r}",
                where=where,
                remedy=f"Use one of {', '.join(ROLES)}",
            )
        if not isinstance(content, str):
            raise DataError(f"Message {at} has no text content", where=where, remedy='Give "content" as text')
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(
            "The chat has no assistant turn, so there is nothing to learn from it",
            where=where,
            remedy="Add the answer, or leave the chat out",
        )
    return messages


def render_chat(
    tokenizer: Any, messages: Sequence[Message], *, method: MaskMethod = "auto", where: str = ""
) -> RenderedChat:
    """The ids and assistant mask of a chat.

    method : "markers" uses the template's {% generation %}, "prefixes" the difference of rendered prefixes,
             "auto" the first where the template has it. Raises DataError when the template fails, or when it
             renders earlier turns differently once later ones follow (as templates that drop earlier thoughts
             do).
    """
    checked = check_messages(list(messages), where)
    if tokenizer.chat_template is None:
        raise DataError(
            "The tokenizer has no chat template",
            where=where or "tokenizer",
            remedy="Use the tokenizer of an instruction model, or one that this project trained",
        )
    if method == "markers" or (method == "auto" and has_markers(tokenizer)):
        return _by_markers(tokenizer, checked, where)
    return _by_prefixes(tokenizer, checked, where)


def render_prompt(tokenizer: Any, prompt: str | Sequence[Message], *, where: str = "") -> tuple[int, ...]:
    """The ids of a prompt, up to where the assistant begins to speak.

    A text becomes one user message. A tokenizer without a chat template encodes the text itself.
    """
    if tokenizer.chat_template is None:
        if not isinstance(prompt, str):
            raise DataError(
                "The tokenizer has no chat template, so a prompt must be a text",
                where=where,
                remedy="Give a text",
            )
        return tuple(tokenizer.encode(prompt))
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return _encode(tokenizer, _render(tokenizer, messages, where, header=True))[0]


def read_chats(path: Path | str, tokenizer: Any, *, method: MaskMethod = "auto") -> ChatData:
    """The chats of a file: rows of {"messages": [...]}, or {"prompt", "answer" or "response"}.

    A prompt may be a text or a list of messages. Rows that are no chats are counted and named; DataError when
    more than a hundredth of them are.
    """
    chats: list[RenderedChat] = []
    broken: list[Broken] = []
    for row in read_rows(path):
        if isinstance(row, Broken):
            broken.append(row)
            continue
        try:
            chats.append(
                render_chat(tokenizer, messages_of(row.value, row.where), method=method, where=row.where)
            )
        except DataError as error:
            broken.append(Broken(row.where, error.what))
    check_broken(broken, len(chats), path)
    return ChatData(tuple(chats), tuple(broken))


def messages_of(value: dict[str, Any], where: str = "") -> list[Message]:
    """The messages of a row.

    >>> messages_of({"prompt": "1 + 1?", "response": "2"})
    [{'role': 'user', 'content': '1 + 1?'}, {'role': 'assistant', 'content': '2'}]
    """
    if "messages" in value:
        return check_messages(value["messages"], where)
    prompt, answer = value.get("prompt"), value.get("response", value.get("answer"))
    if not isinstance(prompt, str | list) or not isinstance(answer, str):
        raise DataError(
            "The row has neither messages nor a prompt with a response or an answer",
            where=where,
            remedy='Give {"messages": [...]}, or {"prompt": "...", "response": "..."}',
        )
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return check_messages([*before, {"role": "assistant", "content": answer}], where)


def _by_markers(tokenizer: Any, messages: list[Message], where: str) -> RenderedChat:
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except Exception as error:
        raise _template_error(error, where) from error
    mask = [bool(flag) for flag in rendered["assistant_masks"]]
    if not any(mask):
        raise DataError(
            "The chat template marks no token as said by the assistant",
            where=where,
            remedy="Put {% generation %} around the assistant's content in the template, or choose prefixes",
        )
    return RenderedChat(tuple(rendered["input_ids"]), tuple(mask))


def _by_prefixes(tokenizer: Any, messages: list[Message], where: str) -> RenderedChat:
    whole = _render(tokenizer, messages, where)
    ids, spans = _encode(tokenizer, whole)
    mask = [False] * len(ids)
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if at:
            before = _render(tokenizer, messages[:at], where)
            header = _render(tokenizer, messages[:at], where, header=True)
            # A header may hold more than the rendered turn keeps (an opened thought): their common beginning
            # counts.
            start = _common(header, whole)
            _must_begin(start >= len(before), at, where)
        else:
            first = _render(tokenizer, messages[:1], where)
            header = _render(tokenizer, messages[:1], where, header=True)[len(first) :]
            start = first.find(header) + len(header)
            _must_begin(start >= len(header), at, where)
        through = _render(tokenizer, messages[: at + 1], where)
        stop = len(through)
        if not whole.startswith(through):
            # A template may write something behind the last turn only (Phi 3 an end of text): the turn still ends
            # with its end token, if the turn itself is the same.
            stop = _common(through, whole)
            turn = whole[start:stop]
            ended = bool(tokenizer.eos_token) and tokenizer.eos_token in turn
            _must_begin(ended and message["content"].strip() in turn, at, where)
        said = [i for i, (left, right) in enumerate(spans) if start <= left < right <= stop]
        ends = [i for i in said if ids[i] == tokenizer.eos_token_id]
        for i in said:
            mask[i] = not ends or i <= ends[-1]  # what follows the end of the turn (a line end) is nobody's
    return RenderedChat(ids, tuple(mask))


def _must_begin(fits: bool, at: int, where: str) -> None:
    if not fits:
        raise DataError(
            f"The chat template renders the chat up to message {at} differently once more follows",
            where=where,
            remedy="Train on one assistant turn per row, or use a template with {% generation %} markers",
        )


def _render(tokenizer: Any, messages: list[Message], where: str, header: bool = False) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header)
    except Exception as error:
        raise _template_error(error, where) from error


def _template_error(error: Exception, where: str) -> DataError:
    return DataError(
        f"The chat template fails: {error}",
        where=where,
        remedy="Mend the chat, or the tokenizer's chat template",
    )


def _encode(tokenizer: Any, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Ids and character spans of a rendered text, which already holds its special tokens."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return tuple(encoded["input_ids"]), encoded["offset_mapping"]


def _common(one: str, other: str) -> int:
    """Length of the common beginning of two texts."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
