"""Halves of surrogate pairs: JSON can write one alone, which is no text and has no UTF-8.

What was received keeps them. What is sent on does not: tokenizers have U+FFFD in their place, and
strict readers of JSON refuse them.
"""


def joined(text: str) -> str:
    r"""The text with halves that belong together put together, as JSON has them when it is read.

    >>> joined("\ud83d" + "\ude00") == "😀", joined("\ud83d") == "\ud83d"
    (True, True)
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def readable(text: str) -> str:
    r"""The text with U+FFFD for each half that is alone.

    >>> readable("half: \ud83d"), readable("\ud83d" + "\ude00")
    ('half: �', '😀')
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def require_whole(text: str, where: str) -> None:
    """Check that a text holds no half that is alone.

    Raises:
        ValueError: if it does; ``where`` says what it is.
    """
    if readable(text) != joined(text):
        raise ValueError(
            f"{where} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text"
        )
