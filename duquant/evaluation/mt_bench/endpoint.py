"""An OpenAI-compatible chat endpoint, asked until it answers.

One request is ``POST {url}/chat/completions``. What may pass is tried again after 1, 2, 4 …
seconds, at most a minute, or as long as the server asks for in ``Retry-After``: too many requests
(429), failures of the server (5xx), timeouts, broken connections and answers that are not of the
protocol. What will not pass (a wrong key, an unknown model) ends the run at once.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from duquant.evaluation.mt_bench.completion import completion_text
from duquant.evaluation.mt_bench.credentials import (
    KEY_VARIABLE,
    Cover,
    checked_key,
    secrets_of,
    shown_address,
)
from duquant.evaluation.mt_bench.exchange import Answer, ExchangeError, exchange
from duquant.evaluation.mt_bench.request_policy import RequestPolicy
from duquant.evaluation.mt_bench.surrogates import joined
from duquant.plain_text import plain

LONGEST_DELAY = 60.0
"""Seconds."""
PASSING_STATUSES = frozenset({408, 409, 425, 429})
Payload = dict[str, Any]


class UnreadableReply(ValueError):
    """Everything went well, but what came is no chat completion.

    Attributes:
        received: what came.
        is_stored: whether it came in an earlier run, and nobody was asked now.
    """

    def __init__(self, message: str, received: str, is_stored: bool = False) -> None:
        super().__init__(message)
        self.received = received
        self.is_stored = is_stored


class _Transient(Exception):
    """A failure that may pass.

    Attributes:
        after: seconds that the server asks to wait.
        received: what came, if it was paid for.
    """

    def __init__(
        self, reason: str, after: float | None = None, received: str | None = None
    ) -> None:
        super().__init__(reason)
        self.after = after
        self.received = received


@dataclass(frozen=True)
class ChatEndpoint:
    """A model behind HTTP.

    Attributes:
        url: base address, "https://api.openai.com/v1".
        model: name of the model to ask for.
        key: the key.
        policy: how it is asked.
        sleep: what waits for some seconds.
        options: what to check where a request is refused.

    Raises:
        ValueError: for an address that is none.
    """

    url: str = field(repr=False)
    model: str
    key: str = field(repr=False)
    policy: RequestPolicy = RequestPolicy()
    sleep: Callable[[float], None] = time.sleep
    options: str = "--judge_model and --request"

    def __post_init__(self) -> None:
        """Check what can be checked offline."""
        object.__setattr__(self, "key", checked_key(self.key))
        if not _is_address(self.url):
            raise ValueError(
                f"endpoint is {self.shown!r}; an address looks like https://api.openai.com/v1"
            )

    @property
    def shown(self) -> str:
        """The address in messages: nothing that may be a secret, nothing that is appended."""
        return self._cover.parts(_base(shown_address(self.url)))

    @property
    def _cover(self) -> Cover:
        return Cover(self.key, json.dumps(self.key)[1:-1], *secrets_of(self.url))

    def _address(self, path: str) -> str:
        """Where to ask; a user and a password are left out, since the key is what counts."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return parts._replace(netloc=host, path=_base(parts.path) + path, fragment="").geturl()

    def check(self) -> None:
        """Ask for the list of models: anything but silence and a refused key will do.

        Raises:
            ValueError: if nothing is reached there, or the key is refused.
        """
        self.get("/models")

    def get(self, path: str, max_bytes: int | None = None) -> Answer:
        """What stands at a path, of which only the beginning is read where no limit is given.

        Raises:
            ValueError: if nothing is reached there, or the key is refused.
        """
        try:
            seconds = min(self.policy.timeout, 30.0)
            answer = exchange("GET", self._address(path), self.key, seconds, max_bytes)
        except ExchangeError as error:
            raise ValueError(
                f"the endpoint {self.shown} cannot be reached ({error}): check the address "
                f"and that its server runs"
            ) from None
        if answer.status in (401, 403):
            raise ValueError(self._refused(answer))
        return answer

    def payload(self, messages: list[dict[str, str]], **sampling: Any) -> Payload:
        """The request that asks for one reply; ``sampling`` goes before the policy's."""
        request: Payload = {"model": self.model, "messages": messages, "n": 1}
        if self.policy.temperature is not None:
            request["temperature"] = self.policy.temperature
        if self.policy.max_tokens is not None:
            request["max_tokens"] = self.policy.max_tokens
        return {**request, **sampling}

    def ask(
        self,
        payload: Payload,
        keep: Callable[[str], None] = lambda _: None,
        path: str = "/chat/completions",
        read: Callable[[bytes], str] | None = None,
    ) -> str:
        """Send a request until it is answered.

        Args:
            payload: the request.
            keep: is given every answer that was paid for, before anybody tries to read it.
            path: where it is sent.
            read: makes the reply of a body, or raises ``ValueError`` (default: of a chat).

        Returns:
            The reply; of a chat its text, empty if the endpoint gives none.

        Raises:
            UnreadableReply: if all repetitions failed, the last one by what came.
            ValueError: if the endpoint refuses, or all repetitions failed.
        """
        for attempt in range(self.policy.retries + 1):
            try:
                return self._post(payload, keep, path, read or completion_text)
            except _Transient as error:
                failure = error
            if attempt < self.policy.retries:
                delay = (
                    self.policy.first_delay * 2**attempt if failure.after is None else failure.after
                )
                self.sleep(min(delay, LONGEST_DELAY))
        times = self.policy.retries + 1
        message = f"the endpoint {self.shown} failed {times} times, at last with {failure}"
        if failure.received is not None:
            raise UnreadableReply(message, failure.received)
        raise ValueError(message)

    def _post(
        self,
        payload: Payload,
        keep: Callable[[str], None],
        path: str,
        read: Callable[[bytes], str],
    ) -> str:
        try:
            answer = exchange(
                "POST",
                self._address(path),
                self.key,
                self.policy.timeout,
                self.policy.max_bytes,
                payload,
            )
        except ExchangeError as error:
            raise _Transient(str(error)) from None
        if answer.status in PASSING_STATUSES or answer.status >= 500:
            raise _Transient(f"HTTP {answer.status}", _retry_after(answer.headers))
        if answer.status != 200:
            raise ValueError(self._refused(answer))
        received = self._cover.whole(joined(answer.body.decode("utf-8", "surrogateescape")))
        keep(received)
        try:
            return self._cover.whole(read(answer.body))
        except ValueError as error:
            raise _Transient(str(error), received=received) from None

    def _refused(self, answer: Answer) -> str:
        remedies = {
            401: f"check {KEY_VARIABLE}",
            403: f"check {KEY_VARIABLE}",
            404: f"check --endpoint, {self.options}",
        }
        if 300 <= answer.status < 400:
            said = f"it redirects to {answer.headers.get('Location', 'nowhere')}"
            remedy = "give the address itself as --endpoint, a key is not sent elsewhere"
        else:
            said = answer.body.decode("utf-8", "replace")
            remedy = remedies.get(answer.status, f"check {self.options}")
        said = plain(" ".join(self._cover.parts(said).split()))[:200]
        return f"the endpoint {self.shown} says HTTP {answer.status} ({said}): {remedy}"


def _is_address(url: str) -> bool:
    """Whether there is a host to ask."""
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return is_one and url.isprintable() and " " not in url


def _base(address: str) -> str:
    """The address without what is appended to it."""
    return address.rstrip("/").removesuffix("/completions").removesuffix("/chat")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait; dates, which the header also allows, are left out."""
    try:
        seconds = float(headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return seconds if seconds >= 0 else None
