"""Chats as token ids, with an exact mask of what the assistant said.

Where the chat template marks it (`{% generation %}`), the mask is the template's. Elsewhere it is the
difference of rendered prefixes: what a turn adds to the rendering of the turns before it, after the header
that opens an assistant's turn. Both masks end with the end-of-turn token, which the model must learn to say;
both are taken on one tokenisation of the whole row, so that no token is split where the text was. Which rows a chat
becomes is told in training.chat_rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curation.errors import DataError
from training.chat_rows import (
    ChatRows,
    MaskMethod,
    Message,
    RenderedChat,
    Turns,
    encode_rendered,
    has_markers,
    render_rows,
    render_text,
)
from training.examples import Broken, check_broken, read_rows

__all__ = ["ChatData", "MaskMethod", "Message", "RenderedChat", "Rewritten", "Turns", "has_markers"]

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Rewritten:
    """What became of chats whose template writes earlier turns otherwise than the last.

    chats, rows : so many chats have become so many rows
    tokens      : of these rows;  last_tokens : of the last row of each chat, which is the chat written once
    restored    : turns, of any chat, that were given back a thought which the template drops even from the last turn
    """

    chats: int = 0
    rows: int = 0
    tokens: int = 0
    last_tokens: int = 0
    restored: int = 0

    @classmethod
    def of(cls, chats: Iterable[ChatRows]) -> Rewritten:
        """What became of these chats."""
        chats = list(chats)
        several = [chat.rows for chat in chats if len(chat.rows) > 1]
        return cls(
            len(several),
            sum(map(len, several)),
            sum(len(row.ids) for rows in several for row in rows),
            sum(len(rows[-1].ids) for rows in several),
            sum(chat.restored for chat in chats),
        )

    def __add__(self, other: Rewritten) -> Rewritten:
        return Rewritten(
            self.chats + other.chats,
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.last_tokens + other.last_tokens,
            self.restored + other.restored,
        )

    def told(self) -> str:
        """A sentence for the log; "" where there is nothing to tell.

        >>> Rewritten(restored=3).told()
        'The template drops the thought of every turn: 3 turns are learnt as they were said'
        """
        said = []
        if self.chats:
            said.append(
                f"The template writes earlier turns otherwise than the last: {self.chats:,} chats have become "
                f"{self.rows:,} rows, {self.tokens:,} tokens in place of {self.last_tokens:,}"
            )
        if self.restored:
            said.append(
                f"The template drops the thought of every turn: {self.restored:,} turns are learnt as they were said"
            )
        return ". ".join(said)


@dataclass(frozen=True)
class ChatData:
    """The usable chats of a file, in order, a row or several of each, and what could not be used."""

    chats: tuple[RenderedChat, ...]
    broken: tuple[Broken, ...]
    rewritten: Rewritten = field(default_factory=Rewritten)


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
    """The ids and assistant mask of a chat that is one row; see training.chat_rows for `method`.

    Raises DataError when the template fails, or renders earlier turns differently once later ones follow, so that
    the chat needs several rows.
    """
    rows = render_chat_rows(tokenizer, messages, method=method, where=where).rows
    if len(rows) > 1:
        raise DataError(
            "The chat template renders the chat up to a turn differently once more follows",
            where=where,
            remedy="Take its rows from render_chat_rows",
        )
    return rows[0]


def render_chat_rows(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    method: MaskMethod = "auto",
    turns: Turns = "all",
    where: str = "",
) -> ChatRows:
    """The rows of a chat, see training.chat_rows. DataError for what is no chat, or a tokenizer without a template."""
    checked = check_messages(list(messages), where)
    if tokenizer.chat_template is None:
        raise DataError(
            "The tokenizer has no chat template",
            where=where or "tokenizer",
            remedy="Use the tokenizer of an instruction model, or one that this project trained",
        )
    return render_rows(tokenizer, checked, method=method, turns=turns, where=where)


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
    return encode_rendered(tokenizer, render_text(tokenizer, messages, where, header=True))[0]


def read_chats(
    path: Path | str, tokenizer: Any, *, method: MaskMethod = "auto", turns: Turns = "all"
) -> ChatData:
    """The chats of a file: rows of {"messages": [...]}, or {"prompt", "answer" or "response"}.

    A prompt may be a text or a list of messages. Rows that are no chats are counted and named; DataError when
    more than a hundredth of them are.
    """
    chats: list[ChatRows] = []
    broken: list[Broken] = []
    for row in read_rows(path):
        if isinstance(row, Broken):
            broken.append(row)
            continue
        try:
            messages = messages_of(row.value, row.where)
            chats.append(render_chat_rows(tokenizer, messages, method=method, turns=turns, where=row.where))
        except DataError as error:
            broken.append(Broken(row.where, error.what))
    check_broken(broken, len(chats), path)
    rows = tuple(row for chat in chats for row in chat.rows)
    return ChatData(rows, tuple(broken), Rewritten.of(chats))


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
