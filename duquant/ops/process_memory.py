"""How much memory this process took, and how much it may still take.

The operating system knows what is available on the machine; a container may be allowed less. It
also keeps the largest resident set. On Linux that is read from ``/proc``: ``getrusage`` would count
what the process that started this one had, too.
"""

import resource
import sys
from pathlib import Path

import psutil

CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of the container that a process is in."""


STATUS = Path("/proc/self/status")


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far."""
    for line in _read(STATUS).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes() -> int:
    """Bytes that can be taken without pushing anything out of memory but files' cached pages."""
    machine = int(psutil.virtual_memory().available)
    limit, used = (_read(CONTAINER / f"memory.{name}").strip() for name in ("max", "current"))
    if not (limit.isdecimal() and used.isdecimal()):  # no container, or "max"
        return machine
    return min(machine, max(0, int(limit) - int(used) + _cached_bytes()))


def _cached_bytes() -> int:
    """Pages of files that nobody uses now; they count as used and go when memory is needed."""
    for line in _read(CONTAINER / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
