"""Handing freed memory back to the operating system.

Laying out a weight for its engine makes temporary copies of about the weight's own size. glibc
keeps what they leave, and the next weight, a little larger once padded, does not fit into the gaps:
a model prepared weight by weight would take twice its size. Pages inside such gaps are handed back
on request. Other C libraries have no such call, and this one does nothing there.
"""

import ctypes
import sys


def return_freed_memory() -> None:
    """Give every page that holds nothing back to the system."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
