"""Which processor this is, as far as the speed of a kernel depends on it."""

import functools
import hashlib
import platform
from pathlib import Path

import torch


@functools.cache
def processor() -> dict[str, str]:
    """Plain values that say so: its name, a digest of what it can do, what PyTorch uses of that."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    parts = [line.partition(":") for line in reversed(lines)]
    first = {name.strip(): value.strip() for name, _, value in parts}
    flags = " ".join(sorted(first.get("flags", "").split()))
    return {
        "processor": first.get("model name", platform.processor()),
        "flags": hashlib.sha256(flags.encode()).hexdigest()[:16],
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
