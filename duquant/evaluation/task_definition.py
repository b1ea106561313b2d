"""What a task asks and how it scores, as one digest: a stored number belongs to it alone.

The digest covers the resolved configuration (prompts, choices, metrics, filters, generation, the
task's own number of examples), the source of every function that the configuration names, and the
items after the task has prepared them; with examples in the prompt, also those they are drawn from.
It does not cover where the items come from, so the same files in another folder are the same task.
Left out are modules that a task's functions import, and code of this package, whose tasks change
their version with it.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ORIGIN = {"custom_dataset", "dataset_path", "dataset_name", "dataset_kwargs", "metadata"}
"""Keys of a configuration that say where items come from, or describe them."""
NAMES = {"task", "task_alias", "tag"}
"""Keys that say what it is called."""
DIGITS = 16


def definition_digest(task: Any, num_fewshot: int | None) -> str:
    """The digest of a task.

    Args:
        task: lm-eval's task, before any option of it is changed.
        num_fewshot: examples in a prompt (default: what the task says).

    Returns:
        16 hexadecimal digits.
    """
    configuration = asdict(task.config)
    shots = configuration["num_fewshot"] if num_fewshot is None else num_fewshot
    decisive = {k: v for k, v in configuration.items() if k not in ORIGIN | NAMES}
    digest = hashlib.sha256(_text([type(task), decisive]))
    for docs in (task.eval_docs, task.fewshot_docs() if shots else ()):
        digest.update(_text(_plain_items(docs)))
    return digest.hexdigest()[:DIGITS]


def _plain_items(docs: Iterable[Any]) -> list[Any]:
    return docs.to_list() if hasattr(docs, "to_list") else list(docs)


def _text(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain).encode()


def _plain(value: object) -> object:
    """What JSON has no form for: functions and classes, and rare types of items."""
    return _source(value) if callable(value) else str(value)


def _source(function: Callable[..., Any]) -> list[str]:
    """Name and whole module of a function, so that what it calls there is covered too."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = inspect.getmodule(function)
    file = None if module is None else getattr(module, "__file__", None)
    if module is None or file is None or module.__name__.startswith("duquant."):
        return [name]
    return [name, Path(file).read_text(encoding="utf-8", errors="replace")]
