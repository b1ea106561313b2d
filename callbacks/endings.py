"""How a command ends when it does not succeed: one line, and a status that says why.

| status | |
|---|---|
| 2 | a mistake of the user, or a disk or peer that fails: ``error: …`` |
| 130 | Control-C: ``interrupted; …`` says how to continue |
| 143 | SIGTERM, the same |
| 1 | a traceback: a mistake of ours |
"""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.early_interrupt import INTERRUPTED
from callbacks.joint_failure import is_lost_connection, speak_once
from duquant.evaluation.mt_bench.credentials import without_keys
from duquant.extras import MissingExtraError
from duquant.interruption import ToldInterrupt, how_to_continue
from duquant.terminal import note

MISSING = re.compile(r"class_path '([\w.]+)':.*?Try running `(pip install [^`]+)`", re.DOTALL)
"""What Lightning says of a class, a logger for one, whose package is not installed."""


@contextmanager
def one_line_endings() -> Iterator[None]:
    """Turn what ends a command into a line and a status."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not isinstance(interrupt, ToldInterrupt):
            note("interrupted; the same command continues")
        raise SystemExit(INTERRUPTED) from None
    except SIGTERMException:  # a SystemExit, its status would be 0, as if the work were done
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as left:
        if isinstance(left.__context__, KeyboardInterrupt):  # which Lightning has made into 1
            raise SystemExit(INTERRUPTED) from None
        raise
    except (ValueError, OSError, MisconfigurationException, MissingExtraError) as error:
        fail(str(error))
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        fail(f"lost the connection to another process of this job; {how_to_continue()}")


def fail(message: str) -> NoReturn:
    """Say what is wrong in one line, unless another process did, and leave with status 2."""
    if missing := MISSING.search(message):
        message = f"{missing[1]} needs what is not installed: {missing[2]}"
    speak_once(" ".join(without_keys(message).split()))
    raise SystemExit(2)
