"""``--json``: one JSON document on standard output, and what people read on standard error."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from duquant.terminal import say


@contextmanager
def one_document(is_wanted: bool) -> Iterator[dict[str, Any]]:
    """Let a command print nothing on standard output but one document, on one line.

    Args:
        is_wanted: whether ``--json`` was given; if not, nothing is different.

    Yields:
        The document, to be filled. It is printed at the end of a command that succeeds; one that is
        still empty (of a process that has no results of its own) is not.
    """
    document: dict[str, Any] = {}
    if not is_wanted:
        yield document
        return
    with redirect_stdout(sys.stderr):
        yield document
    if document:
        say(json.dumps(document, sort_keys=True, allow_nan=False))
