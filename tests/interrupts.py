"""Control-C for the processes that tests start, also where pytest itself ignores it.

A process that is started with SIGINT ignored (``nohup``, a background job) passes that on to every
child. A handler of Python is not passed on: a child begins with the default again.
"""

import signal


def let_children_be_interrupted() -> None:
    """Ignore SIGINT by a handler that does nothing, where it is ignored by the system."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)
