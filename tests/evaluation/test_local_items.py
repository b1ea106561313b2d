"""Local files: damage is named by file and line, and the real files have the published counts."""

from pathlib import Path

import pytest

from duquant.evaluation.local_items import file_digest, read_items, read_task
from tests.assets import ASSETS
from tests.task_files import write_task_files

TASKS = ASSETS / "assets" / "tasks"
PUBLISHED_ITEMS = {
    "arc_easy": 2376,
    "arc_challenge": 1172,
    "winogrande": 1267,
    "boolq": 3270,
    "piqa": 1838,
    "lambada_openai": 5153,
}


def test_items_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = write_task_files(tmp_path, count=2) / "piqa.jsonl"
    file.write_text(file.read_text().replace("Cool", "Chill", 1))
    assert [item["goal"] for item in read_items("piqa", file)] == ["Chill a drink", "Cool a drink"]
    assert list(read_task("piqa", str(tmp_path), version=1.0)["test"]["gold"]) == [0, 0]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ('{"query": "Question: cut', r"line 3 is not JSON: '\{\"query"),
        ("\xff\xfe", r"line 3 is not JSON"),
        ('{"goal": "x"}', r"line 3: it has goal; piqa needs"),
    ],
)
def test_damage_is_named_by_file_and_line(tmp_path: Path, damage: str, words: str) -> None:
    file = write_task_files(tmp_path, count=2) / "piqa.jsonl"
    with file.open("ab") as opened:
        opened.write(damage.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"piqa\.jsonl, {words}"):
        read_items("piqa", file)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*piqa\.jsonl"):
        read_items("piqa", tmp_path / "piqa.jsonl")
    (tmp_path / "piqa.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="has no items"):
        read_items("piqa", tmp_path / "piqa.jsonl")


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("a")
    second.write_text("b")
    assert file_digest(first, second) != file_digest(second, first)


@pytest.mark.skipif(not TASKS.is_dir(), reason=f"{TASKS} is not there: set DUQUANT_ASSETS")
@pytest.mark.parametrize("task", PUBLISHED_ITEMS)
def test_real_files_have_as_many_items_as_published(task: str) -> None:
    assert len(read_items(task, TASKS / f"{task}.jsonl")) == PUBLISHED_ITEMS[task]
