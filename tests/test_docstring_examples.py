"""Examples in docstrings give what stands beneath them."""

import doctest
import importlib
from pathlib import Path

import pytest

from tests.assets import REPOSITORY

FILES = sorted(
    path.relative_to(REPOSITORY)
    for folder in ("duquant", "callbacks")
    for path in (REPOSITORY / folder).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_examples_of_docstrings(file: Path) -> None:
    module = importlib.import_module(".".join(file.with_suffix("").parts))
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed
