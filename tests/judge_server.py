"""A judge on this machine: an HTTP server that speaks the chat-completions protocol, also badly.

It follows a script, one entry per request, and then answers everything alike:

=========== =============================================
entry       what the server does
=========== =============================================
a text      replies with it
429, 500 …  fails with this status
"drop"      closes the connection without a word
"late"      replies after the client has given up
"garbage"   sends something that is no chat completion
"null"      a completion without text
=========== =============================================
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-of-the-test"
LATE = 0.6
"""Seconds; clients of these tests wait for less."""


def fair_judge(payload: dict[str, Any]) -> str:
    """Seven points for everybody, and a tie."""
    return "Solid. Rating: [[7]]" if "Rating" in payload["messages"][0]["content"] else "[[C]]"


@dataclass
class JudgeServer:
    """What the server does, and what it was asked.

    Attributes:
        url: its base address.
        script: entries that are still to come.
        reply: gives the reply to a request that no entry is left for.
        headers: headers of failures.
        requests: payloads of chat completions, in the order they came.
        keys: the Authorization header of every request.
        models: what is in the list of models.
        accepted: keys with which that list is shown.
    """

    url: str = ""
    script: list[str | int] = field(default_factory=list)
    reply: Callable[[dict[str, Any]], str] = fair_judge
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    accepted: set[str] = field(default_factory=lambda: {KEY})

    @property
    def user_prompts(self) -> list[str]:
        return [request["messages"][1]["content"] for request in self.requests]


@contextmanager
def judge_server(*script: str | int) -> Iterator[JudgeServer]:
    """Run a server for the length of a ``with`` block."""
    judge = JudgeServer(script=list(script))

    class Handler(_Handler):
        server_judge = judge

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_judge: JudgeServer

    def do_GET(self) -> None:
        """The list of models, which shows that somebody is there."""
        judge = self.server_judge
        accepted = self.headers["Authorization"].removeprefix("Bearer ") in judge.accepted
        self._send(200 if accepted else 401, {"data": judge.models})

    def do_POST(self) -> None:
        judge = self.server_judge
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        judge.keys.append(self.headers["Authorization"])
        judge.requests.append(payload)
        entry = judge.script.pop(0) if judge.script else judge.reply(payload)
        if self.path != "/v1/chat/completions":
            entry = 404
        if isinstance(entry, int):
            self._send(entry, {"error": {"message": f"no, {self.headers['Authorization']}"}})
        elif entry == "drop":
            self.close_connection = True
        elif entry == "garbage":
            self._send(200, {"choices": []})
        else:
            time.sleep(LATE if entry == "late" else 0)
            text = None if entry == "null" else entry
            self._send(200, {"choices": [{"message": {"role": "assistant", "content": text}}]})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in self.server_judge.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            pass  # the client has given up

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""
