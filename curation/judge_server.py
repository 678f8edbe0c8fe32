"""Ask-LLM through a server: any OpenAI-compatible API that returns log-probabilities (vLLM, SGLang, llama.cpp, …).

The prompt with the document goes to `/completions` or `/chat/completions` with `max_tokens` 1 and temperature 0,
and P("1") and P("0") are read from the most probable first tokens that the server returns. **The text of every
document leaves this machine**, for wherever the URL points.

What differs from a judge that we load ourselves (see ask_llm):
    bounded    an answer that is not among the returned tokens is at most as probable as the least probable of
               them, and counts as exactly that: the margin is then a bound (from above when "1" is missing, from
               below when "0" is), and 0 when both are; the row is flagged `bounded`
    truncated  there is no tokenizer here, so documents are cut by characters; a document that the server calls
               too long is halved until it fits
    control    tokens are unknown, so everything that looks like one (`<|im_end|>`, `</s>`, `[INST]`,
               `<end_of_turn>`, `<｜User｜>`) is broken up by a space
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import regex

from curation.ask_llm import COLUMNS
from curation.documents import Document
from curation.errors import DataError
from curation.judge_client import Endpoint, Refused, post
from curation.judge_prompt import Prompt
from curation.scoring.answers import Kept

SERVER_COLUMNS = (*COLUMNS, "bounded")
CHARACTERS_PER_TOKEN = 4
SHORTEST = 200
STRANGE = 10
"""So many answers that are neither "1" nor "0", if they are more than half, are no judge's."""
LAST_ANSWERS_SECONDS = 5.0
LOOK_SECONDS = 0.5
"""polars has Ctrl-C restart a wait for a lock, so that one without end would not notice it."""
Answer = tuple[list[Any], list[str]]
"""A row of `SERVER_COLUMNS`, and the most probable tokens where neither answer is among them."""
_ANSWERS = {mark + answer: answer for answer in "10" for mark in ("", " ", "▁", "Ġ")}
_CONTROL = regex.compile(
    r"<[|｜][^<>\n]{0,80}?[|｜]>"
    r"|</?[a-z0-9]+(?:[_▁][a-z0-9]+)+/?>"
    r"|</?(?:s|bos|eos|pad|unk|sep|cls|mask|think)>"
    r"|<<?/?SYS>>?"
    r"|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT|CLS|SEP|MASK|PAD|UNK|BOS|EOS)\]"
    r"|^#{2,} ?(?:Instruction|Response|Input|System|User|Assistant|Human)\b",
    regex.IGNORECASE | regex.MULTILINE,
)
_TOO_LONG = regex.compile(
    r"context|too long|too large|maximum.{0,20}(?:length|tokens)|exceed", regex.IGNORECASE
)


