"""How an endpoint is asked: patience, bounds for what comes back, and a judge's sampling."""

import math
from dataclasses import dataclass

LONGEST_TIMEOUT = 86_400.0
"""Seconds of a day."""


@dataclass(frozen=True)
class RequestLimits:
    """How long and how often an endpoint is asked.

    Args:
        timeout: seconds after which a reply must be complete.
        retries: repetitions after 429, 5xx, timeouts, broken connections and what is no reply.
        first_delay: seconds before the first repetition, doubled every time.
        max_bytes: bytes a reply may have, packed or not.

    Raises:
        ValueError: for numbers that make no sense.
    """

    timeout: float = 120.0
    retries: int = 6
    first_delay: float = 1.0
    max_bytes: int = 2**24

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise ValueError(
                f"request.timeout is {self.timeout}; it must be more than 0 seconds and at most "
                f"a day"
            )
        if self.retries < 0:
            raise ValueError(f"request.retries is {self.retries}; it must be at least 0")
        if not self.first_delay >= 0:
            raise ValueError(f"request.first_delay is {self.first_delay}; it must be at least 0")
        if self.max_bytes < 1:
            raise ValueError(f"request.max_bytes is {self.max_bytes}; it must be at least 1")


@dataclass(frozen=True)
class RequestPolicy(RequestLimits):
    """How a judge is asked.

    Args:
        timeout: seconds after which a reply must be complete.
        retries: repetitions after 429, 5xx, timeouts, broken connections and what is no reply.
        first_delay: seconds before the first repetition, doubled every time.
        max_bytes: bytes a reply may have, packed or not.
        temperature: sampling temperature; null leaves it to the endpoint.
        max_tokens: tokens a judgment may have; null leaves it to the endpoint.

    Raises:
        ValueError: for numbers that make no sense.
    """

    temperature: float | None = 0.0
    max_tokens: int | None = 2048

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ValueError(f"request.temperature is {self.temperature}; it must be at least 0")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"request.max_tokens is {self.max_tokens}; it must be at least 1")
