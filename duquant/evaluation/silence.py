"""lm-eval and transformers print bars and notes of their own; ours are enough."""

import contextlib
import io
import logging
from collections.abc import Iterator

TALKATIVE = ("lm_eval", "transformers", "datasets", "accelerate")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Swallow what libraries print and log below an error; exceptions pass."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    sink = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
