"""Whether the hub answers: known within seconds, whatever the network does or does not."""

import socket
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants

from duquant.model import hub
from duquant.model.hub import hub_answers


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """What this process knows of the real hub is left out of it, and the other way round."""
    hub_answers.cache_clear()
    yield
    hub_answers.cache_clear()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[str]]]:
    """Put a hub on this machine that answers with one status; gives the requests it will get."""
    servers: list[HTTPServer] = []

    def start(status: int) -> list[str]:
        requests: list[str] = []

        class Answer(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                requests.append(self.path)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        server = HTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        return requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (503, False)])
def test_a_hub_that_is_there(serve: Callable[[int], list[str]], status: int, answers: bool) -> None:
    """A refusal is an answer; a gateway's complaint that the hub is down is none."""
    serve(status)
    assert hub_answers() is answers


def test_it_is_asked_once(serve: Callable[[int], list[str]]) -> None:
    requests = serve(200)
    assert [hub_answers(), hub_answers()] == [True, True]
    assert len(requests) == 1


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert not hub_answers()


def test_nobody_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that swallows everything: connected, and never a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(hub, "PATIENCE", 0.2)
        assert not hub_answers()


def test_a_name_server_that_keeps_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking a name up takes as long as it takes; no timeout of a request ends it."""
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2))
    start = time.monotonic()
    assert not hub_answers()
    assert time.monotonic() - start < 1


def test_offline_mode_asks_nobody(
    serve: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = serve(200)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_answers()
    assert requests == []
