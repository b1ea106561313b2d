"""Where to compute: a device by its name, checked before any work begins."""

import torch

from duquant.plain_text import in_one_line

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that have no float64, in which a calibration adds up and compares."""


def find_device(device: str) -> torch.device:
    """A device by name; "auto" is the GPU if there is one.

    Raises:
        ValueError: if there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, dtype=torch.float32, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {device}: {in_one_line(error)}") from error


def calibration_device(device: torch.device | str) -> torch.device:
    """A device that can calibrate, with its number: "cuda" alone is the current one.

    Raises:
        ValueError: if there is no such device, or it has no float64 or no memory.
    """
    found = find_device(str(device))
    if found.type in (*WITHOUT_FLOAT64, "meta"):
        lacks = "memory" if found.type == "meta" else "float64, which calibration needs"
        raise ValueError(f"device is {found}, which has no {lacks}; use cpu")
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found
