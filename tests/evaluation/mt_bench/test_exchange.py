"""No server takes more time, memory or trust than it was given."""

import gc
import gzip
import threading
import time
import tracemalloc
import zlib
from contextlib import nullcontext
from typing import Any

import pytest

from duquant.evaluation.mt_bench.endpoint import ChatEndpoint, RequestPolicy, UnreadableReply
from tests.hostile_server import (
    BROKEN,
    CHUNKED,
    LARGE,
    OK,
    SLOW,
    UNREADABLE,
    Behavior,
    answer,
    completion,
    dripping,
    hostile_server,
)
from tests.judge_server import KEY

FINE = completion("fine")
LIMIT = 2**20
"""Bytes; a bomb has 64 times that."""


HANGS_UP_EARLY = pytest.mark.filterwarnings(
    "ignore:unclosed <ssl:ResourceWarning",
    "ignore:Exception ignored in. <ssl:pytest.PytestUnraisableExceptionWarning",
)
"""Python's ssl leaves a socket to the garbage collector that ends while it is being wrapped."""

MESSAGES = [{"role": "user", "content": "which?"}]


def endpoint(url: str, **policy: Any) -> ChatEndpoint:
    settings: dict[str, Any] = {"timeout": 20.0, "retries": 0, "max_bytes": LIMIT, **policy}
    return ChatEndpoint(url, "judge", KEY, RequestPolicy(**settings), lambda _: None)


def ask(client: ChatEndpoint) -> str:
    return client.ask(client.payload(MESSAGES))


def refusal(client: ChatEndpoint) -> str:
    """The one line an endpoint ends in."""
    with pytest.raises(ValueError, match=r"\Athe endpoint http\S+ ") as refused:
        ask(client)
    line = str(refused.value)
    assert "\n" not in line
    assert len(line) < 400
    assert KEY not in line
    return line


@pytest.mark.parametrize("name", SLOW)
def test_one_clock_runs_from_the_beginning_to_the_end(name: str) -> None:
    with hostile_server(SLOW[name]) as server:
        started = time.monotonic()
        line = refusal(endpoint(server.url, timeout=0.3))
        assert time.monotonic() - started < 2
    assert "no answer in time" in line or "connection failed" in line


@HANGS_UP_EARLY
def test_tls_that_drips() -> None:
    with hostile_server(lambda: dripping(b"\x16\x03\x03\x40\x00" * 99)) as server:
        started = time.monotonic()
        line = refusal(endpoint(server.url.replace("http:", "https:"), timeout=1.0))
        assert time.monotonic() - started < 3
    assert "no answer in time" in line
    gc.collect()


@HANGS_UP_EARLY
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_drips(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile_server(SLOW["headers drip"]) as proxy:
        for name in ("no_proxy", "NO_PROXY", f"{scheme.upper()}_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(f"{scheme}_proxy", proxy.url.removesuffix("/v1"))
        started = time.monotonic()
        line = refusal(endpoint(f"{scheme}://judge.example/v1", timeout=0.3))
        assert time.monotonic() - started < 2
        assert len(proxy.requests) == 1
    assert "no answer in time" in line
    gc.collect()


@pytest.mark.parametrize("name", LARGE)
def test_sizes_are_bounded(name: str) -> None:
    with hostile_server(LARGE[name]) as server:
        client = endpoint(server.url)
        tracemalloc.start()
        try:
            line = refusal(client)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert f"more than {LIMIT} bytes (request.max_bytes)" in line
    assert peak < 8 * LIMIT


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_ends_in_one_line(name: str) -> None:
    with hostile_server(BROKEN[name]) as server:
        refusal(endpoint(server.url))
        assert server.sent < 2**24


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_completion_is_asked_for_again(name: str) -> None:
    with hostile_server(UNREADABLE[name], lambda: [answer(FINE)]) as server:
        assert ask(endpoint(server.url, retries=1)) == "fine"
    with hostile_server(UNREADABLE[name]) as server:
        with pytest.raises(UnreadableReply, match="failed 3 times, at last with an answer that is"):
            ask(endpoint(server.url, retries=2))
        assert len(server.requests) == 3


@pytest.mark.parametrize("name", [*SLOW, *LARGE, *BROKEN])
def test_every_failure_may_pass(name: str) -> None:
    behavior = {**SLOW, **LARGE, **BROKEN}[name]
    with hostile_server(behavior, lambda: [answer(FINE)]) as server:
        assert ask(endpoint(server.url, timeout=0.4, retries=1)) == "fine"


@pytest.mark.parametrize(
    "behavior",
    [
        lambda: [answer(FINE, "Content-Type: text/html; charset=nonsense")],
        lambda: [answer(gzip.compress(FINE), "Content-Encoding: gzip")],
        lambda: [answer(zlib.compress(FINE), "Content-Encoding: deflate")],
        lambda: [answer(zlib.compress(FINE)[2:-4], "Content-Encoding: Deflate")],
        lambda: [answer(FINE, "Content-Encoding: identity")],
        lambda: [OK + b"\r\n" + FINE],
        lambda: [CHUNKED + b"%x\r\n" % len(FINE) + FINE + b"\r\n0\r\n\r\n"],
        lambda: [b"HTTP/1.1 100 Continue\r\n\r\n", answer(FINE)],
        lambda: [answer(b"\xef\xbb\xbf" + FINE)],
        lambda: [answer(FINE.decode().encode("utf-16"))],
        lambda: dripping(
            FINE[-9:],
            answer(b"", length=len(FINE)) + FINE[:-9],
        ),
    ],
)
def test_unusual_answers_are_understood(behavior: Behavior) -> None:
    with hostile_server(behavior) as server:
        assert ask(endpoint(server.url)) == "fine"


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
@pytest.mark.parametrize("target", ["http://elsewhere.example/v1", "{other}", "//x", "", "ftp:x"])
def test_a_key_is_not_sent_elsewhere(status: int, target: str) -> None:
    with hostile_server(lambda: [answer(FINE)]) as other:
        place = target.format(other=other.url)

        def redirect() -> list[bytes]:
            return [answer(bytes(2**22), f"Location: {place}", status=f"{status} There")]

        with hostile_server(redirect) as server:
            line = refusal(endpoint(server.url))
            assert f"says HTTP {status} (it redirects to" in line
            assert "--endpoint" in line
            assert len(server.requests) == 1
            endpoint(server.url).check()
        assert other.requests == []


@pytest.mark.parametrize(
    ("name", "is_over"),
    [("body drips", True), ("headers drip", True), ("promised", False), ("gzip bomb", False)],
)
def test_the_first_look_is_bounded_too(name: str, is_over: bool) -> None:
    late = pytest.raises(ValueError, match=r"cannot be reached \(no answer in time\)")
    expectation = late if is_over else nullcontext()
    with hostile_server({**SLOW, **LARGE}[name]) as server:
        started = time.monotonic()
        with expectation:
            endpoint(server.url, timeout=0.3).check()
        assert time.monotonic() - started < 2
        assert server.sent < 2**24


def test_a_refusal_is_understood_however_its_body_ends() -> None:
    for body in (answer(b"no", status="401 No", length=9), answer(bytes(2**22), status="401 No")):
        with hostile_server(lambda body=body: [body]) as server:
            assert "HTTP 401" in refusal(endpoint(server.url))


def test_nothing_stays_behind() -> None:
    before = threading.active_count()
    with hostile_server(SLOW["headers drip"]) as server:
        for _ in range(3):
            refusal(endpoint(server.url, timeout=0.1))
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
