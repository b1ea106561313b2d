"""An OpenAI-compatible chat endpoint, asked until it answers.

One request is ``POST {url}/chat/completions``. What may pass is tried again after 1, 2, 4 …
seconds, at most a minute, or as long as the server asks for in ``Retry-After``: too many requests
(429), failures of the server (5xx), timeouts, broken connections and answers that are not of the
protocol. What will not pass (a wrong key, an unknown model) ends the run at once.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests
from requests.auth import AuthBase

KEY_VARIABLE = "OPENAI_API_KEY"
LONGEST_DELAY = 60.0
"""Seconds."""
PASSING_STATUSES = frozenset({408, 409, 425, 429})
Payload = dict[str, Any]


class _Transient(Exception):
    """A failure that may pass; ``after`` is how long the server asks to wait, in seconds."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class _Bearer(AuthBase):
    # Given as auth, not as a header: requests would replace that by an entry of ~/.netrc.
    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.key}"
        return request


def key_from_environment() -> str:
    """The endpoint's key, which is taken from nowhere else and written nowhere.

    Raises:
        ValueError: if it is not set.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise ValueError(
            f"the environment variable {KEY_VARIABLE} is not set; it holds the endpoint's key "
            f"(any text for an endpoint that asks for none)"
        )
    return key


@dataclass(frozen=True)
class RequestPolicy:
    """How a judge is asked.

    Args:
        temperature: sampling temperature; null leaves it to the endpoint.
        max_tokens: tokens a judgment may have; null leaves it to the endpoint.
        timeout: seconds to wait for a reply.
        retries: repetitions after 429, 5xx, timeouts and broken connections.
        first_delay: seconds before the first repetition, doubled every time.

    Raises:
        ValueError: for numbers that make no sense.
    """

    temperature: float | None = 0.0
    max_tokens: int | None = 2048
    timeout: float = 120.0
    retries: int = 6
    first_delay: float = 1.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"request.temperature is {self.temperature}; it must be at least 0")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"request.max_tokens is {self.max_tokens}; it must be at least 1")
        if self.timeout <= 0:
            raise ValueError(f"request.timeout is {self.timeout}; it must be more than 0 seconds")
        if self.retries < 0:
            raise ValueError(f"request.retries is {self.retries}; it must be at least 0")
        if self.first_delay < 0:
            raise ValueError(f"request.first_delay is {self.first_delay}; it must be at least 0")


@dataclass(frozen=True)
class ChatEndpoint:
    """A judge behind HTTP.

    Attributes:
        url: base address, "https://api.openai.com/v1".
        model: name of the model to ask for.
        key: the key.
        policy: how it is asked.
        sleep: what waits for some seconds.

    Raises:
        ValueError: for an address that is none.
    """

    url: str
    model: str
    key: str = field(repr=False)
    policy: RequestPolicy = RequestPolicy()
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        """Check what can be checked offline."""
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(
                f"endpoint is {self.url!r}; an address looks like https://api.openai.com/v1"
            )

    @property
    def base(self) -> str:
        """The address without what is appended to it."""
        return self.url.rstrip("/").removesuffix("/chat/completions")

    def check(self) -> None:
        """Ask for the list of models: anything but silence and a refused key will do.

        Raises:
            ValueError: if nothing is reached there, or the key is refused.
        """
        try:
            response = requests.get(
                f"{self.base}/models",
                auth=_Bearer(self.key),
                timeout=min(self.policy.timeout, 30.0),
            )
        except requests.RequestException as error:
            raise ValueError(
                f"the endpoint {self.base} cannot be reached ({_kind(error)}): check the address "
                f"and that its server runs"
            ) from error
        if response.status_code in (401, 403):
            raise ValueError(self._refused(response))

    def payload(self, system: str, user: str) -> Payload:
        """The request that asks for one reply."""
        request: Payload = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": user},
            ],
            "n": 1,
        }
        if self.policy.temperature is not None:
            request["temperature"] = self.policy.temperature
        if self.policy.max_tokens is not None:
            request["max_tokens"] = self.policy.max_tokens
        return request

    def ask(self, payload: Payload) -> str:
        """Send a request until it is answered.

        Returns:
            The text of the reply, empty if the endpoint gives none.

        Raises:
            ValueError: if the endpoint refuses, or all repetitions failed.
        """
        for attempt in range(self.policy.retries + 1):
            try:
                return self._post(payload)
            except _Transient as error:
                failure = error
            if attempt < self.policy.retries:
                delay = (
                    self.policy.first_delay * 2**attempt if failure.after is None else failure.after
                )
                self.sleep(min(delay, LONGEST_DELAY))
        times = self.policy.retries + 1
        raise ValueError(f"the endpoint {self.base} failed {times} times, at last with {failure}")

    def _post(self, payload: Payload) -> str:
        try:
            response = requests.post(
                f"{self.base}/chat/completions",
                json=payload,
                auth=_Bearer(self.key),
                timeout=self.policy.timeout,
            )
        except requests.RequestException as error:
            raise _Transient(_kind(error)) from error
        status = response.status_code
        if status in PASSING_STATUSES or status >= 500:
            raise _Transient(f"HTTP {status}", _retry_after(response))
        if status != 200:
            raise ValueError(self._refused(response))
        return _content(response)

    def _refused(self, response: requests.Response) -> str:
        remedies = {
            401: f"check {KEY_VARIABLE}",
            403: f"check {KEY_VARIABLE}",
            404: "check --endpoint and --judge_model",
        }
        remedy = remedies.get(response.status_code, "check --judge_model and its options")
        said = " ".join(response.text.replace(self.key, "…").split())[:200]
        return f"the endpoint {self.base} says HTTP {response.status_code} ({said}): {remedy}"


def _content(response: requests.Response) -> str:
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise _Transient("an answer that is no chat completion") from error
    return content if isinstance(content, str) else ""


def _retry_after(response: requests.Response) -> float | None:
    """Seconds the server asks to wait; dates, which the header also allows, are left out."""
    try:
        seconds = float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return seconds if seconds >= 0 else None


def _kind(error: Exception) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "connection failed"
    return type(error).__name__
