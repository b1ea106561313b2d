"""Which accelerator a Trainer gets: Lightning's choice, unless it cannot calibrate."""

from typing import Any

from lightning.pytorch.accelerators import MPSAccelerator

from duquant.terminal import note

LACKS = "MPS has no float64, which calibration needs"


def usable_accelerator(asked: Any) -> Any:
    """What to give the Trainer.

    Lightning's ``auto`` prefers MPS, the GPU of Apple silicon; the CPU stands in for it, and a line
    says so.

    Args:
        asked: ``trainer.accelerator``.

    Raises:
        ValueError: if MPS was asked for.
    """
    is_mps = isinstance(asked, MPSAccelerator) or asked == "mps"
    if is_mps or (asked == "gpu" and MPSAccelerator.is_available()):
        raise ValueError(f"trainer.accelerator is {_name(asked)}: {LACKS}; use cpu")
    if asked == "auto" and MPSAccelerator.is_available():
        note(f"computing on the CPU: {LACKS}")
        return "cpu"
    return asked


def _name(asked: Any) -> str:
    return asked if isinstance(asked, str) else "mps"
