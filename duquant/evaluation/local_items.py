"""Task items from local JSONL files: one record per line, every fault named by file and line."""

import hashlib
from pathlib import Path
from typing import Any

from duquant.evaluation.record_layouts import Fields, read_record
from duquant.json_files import parse_json

TASKS_DIRECTORY = Path(__file__).parent / "tasks"
"""lm-eval task definitions that read local files."""
FIRST_CHARACTERS = 40


def read_items(task: str, path: Path) -> list[Fields]:
    """Items of one task, in the order of the file.

    Args:
        task: a key of :data:`duquant.evaluation.record_layouts.LAYOUTS`.
        path: a JSONL file; blank lines are skipped.

    Raises:
        ValueError: if it is missing, empty, or a line is damaged, naming file and line.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path}, which has the items of {task}")
    items = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                values = parse_json(line)
            except ValueError as error:
                start = line[:FIRST_CHARACTERS].decode("utf-8", "replace").strip()
                raise ValueError(f"{path}, line {number} is not JSON: {start!r}") from error
            try:
                items.append(read_record(task, values))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not items:
        raise ValueError(f"{path} has no items")
    return items


def items_file(task: str, data_dir: Path) -> Path:
    """Where the items of a task lie."""
    return data_dir / f"{task}.jsonl"


def read_task(task: str, data_dir: str, **metadata: Any) -> dict[str, Any]:
    """The data set of a task definition, for lm-eval's ``custom_dataset``.

    Args:
        task: name of the task.
        data_dir: folder of its file.
        metadata: what else lm-eval passes on; unused.

    Returns:
        The only split, ``test``.
    """
    from datasets import Dataset

    return {"test": Dataset.from_list(read_items(task, items_file(task, Path(data_dir))))}


def file_digest(*paths: Path) -> str:
    """What files say, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
