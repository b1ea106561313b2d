"""A server on this machine that answers in bytes of its own: too slowly, too much, or elsewhere."""

import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

PAUSE = 0.02
"""Seconds between the bytes of an answer that drips."""
Behavior = Callable[[], Iterable[bytes]]
"""What a server sends after a request, chunk by chunk; between the chunks it looks whether it is
still wanted."""


@dataclass
class HostileServer:
    """What it was asked, head and body together.

    Attributes:
        url: its base address.
        requests: what came.
        sent: bytes that went out.
    """

    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    sent: int = 0


def completion(text: str = "[[7]]") -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode() + body


def dripping(content: bytes, begins: bytes = b"") -> Iterator[bytes]:
    yield begins
    for byte in content:
        time.sleep(PAUSE)
        yield bytes([byte])


def silence() -> Iterator[bytes]:
    for _ in range(99):
        time.sleep(PAUSE)
        yield b""


def endless(begins: bytes, chunk: bytes) -> Iterator[bytes]:
    yield begins
    while True:
        yield chunk


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(bytes(2**26), 9)
"""64 MiB in 64 KiB."""
DEFLATE_BOMB = zlib.compress(bytes(2**26), 9)

SLOW: dict[str, Behavior] = {
    "silence": silence,
    "status drips": lambda: dripping(OK * 9),
    "headers drip": lambda: dripping(b"X-A: b\r\n" * 99, OK),
    "body drips": lambda: dripping(completion("[[7]]" * 99), answer(b"", length=530)),
    "chunks drip": lambda: dripping(b"1\r\n \r\n" * 99, CHUNKED),
    "body without length drips": lambda: dripping(completion("[[7]]" * 99), OK + b"\r\n"),
    "trailers drip": lambda: dripping(b"X-A: b\r\n" * 99, CHUNKED + b"0\r\n"),
    "error drips": lambda: dripping(b"no " * 99, answer(b"", status="401 No", length=297)),
    "continues": lambda: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}
"""Never done, a byte now and then."""

LARGE: dict[str, Behavior] = {
    "promised": lambda: endless(answer(b"", length=3 * 10**9), bytes(2**16)),
    "unannounced": lambda: endless(OK + b"\r\n", bytes(2**16)),
    "chunks": lambda: endless(CHUNKED, b"10000\r\n" + bytes(2**16) + b"\r\n"),
    "one chunk": lambda: endless(CHUNKED + b"fffffffff\r\n", bytes(2**16)),
    "gzip bomb": lambda: [answer(BOMB, "Content-Encoding: gzip")],
    "x-gzip bomb": lambda: [answer(BOMB, "Content-Encoding: x-gzip")],
    "deflate bomb": lambda: [answer(DEFLATE_BOMB, "Content-Encoding: deflate")],
    "raw deflate bomb": lambda: [answer(DEFLATE_BOMB[2:-4], "Content-Encoding: deflate")],
}
"""More than is allowed."""

BROKEN: dict[str, Behavior] = {
    "endless header": lambda: endless(OK + b"X-A: ", b"a" * 2**14),
    "endless headers": lambda: endless(OK, b"X-A: a\r\n" * 64),
    "endless status": lambda: endless(b"HTTP/1.1 ", b"2" * 2**14),
    "endless chunk size": lambda: endless(CHUNKED, b"0" * 2**14),
    "no chunk size": lambda: [CHUNKED + b"many\r\n"],
    "truncated": lambda: [answer(completion(), length=999)],
    "truncated chunk": lambda: [CHUNKED + b"ff\r\n" + completion()],
    "truncated gzip": lambda: [answer(gzip.compress(completion())[:-9], "Content-Encoding: gzip")],
    "no gzip": lambda: [answer(completion(), "Content-Encoding: gzip")],
    "unknown packing": lambda: [answer(completion(), "Content-Encoding: br")],
    "packed twice": lambda: [answer(completion(), "Content-Encoding: gzip, gzip")],
    "no HTTP": lambda: [b"SSH-2.0-OpenSSH\r\n"],
    "nothing": lambda: [b""],
}
"""Nothing that could be an answer."""

UNREADABLE: dict[str, Behavior] = {
    "lists": lambda: [answer(b"[" * 100_000)],
    "objects": lambda: [answer(b'{"a":' * 100_000)],
    "lists in a completion": lambda: [
        answer(b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    ],
    "a page": lambda: [answer(b"<html>log in</html>", "Content-Type: text/html")],
    "a picture": lambda: [answer(b"\x89PNG\r\n\x1a\n\0\xff", "Content-Type: image/png")],
    "empty": lambda: [answer(b"")],
    "no choices": lambda: [answer(b'{"choices": []}')],
    "choices of text": lambda: [answer(b'{"choices": "text"}')],
    "a number": lambda: [answer(b"7")],
    "half": lambda: [answer(completion()[:-3])],
    "utf-16 cut": lambda: [answer(completion().decode().encode("utf-16")[:-1])],
}
"""Whole answers that are no chat completion."""


@contextmanager
def hostile_server(*behaviors: Behavior) -> Iterator[HostileServer]:
    """Run a server that does one thing per connection, and the last one ever after."""
    server, stopped = HostileServer(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    left = list(behaviors)

    def serve(connection: socket.socket, behavior: Behavior) -> None:
        with connection, suppress(OSError):
            connection.settimeout(5)
            server.requests.append(_request(connection))
            for chunk in behavior():
                if stopped.is_set():
                    return
                connection.sendall(chunk)
                server.sent += len(chunk)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                behavior = left.pop(0) if len(left) > 1 else left[0]
                threading.Thread(target=serve, args=(connection, behavior), daemon=True).start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield server
    finally:
        stopped.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()


def _request(connection: socket.socket) -> bytes:
    """Head and body of a request, or what a client sends that wants to speak TLS."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(2**16)
        received += chunk
        if not chunk or received.startswith(b"\x16"):
            return received
    head, _, body = received.partition(b"\r\n\r\n")
    length = next((int(v) for v in _values(head, b"content-length")), 0)
    while len(body) < length:
        chunk = connection.recv(2**16)
        if not chunk:
            break
        body += chunk
    return head + b"\r\n\r\n" + body


def _values(head: bytes, name: bytes) -> Iterator[bytes]:
    for line in head.split(b"\r\n")[1:]:
        if line.lower().startswith(name + b":"):
            yield line.partition(b":")[2]