@dataclass(frozen=True)
class ServerJudge:
    """The scorer (see scorer.Scorer) of a served judge and one prompt; columns `SERVER_COLUMNS`.

    url          : base of the API, such as `http://127.0.0.1:8000/v1`
    model        : name under which the server offers the judge
    api          : `completions` for base models, `chat` for instruction models
    key_variable : environment variable that holds the API key; the key itself is in no file, message or hash
    concurrency  : requests at the same time, of one process
    max_document_characters : head of a document that the judge sees
    top_logprobs : tokens asked for; servers allow 5 (OpenAI's completions) to 20 or more
    system_fingerprint : when given, answers with another fingerprint are an error, and it is part of ours
    timeout, retries, backoff : seconds for one request; how often again after a connection error, 429 or 5xx;
                   seconds before the first retry, doubled each time
    """

    url: str
    model: str
    prompt: Prompt
    api: Literal["completions", "chat"] = "completions"
    key_variable: str | None = None
    concurrency: int = 8
    max_document_characters: int = 1024 * CHARACTERS_PER_TOKEN
    top_logprobs: int = 20
    system_fingerprint: str | None = None
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 0.5

    @property
    def name(self) -> str:
        return f"ask_llm-{self.prompt.name}"

    @property
    def columns(self) -> tuple[str, ...]:
        return SERVER_COLUMNS

    def fingerprint(self) -> dict[str, Any]:
        """Name of the model at the server, prompt and settings; neither the key nor where the server runs."""
        names = ("api", "max_document_characters", "top_logprobs", "system_fingerprint")
        return {
            "server_model": self.model,
            "prompt": self.prompt.sha256,
            **{name: getattr(self, name) for name in names},
        }

    def endpoint(self) -> Endpoint:
        """Where the requests go; its `check` says what is wrong with URL and key before anything is sent."""
        return Endpoint(
            self.url, _PATHS[self.api], self.key_variable, self.timeout, self.retries, self.backoff
        )

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        """The five columns, [n] each. Errors name the document; those of one stop the others."""
        return self.score_kept(documents, {})

    def score_kept(self, documents: Sequence[Document], kept: Kept) -> dict[str, np.ndarray]:
        """As `score`, asking only for what is not in `kept`; each answer is put there as soon as it comes.

        DataError when most answers are neither "1" nor "0": such a judge says nothing, and these are not kept.
        """
        endpoint = self.endpoint()
        endpoint.check()
        rows: dict[str, list[Any]] = {d.id: kept[d.id] for d in documents if d.id in kept}
        asked, strange = 0, 0
        for document, (row, other) in _side_by_side(
            lambda document, stop: self._ask(endpoint, document, stop),
            [d for d in documents if d.id not in rows],
            self.concurrency,
        ):
            asked, strange = asked + 1, strange + bool(other)
            if strange >= STRANGE and 2 * strange > asked:
                raise DataError(
                    f"The judge's server answers with neither 1 nor 0: {strange} of the first {asked} documents, "
                    f"last with {', '.join(map(repr, other))}",
                    where=f"{self.url}, model {self.model}",
                    remedy="Check the model's name; use `api: chat` for instruction models, without thinking, and "
                    "`completions` for base models",
                )
            rows[document.id] = row
            if not other:
                kept[document.id] = row
        kinds = [np.float32, np.float32, np.float32, np.bool_, np.bool_]
        return {
            name: np.array([rows[document.id][i] for document in documents], dtype=kind)
            for i, (name, kind) in enumerate(zip(SERVER_COLUMNS, kinds, strict=True))
        }

    def _ask(self, endpoint: Endpoint, document: Document, stop: threading.Event) -> Answer:
        characters = self.max_document_characters
        while True:
            head = document.text[:characters]
            try:
                reply = post(
                    endpoint, self._request(neutral(head, self.prompt)), where=document.id, stop=stop
                )
            except Refused as refusal:
                if _TOO_LONG.search(refusal.message) and len(head) > SHORTEST:
                    characters = len(head) // 2
                    continue
                raise DataError(
                    f"The judge's server refuses the request: {refusal.message}",
                    where=f"{self.url}, document {document.id}",
                    remedy="Check `curation.judge.server`: the url, the model's name, the api",
                ) from None
            self._check_origin(reply)
            tokens = first_tokens(reply, self.url)
            margin, p1, bounded = read_answer(tokens)
            probability = 1 / (1 + math.exp(-margin))
            other = [] if any(token in _ANSWERS for token, _ in tokens) else _first_shown(tokens)
            return [margin, p1, probability, len(head) < len(document.text), bounded], other

    def _request(self, text: str) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": self.model, "max_tokens": 1, "temperature": 0}
        prompt = self.prompt.before + text + self.prompt.after
        if self.api == "completions":
            return asked | {"prompt": prompt, "logprobs": self.top_logprobs}
        message = {"role": "user", "content": prompt}
        return asked | {"messages": [message], "logprobs": True, "top_logprobs": self.top_logprobs}

    def _check_origin(self, reply: dict[str, Any]) -> None:
        """Another model would go unnoticed otherwise; a dated name of the one asked for (`m-2026-01-01`) is fine."""
        model = reply.get("model")
        if isinstance(model, str) and model != self.model and not model.startswith(f"{self.model}-"):
            raise DataError(
                f"The server answers with the model `{model[:200]}`, not with `{self.model}`",
                where=self.url,
                remedy="Name the model that the server has",
            )
        said = reply.get("system_fingerprint")
        if self.system_fingerprint is not None and said != self.system_fingerprint:
            raise DataError(
                f"The server's system_fingerprint is {said!r:.200}, not `{self.system_fingerprint}`",
                where=self.url,
                remedy="The served model has changed: score again with the new fingerprint",
            )


