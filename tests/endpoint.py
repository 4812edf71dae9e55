"""An OpenAI-compatible endpoint of our own making, on a thread of the test: what it answers is planted."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

QUESTION = "P<{prompt}> A<{first}> B<{second}>"  # which the endpoint reads back
_TEXTS = re.compile(r"P<(.*?)> A<(.*?)> B<(.*?)>", re.DOTALL)

Respond = Callable[[str, str, str], str | int]  # (prompt, first, second) -> words, or the status of an error


@dataclass
class Endpoint:
    """What was asked so far, and where."""

    base_url: str
    messages: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    @property
    def is_firmer(self) -> bool:
        """Whether the last message was the firmer one."""
        return "one line and nothing else" in self.messages[-1]


def usage(message: str, words: str) -> dict[str, int]:
    """What the endpoint counts: words for tokens."""
    before = len(message.split())
    after = len(words.split())
    return {"prompt_tokens": before, "completion_tokens": after, "total_tokens": before + after}


@contextmanager
def endpoint(respond: Respond, headers: Mapping[str, str] | None = None) -> Iterator[Endpoint]:
    """Up inside the block. headers go with errors."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # which keeps connections

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = body["messages"][0]["content"]
            with lock:
                asked.messages.append(message)
                asked.keys.append(self.headers["Authorization"].removeprefix("Bearer "))
                found = _TEXTS.search(message)
                assert found
                words = respond(*found.groups())
            if isinstance(words, int):
                self._send(words, {"error": {"message": "planted", "type": "planted", "code": None}}, headers or {})
            else:
                self._send(200, _completion(message, words), {})

        def _send(self, status: int, content: Mapping[str, Any], extra: Mapping[str, str]) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(text)), **extra}.items():
                self.send_header(name, value)
            with suppress(ConnectionError):  # a client that waits no longer
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    asked = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _completion(message: str, words: str) -> dict[str, Any]:
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "planted",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": words}}],
        "usage": usage(message, words),
    }
