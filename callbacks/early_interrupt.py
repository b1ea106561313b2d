"""Control-C while modules are imported: a line, not a traceback through somebody's module.

An exception would end as a long traceback, or nowhere: imports run in callbacks of C and in clauses
that catch everything. So the process is left in the handler itself; nothing has begun by then. This
module imports nothing that takes time.
"""

import os
import signal
import sys

INTERRUPTED = 128 + signal.SIGINT
"""Status of a command that Control-C has ended, as shells have it."""


def guard_imports() -> None:
    """Leave at Control-C from now on, unless it is ignored, as under ``nohup``."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def end_guard() -> None:
    """From now on Control-C is the exception it usually is."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    os.write(sys.stderr.fileno(), b"interrupted; nothing was begun\n")
    os._exit(INTERRUPTED)
