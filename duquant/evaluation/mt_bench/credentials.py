"""Keys, and everything that is done to show nothing of them.

A key comes from the environment, is checked before it is used, and goes into one header. Messages
quote addresses and what a server says; both may repeat a key, so they are covered first.
"""

import os
import re
from urllib.parse import unquote

KEY_VARIABLE = "OPENAI_API_KEY"
PART = 6
"""Characters of a key that must not be seen; what is shorter than that is no secret."""
COVER = "…"
KEY_OPTION = re.compile(
    r"(--(?:[^\s=]*[._-])?(?:(?:api)?key|token|secret|password)[= ]\s*)\S+", re.IGNORECASE
)
"""An option whose last word says that it is a secret, and its value."""


def checked_key(text: str) -> str:
    """A key without the space around it, where files often end with a line break.

    Raises:
        ValueError: if there is none, or it is nothing that a header can hold.
    """
    key = text.strip()
    if not key:
        raise ValueError(
            f"the environment variable {KEY_VARIABLE} is not set; it holds the endpoint's key "
            f"(any text for an endpoint that asks for none)"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"the environment variable {KEY_VARIABLE} holds more than a key: keys have no space, "
            f"no line break and nothing but ASCII in them; set it to the key alone"
        )
    return key


def key_from_environment(otherwise: str = "") -> str:
    """The endpoint's key, which is taken from nowhere else and written nowhere.

    Args:
        otherwise: what is sent where no key is set; by default one is needed.

    Raises:
        ValueError: if it is not set, or cannot be a key.
    """
    return checked_key(os.environ.get(KEY_VARIABLE, "").strip() or otherwise)


class Cover:
    """Covers every part of some secrets in what others say.

    Args:
        secrets: what must not be seen.
    """

    def __init__(self, *secrets: str) -> None:
        self._whole = [secret for secret in secrets if len(secret) >= PART]
        self._parts = {s[i : i + PART] for s in self._whole for i in range(len(s) - PART + 1)}

    def parts(self, text: str) -> str:
        """The text with ``…`` for whatever it shares with a secret.

        >>> Cover("sk-12345678").parts("no such key: sk-12345***, 45678")
        'no such key: …***, 45678'
        """
        shown, end = [], 0
        for place, sign in enumerate(text):
            if text[place : place + PART] in self._parts:
                if place >= end:
                    shown.append(COVER)
                end = place + PART
            elif place >= end:
                shown.append(sign)
        return "".join(shown)

    def whole(self, text: str) -> str:
        """The text with ``…`` for a secret that stands in it from end to end."""
        for secret in self._whole:
            text = text.replace(secret, COVER)
        return text


def shown_address(url: str) -> str:
    """An address without user, password and query, whatever it looks like.

    >>> shown_address("https://me:secret@host/v1?api_key=1"), shown_address("https://a?b@c")
    ('https://host/v1', 'https://…')
    """
    scheme, separator, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    before, at, _ = rest.rpartition("@")
    if at and re.search("[/?#]", before):
        return scheme + separator + COVER  # nobody can tell where a password ends
    return scheme + separator + re.split("[?#]", rest.rpartition("@")[2])[0]


def secrets_of(url: str) -> set[str]:
    """User, password and the values of a query, as they stand in an address and as they mean."""
    rest = url.partition("://")[2]
    login, query = rest.rpartition("@")[0], rest.partition("?")[2]
    values = (pair.partition("=")[2] or pair for pair in re.split("[&;#]", query))
    found = {*login.split(":", 1), *values}
    return found | {unquote(secret) for secret in found}


def without_keys(message: str) -> str:
    """A message without the key of the environment, and without what was given as an option."""
    secrets = sorted(os.environ.get(KEY_VARIABLE, "").split(), key=len, reverse=True)
    return Cover(*secrets).whole(KEY_OPTION.sub(rf"\1{COVER}", message))
