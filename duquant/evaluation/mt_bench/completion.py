"""The reply in a chat completion, whatever it is made of.

A reply was paid for, so it is read as leniently as can be: signs that are no text, control
characters and numbers of any length are kept as they came.
"""

import json

from duquant.evaluation.mt_bench.surrogates import joined


def completion_text(body: bytes) -> str:
    """What the first choice says; empty if it says nothing, JSON if it says no text.

    Args:
        body: of an answer with status 200.

    Raises:
        ValueError: if it is no chat completion.
    """
    try:
        text = body.removeprefix(b"\xef\xbb\xbf").decode(_encoding(body), "surrogateescape")
        said = json.loads(text, strict=False, parse_int=str, parse_float=str, parse_constant=str)
        content = said["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            content = "" if content is None else json.dumps(content)
    except (ValueError, LookupError, TypeError, RecursionError):
        content = None
    if content is None:
        raise ValueError("an answer that is no chat completion")
    return joined(content)


def _encoding(body: bytes) -> str:
    """JSON is UTF-8, or whatever its zero bytes tell."""
    return json.detect_encoding(body).removesuffix("-sig")
