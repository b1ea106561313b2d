"""``preflight.json``: what a run was expected to take, beside what it took in the end."""

from pathlib import Path
from typing import Any, TypedDict

from duquant.checksum import check_values
from duquant.json_files import read_json

PREFLIGHT_FILE = "preflight.json"


class ExpectedSeconds(TypedDict):
    """How long it was expected to take, see :class:`~duquant.preflight.duration.Duration`."""

    calibration: float
    validation: float


class Estimate(TypedDict):
    """What a run was expected to take."""

    memory_bytes: int
    disk_bytes: int
    seconds: ExpectedSeconds


class Kept(TypedDict):
    """What :data:`PREFLIGHT_FILE` holds."""

    estimate: Estimate
    largest_disk_bytes: int


def compare_with_estimate(
    output_dir: Path, *, memory: int, calibration: float, validation: float | None
) -> dict[str, Any]:
    """Estimates beside what was measured, for the summary; empty where nothing was estimated.

    Args:
        output_dir: the run directory.
        memory: bytes at the peak.
        calibration: seconds.
        validation: seconds, ``None`` if perplexity was not measured.
    """
    path = output_dir / PREFLIGHT_FILE
    if not path.is_file():
        return {}
    kept = read_preflight(path)
    expected, seconds = kept["estimate"], kept["estimate"]["seconds"]
    pairs = {
        "memory_bytes": (expected["memory_bytes"], memory),
        "disk_bytes": (expected["disk_bytes"], kept["largest_disk_bytes"]),
        "calibration_seconds": (seconds["calibration"], calibration),
        "validation_seconds": (seconds["validation"], validation),
    }
    return {
        name: {"estimate": expectation, "measured": measured}
        for name, (expectation, measured) in pairs.items()
        if measured is not None
    }


def read_preflight(path: Path) -> Kept:
    """Read what a run was expected to take.

    Raises:
        ValueError: if the file is damaged, naming it.
    """
    try:
        kept = read_json(path, Kept)
        check_values(kept, path)
    except ValueError as error:
        raise ValueError(f"{error}; delete it: the run goes on without its estimate") from error
    return kept
