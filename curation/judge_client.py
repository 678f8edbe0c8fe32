"""One JSON request to a server that may be slow, busy, broken or not what it says it is.

Of the standard library, since no client is among our dependencies. Redirects are not followed: the key and the
text go to the host that the user named, and to no other.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from curation.errors import DataError, MachineError, RecipeError

MAX_REPLY_BYTES = 4 * 2**20
LONGEST_WAIT = 60.0
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
SHOWN_CHARACTERS = 300


class Refused(Exception):
    """The server says that the request itself is wrong (4xx); `message` is what it says."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True)
class Endpoint:
    """Where requests go and how long to insist; see judge_server.ServerJudge."""

    url: str
    path: str
    key_variable: str | None
    timeout: float
    retries: int
    backoff: float

    def check(self) -> None:
        """RecipeError when the URL is not plain http(s) or the key is missing."""
        check_url(self.url)
        self.headers()

    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key_variable is not None:
            key = os.environ.get(self.key_variable, "").strip()
            if not key or not key.isascii() or not key.isprintable():
                raise RecipeError(
                    f"The environment variable {self.key_variable} holds no API key",
                    where="curation.judge.server.key_variable",
                    remedy=f"Set it, as in `export {self.key_variable}=...`",
                )
            headers["Authorization"] = f"Bearer {key}"
        return headers


def check_url(url: str) -> None:
    """RecipeError unless `url` is http(s) with a host, and without a user's name or password in it."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RecipeError(
            "The judge's server needs a URL that begins with http:// or https://",
            where="curation.judge.server.url",
            remedy="Give the base of the API, such as http://127.0.0.1:8000/v1",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RecipeError(
            "The judge's URL holds a user, a password or a query, which would end up in files and messages",
            where="curation.judge.server.url",
            remedy="Put the key into an environment variable and name that in `key_variable`",
        )


def post(endpoint: Endpoint, body: dict[str, Any], *, where: str, stop: threading.Event) -> dict[str, Any]:
    """Send `body` and return the reply's JSON object; once `stop` is set, nothing is tried again.

    Tries again, at most `retries` times, after a connection error, a time-out, a reply that is cut short or one
    of the statuses `BUSY`, and waits as long as `Retry-After` says, or else twice as long each time. Raises
    Refused for other 4xx, DataError for replies that are no JSON object, MachineError when the tries are used up.
    """
    url = f"{endpoint.url.rstrip('/')}/{endpoint.path}"
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    request = urllib.request.Request(url, data, endpoint.headers(), method="POST")
    for attempt in range(endpoint.retries + 1):
        wait: float | None = None
        try:
            with _OPENER.open(request, timeout=endpoint.timeout) as reply:
                return _parsed(_body(reply, endpoint.timeout), str(reply.headers.get_content_type()), url)
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in BUSY:
                    raise _refusal(error, url) from None
                problem, wait = f"status {error.code}: {_message(error)}", _retry_after(error)
        except (OSError, http.client.HTTPException, _CutShort) as error:
            reason = getattr(error, "reason", error)
            problem = str(reason) or type(reason).__name__
        if attempt < endpoint.retries:
            pause = endpoint.backoff * 2**attempt * random.uniform(0.75, 1.25)
            if stop.wait(min(LONGEST_WAIT, pause if wait is None else wait)):
                break
    raise MachineError(
        f"The judge's server did not answer in {endpoint.retries + 1} tries; the last time: {problem}",
        where=f"{url}, document {where}",
        remedy="See that the server runs and is reachable, and start again: parts that were scored are kept",
    )


class _CutShort(Exception):
    """The reply ended too early or took too long."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _body(reply: http.client.HTTPResponse, timeout: float) -> bytes:
    """The whole body, within `timeout` seconds also when it comes byte by byte, and of bounded size."""
    deadline = time.monotonic() + timeout
    pieces: list[bytes] = []
    size = 0
    while piece := reply.read1(65536):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_REPLY_BYTES:
            raise DataError(
                f"The server's reply is larger than {MAX_REPLY_BYTES // 2**20} MiB",
                where=reply.url,
                remedy="Is this the URL of an OpenAI-compatible API?",
            )
        if time.monotonic() > deadline:
            raise _CutShort("timed out while the reply was coming")
    expected = reply.headers.get("Content-Length", "")
    if expected.isdecimal() and size < int(expected):
        raise _CutShort(f"the reply was cut short after {size} of {expected} bytes")
    return b"".join(pieces)


def _parsed(body: bytes, kind: str, url: str) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        shown = body[:80].decode("utf-8", "replace")
        raise DataError(
            f"The server's reply is not JSON but {kind}, and begins with {shown!r}",
            where=url,
            remedy="Give the base URL of an OpenAI-compatible API, which mostly ends with /v1",
        ) from None
    if not isinstance(value, dict):
        raise DataError("The server's reply is not a JSON object", where=url)
    return value


def _refusal(error: urllib.error.HTTPError, url: str) -> Exception:
    if error.code in (401, 403):
        return RecipeError(
            f"The server refuses access (status {error.code})",
            where=url,
            remedy="Check the key in the environment variable that `key_variable` names",
        )
    if error.code == 404:
        return RecipeError(
            "The server knows no such path or model (status 404)",
            where=url,
            remedy="Check the url, which mostly ends with /v1, and the model's name",
        )
    if 300 <= error.code < 400:
        return RecipeError(
            f"The server redirects elsewhere (status {error.code}), which is not followed",
            where=url,
            remedy="Give the address that it redirects to, if you trust it",
        )
    return Refused(f"status {error.code}: {_message(error)}")


def _message(error: urllib.error.HTTPError) -> str:
    """What the server says is wrong, on one line."""
    try:
        text = error.read(65536).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return "no reason given"
    try:
        value = json.loads(text)
        inner = value.get("error", value)
        text = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    except (ValueError, AttributeError, RecursionError):
        pass
    return " ".join(text.split())[:SHOWN_CHARACTERS] or "no reason given"


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    value = error.headers.get("Retry-After", "") if error.headers else ""
    return float(value) if value.isdecimal() else None
