"""How much memory this process may still take.

The operating system knows what is available on the machine; a container may be allowed less.
"""

from pathlib import Path

import psutil

CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of the container that a process is in."""


def available_bytes() -> int:
    """Bytes that can be taken without pushing anything out of memory."""
    machine = int(psutil.virtual_memory().available)
    limit, used = (_number(CONTAINER / f"memory.{name}") for name in ("max", "current"))
    if limit is None or used is None:
        return machine
    return min(machine, max(0, limit - used))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such limit, or "max"
        return None