def _side_by_side(
    ask: Callable[[Document, threading.Event], Answer], documents: Sequence[Document], threads: int
) -> Iterator[tuple[Document, Answer]]:
    """Answers as they come. The first error is raised after what was on its way at that moment has come as well,
    for it may be paid for; the threads are daemons, so that Ctrl-C does not wait for a server that hangs.
    """
    waiting, stop = iter(documents), threading.Event()
    come: queue.SimpleQueue[tuple[Document, Answer | Exception] | None] = queue.SimpleQueue()
    lock = threading.Lock()

    def work() -> None:
        while not stop.is_set():
            with lock:
                document = next(waiting, None)
            if document is None:
                break
            try:
                come.put((document, ask(document, stop)))
            except Exception as error:
                stop.set()
                come.put((document, error))
        come.put(None)

    running, failed, deadline = min(threads, len(documents)), None, math.inf
    for number in range(running):
        threading.Thread(target=work, name=f"judge_{number}", daemon=True).start()
    try:
        while running and time.monotonic() < deadline:
            try:
                found = come.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            if found is None:
                running -= 1
            elif isinstance(found[1], Exception):
                failed, deadline = failed or found[1], min(deadline, time.monotonic() + LAST_ANSWERS_SECONDS)
            else:
                yield found[0], found[1]
    finally:
        stop.set()
    if failed is not None:
        raise failed


def _first_shown(tokens: Sequence[tuple[str, float]]) -> list[str]:
    """The three most probable tokens, for a message."""
    return [token[:20] for token, _ in sorted(tokens, key=lambda row: -row[1])[:3]]


_PATHS = {"completions": "completions", "chat": "chat/completions"}


def neutral(text: str, prompt: Prompt) -> str:
    """`text` with the prompt's delimiters and all that looks like a control token broken up by a space."""
    delimiters = regex.compile("|".join(map(regex.escape, prompt.delimiters)), regex.IGNORECASE)
    while True:
        broken = text
        for pattern in (_CONTROL, delimiters):
            broken = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", broken)
        if broken == text:
            return text
        text = broken


def first_tokens(reply: dict[str, Any], url: str) -> list[tuple[str, float]]:
    """The most probable first tokens of a reply with their log-probabilities, in any of the forms in use.

    `logprobs.top_logprobs[0]` is an object (completions); `logprobs.content[0].top_logprobs` a list (chat, and
    llama.cpp's completions). Raises DataError when there are none.
    """
    try:
        logprobs = reply["choices"][0]["logprobs"]
        if "content" in logprobs:
            first = logprobs["content"][0]
            found = [(row["token"], row["logprob"]) for row in [*first["top_logprobs"], first]]
            found = list(dict.fromkeys(found[:-1])) or found[-1:]
        else:
            found = list(logprobs["top_logprobs"][0].items())
        tokens = [(str(token), min(0.0, float(value))) for token, value in found if value is not None]
        tokens = [(token, value) for token, value in tokens if math.isfinite(value)]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        tokens = []
    if not tokens:
        raise DataError(
            "The judge's server returns no log-probabilities of its first token",
            where=url,
            remedy="Use a server and a model that do (vLLM, SGLang, llama.cpp; not every hosted model)",
        )
    return tokens


def read_answer(tokens: Sequence[tuple[str, float]]) -> tuple[float, float, bool]:
    """Margin, P("1") and whether they are bounds, from the most probable tokens and their log-probabilities.

    >>> read_answer([("1", -0.5), (" 0", -1.5), ("No", -2.0)])[::2]
    (1.0, False)
    >>> read_answer([("1", -0.5), ("Yes", -2.0)])[::2]
    (1.5, True)
    """
    least = min(value for _, value in tokens)
    found: dict[str, list[float]] = {"1": [], "0": []}
    for token, value in tokens:
        if token in _ANSWERS:
            found[_ANSWERS[token]].append(value)
    one, zero = (float(np.logaddexp.reduce(found[answer])) if found[answer] else least for answer in "10")
    return one - zero, math.exp(min(0.0, one)), not (found["1"] and found["0"])
