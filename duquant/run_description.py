"""What a run is about, as nested plain values, and how two of them differ.

A checkpoint and a run directory carry the description of the run they belong to. Continuing with
another model, recipe or text would give a model that is neither, so it is refused by name.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypedDict

from duquant.config import Recipe

CONTENT = "content"
"""Name of a digest of the whole model in descriptions; those of earlier releases lack it."""


class RunData(TypedDict):
    """Of the calibration data, what is read again."""

    seed: int


class RunDescription(TypedDict):
    """What ``run.json`` holds."""

    model: dict[str, Any]
    recipe: dict[str, Any]
    data: RunData


def compare_runs(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Differences between two nested descriptions, as ``key was stored, now wanted``.

    Keys of ``wanted`` decide what is compared. A recipe of an earlier release is completed by the
    options that it did not have yet. Earlier releases recognized a model by samples of its weights
    alone: where its whole content was not recorded, it is not compared.
    """
    if not prefix and isinstance(stored.get("recipe"), dict):
        with suppress(ValueError):
            stored = {**stored, "recipe": Recipe.from_dict(stored["recipe"]).to_dict()}
    differences = []
    for key, value in wanted.items():
        if key == CONTENT and key not in stored:
            continue
        name = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(stored.get(key), dict):
            differences += compare_runs(stored[key], value, f"{name}.")
        elif stored.get(key) != value:
            differences.append(f"{name} was {stored.get(key)}, now {value}")
    return differences
