"""MMLU in its original layout: ``dev/`` and ``test/``, one CSV per subject, no header.

A row is a question, four answers and the letter of the right one. The five rows of ``dev`` are the
examples of the few-shot prompt, the rows of ``test`` are asked.
"""

import csv
from pathlib import Path
from typing import Any, Literal

Fields = dict[str, Any]
Split = Literal["dev", "test"]
SPLITS: tuple[Split, Split] = ("dev", "test")
LETTERS = "ABCD"
COLUMNS = 2 + len(LETTERS)


def subject_file(subject: str, split: Split, directory: Path) -> Path:
    """Where the rows of a subject lie."""
    return directory / split / f"{subject}_{split}.csv"


def read_rows(path: Path) -> list[Fields]:
    """Questions of one file: ``question``, ``choices`` and the index ``answer``.

    Raises:
        ValueError: if it is missing, empty, or a row is damaged, naming file and line.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path}; --mmlu_data_dir needs MMLU's dev/ and test/")
    items = []
    with path.open(newline="", encoding="utf-8") as opened:
        rows = csv.reader(opened, strict=True)
        try:
            for row in rows:
                items.append(_read_row(row))
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
    if not items:
        raise ValueError(f"{path} has no rows")
    return items


def _read_row(row: list[str]) -> Fields:
    if len(row) != COLUMNS:
        raise ValueError(
            f"{len(row)} columns; a row has a question, four answers and a letter, no header"
        )
    question, *choices, letter = row
    if letter not in tuple(LETTERS):
        raise ValueError(f"the right answer is {letter!r}; it must be one of {', '.join(LETTERS)}")
    return {"question": question, "choices": choices, "answer": LETTERS.index(letter)}


def read_subject(subject: str, data_dir: str, **metadata: Any) -> dict[str, Any]:
    """The data set of one subject, for lm-eval's ``custom_dataset``.

    Args:
        subject: name of the subject.
        data_dir: folder of ``dev`` and ``test``.
        metadata: what else lm-eval passes on; unused.

    Returns:
        The splits ``dev`` and ``test``.
    """
    from datasets import Dataset

    return {
        split: Dataset.from_list(read_rows(subject_file(subject, split, Path(data_dir))))
        for split in SPLITS
    }
