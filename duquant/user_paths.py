"""Paths as users write them: ``~`` is somebody's home directory, wherever a path is expected.

A shell replaces it only where a word begins with it, so ``--output_dir=~/x``, ``{mine: ~/a.txt}``
and a line of YAML arrive as they are. Variables like ``$HOME`` are left to the shell.
"""

import os
from pathlib import Path
from typing import Any


def user_path(text: str | Path) -> Path:
    """A path, home directories put in.

    Raises:
        ValueError: if it begins with ``~`` and nobody has that home.
    """
    return Path(_expand(str(text)))


def expand_all(values: Any) -> Any:
    """Parsed options with home directories in everything that begins with ``~``.

    Nothing but a path begins so: no number, no name of a model on the hub, of a corpus or a task.

    Args:
        values: texts and paths, alone or in mappings (of any kind) and lists; others are left.

    Raises:
        ValueError: as :func:`user_path`.
    """
    if isinstance(values, str):
        return _expand(values)
    if isinstance(values, Path):
        return user_path(values)
    if isinstance(values, list):
        return [expand_all(value) for value in values]
    if hasattr(values, "items") and hasattr(values, "__setitem__"):
        for key, value in list(values.items()):
            values[key] = expand_all(value)
    return values


def _expand(text: str) -> str:
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(f"{text}: there is no such home directory; write ./{text} for a file here")
    return expanded
