"""A small OpenAI-compatible server on 127.0.0.1 that serves a transformers model, and misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class Served:
    """What the server does and what it saw. `faults` are used up one per request, then it behaves."""

    folder: Path
    model: str = "tiny"
    top: int | None = None
    without: tuple[str, ...] = ()
    context: int | None = None
    faults: list[str] = field(default_factory=list)
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    together: int = 0
    most_together: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Served]:
    """Serve the model of `folder` until the block ends."""
    served = Served(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with served.lock:
                served.requests.append(body)
                served.headers.append(dict(self.headers))
                served.together += 1
                self.counted = True
                served.most_together = max(served.most_together, served.together)
                fault = served.faults.pop(0) if served.faults else ""
            try:
                self.answer(body, fault)
            finally:
                self.release()

        def release(self) -> None:
            """Count the request as over before its reply is sent: the next may come at once."""
            with served.lock:
                served.together -= self.counted
                self.counted = False

        def answer(self, body: dict[str, Any], fault: str) -> None:
            if fault.isdecimal():
                return self.send(b'{"error": {"message": "no"}}', status=int(fault))
            if fault == "html":
                return self.send(b"<html><body>Welcome</body></html>", kind="text/html")
            if fault == "drop":
                return self.connection.close()
            if fault == "hang":
                time.sleep(1.5)
                return None
            chat = self.path == "/v1/chat/completions"
            text = body["messages"][0]["content"] if chat else body["prompt"]
            ids = tokenizer(text)["input_ids"]
            if served.context is not None and len(ids) > served.context:
                message = f"This model's maximum context length is {served.context} tokens"
                return self.send(json.dumps({"error": {"message": message}}).encode(), status=400)
            reply = self.reply(ids, chat, body["top_logprobs"] if chat else body["logprobs"])
            if fault == "no logprobs":
                reply["choices"][0]["logprobs"] = None
            if fault == "other model":
                reply["model"] = "another"
            data = json.dumps(reply).encode()
            if fault == "truncated":
                return self.send(data[: len(data) // 2], length=len(data))
            return self.send(data)

        def reply(self, ids: list[int], chat: bool, wanted: int) -> dict[str, Any]:
            with served.lock, torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            order = logprobs.argsort(descending=True).tolist()
            rows = [(tokenizer.decode([i]), float(logprobs[i])) for i in order]
            rows = [row for row in rows if row[0] not in served.without][: served.top or wanted]
            if chat:
                listed = [{"token": token, "logprob": value} for token, value in rows]
                found: dict[str, Any] = {"content": [{**listed[0], "top_logprobs": listed}]}
            else:
                found = {"tokens": [rows[0][0]], "top_logprobs": [dict(reversed(rows))]}
            return {"model": served.model, "system_fingerprint": "fp", "choices": [{"logprobs": found}]}

        def send(
            self, data: bytes, status: int = 200, kind: str = "application/json", length: int | None = None
        ) -> None:
            self.release()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length or len(data)))
            if status == 302:
                self.send_header("Location", served.url + "/elsewhere")
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
