"""One request and its answer, bounded in time and size.

A server may send a byte now and then, never end its headers, promise gigabytes, or pack them into a
few kilobytes. A timeout of a socket starts anew with every byte; here one clock runs from the
beginning to the end of an exchange, and when it is over the connection is hung up. A body is read
up to its limit, packed or not. Nobody is sent elsewhere: a redirection is an answer like any other.
"""

import http.client
import logging
import socket
import threading
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

CHUNK = 2**16
"""Bytes read at a time, and of a body that is an error message in all."""
FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException)
ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""Window sizes for zlib, by the name of the encoding."""
RAW_DEFLATE = -15
"""What some servers send as deflate."""


class ExchangeError(Exception):
    """There is no answer; says why, in words of ours alone."""


@dataclass(frozen=True)
class Answer:
    """What a server said.

    Attributes:
        status: of HTTP.
        headers: names are found in any case.
        body: unpacked; of an answer whose status is not 200 only the beginning.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def exchange(
    method: str,
    url: str,
    key: str,
    seconds: float,
    max_bytes: int | None = None,
    payload: Any = None,
) -> Answer:
    """Send a request and read its answer.

    Args:
        method: of HTTP.
        url: the address.
        key: sent as a bearer token, to this address alone.
        seconds: the answer must be complete by then.
        max_bytes: size of the body at most; by default only its beginning is wanted.
        payload: what is sent as JSON.

    Raises:
        ExchangeError: if there is no answer within these bounds.
    """
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)  # it writes down whole addresses
    with _Deadline(seconds) as deadline, _Session(deadline) as session:
        try:
            with session.request(
                method,
                url,
                json=payload,
                auth=_Bearer(key),
                headers={"Accept-Encoding": "gzip, deflate"},
                timeout=seconds,
                stream=True,
                allow_redirects=False,
            ) as response:
                body = _body(response, max_bytes)
                answer = Answer(response.status_code, response.headers, body)
                reason = ""
        except ExchangeError as error:
            reason = str(error)
        except FAILURES as error:
            reason = _kind(error)
    if deadline.is_over:  # also where the connection's end looked like the body's
        reason = "no answer in time"
    if reason:
        raise ExchangeError(reason)  # here, where no error of a library hangs on to it
    return answer


class _Bearer(AuthBase):
    # Given as auth, not as a header: requests would replace that by an entry of ~/.netrc.
    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.key}"
        return request


class _Deadline:
    """Hangs up all connections that were opened under it when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._hang_up)
        self._timer.daemon = True

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            for own in self._sockets:
                own.close()
            self._sockets.clear()

    def watch(self, connected: socket.socket) -> None:
        """Take note of a connection; its socket may be closed or wrapped later."""
        with self._lock:
            self._sockets.append(connected.dup())
        if self.is_over:
            self._hang_up()

    def watching(self, connection: type[Any]) -> type[Any]:
        """A class of connections that this deadline knows, before they speak TLS or to a proxy."""

        class Watched(connection):
            def _new_conn(watched) -> socket.socket:
                connected: socket.socket = super()._new_conn()
                self.watch(connected)
                return connected

        return Watched

    def _hang_up(self) -> None:
        with self._lock:
            self.is_over = True
            for own in self._sockets:
                with suppress(OSError):
                    own.shutdown(socket.SHUT_RDWR)


class _Adapter(HTTPAdapter):
    def __init__(self, deadline: _Deadline) -> None:
        self.deadline = deadline
        super().__init__()

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """The pool that requests would take, its connections under the deadline."""
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = self.deadline.watching(pool.ConnectionCls)
        return pool


class _Session(requests.Session):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(deadline))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Nowhere: requests would read the whole body of a redirection before it looks."""


def _body(response: requests.Response, max_bytes: int | None) -> bytes:
    """The whole body of what was asked for; of anything else as much as came."""
    if response.status_code != 200 or max_bytes is None:
        received = b""
        with suppress(*FAILURES):
            received = response.raw.read(CHUNK, decode_content=False)
        with suppress(ExchangeError):
            return _unpacked(received, response, CHUNK)
        return b""
    content = bytearray()
    while chunk := response.raw.read(CHUNK, decode_content=False):
        content += chunk
        if len(content) > max_bytes:
            raise _too_large(max_bytes)
    return _unpacked(bytes(content), response, max_bytes)


def _unpacked(content: bytes, response: requests.Response, max_bytes: int) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return content
    if encoding not in ENCODINGS:
        raise ExchangeError("an answer packed in a way that was not asked for")
    for window in (ENCODINGS[encoding], RAW_DEFLATE):
        unpacking = zlib.decompressobj(window)
        with suppress(zlib.error):
            body = unpacking.decompress(content, max_bytes + 1)
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
            if unpacking.eof:
                return body
    raise ExchangeError("a damaged answer")


def _too_large(max_bytes: int) -> ExchangeError:
    return ExchangeError(f"an answer of more than {max_bytes} bytes (request.max_bytes)")


def _kind(error: Exception) -> str:
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return "no answer in time"
    if isinstance(error, (requests.ConnectionError, urllib3.exceptions.ProtocolError)):
        return "connection failed"
    return type(error).__name__
