"""Corpora: local files of every kind, hub corpora without the hub."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from datasets.arrow_writer import ArrowWriter

from duquant.data import corpora
from duquant.data.corpora import (
    CORPUS_NAMES,
    HUB_CORPORA,
    MIX_PARTS,
    load_texts,
    require_source,
)
from duquant.data.local_text import TEXT_COLUMNS
from duquant.data.python_topics import python_topics

DOCUMENTS = ["The first document.", "Der zweite, mit Umlauten: äöü.", "The third."]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read files without looking at what another test has read before."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_documents(path: Path, column: str = "text") -> Path:
    rows = [{"id": number, column: text} for number, text in enumerate(DOCUMENTS)]
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


# Local files


def test_the_python_reference() -> None:
    assert load_texts("python_topics", "train") == ["\n\n".join(python_topics("train"))]
    held_out = load_texts("python_topics", "validation")
    assert held_out == ["\n\n".join(python_topics("validation"))]


@pytest.mark.parametrize("text", ["one line", "two\nlines\n", "äöü – ∑\r\n\n\n"])
def test_plain_text_is_read_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    (read,) = load_texts(str(path), "train")
    assert read == text.replace("\r\n", "\n")  # universal newlines


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_rows_are_joined_by_blank_lines(tmp_path: Path, suffix: str) -> None:
    path = write_documents(tmp_path / f"text.{suffix}")
    assert load_texts(str(path), "train") == ["\n\n".join(DOCUMENTS)]
    assert load_texts(str(path), "validation") == ["\n\n".join(DOCUMENTS)]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_datasets_shows_no_progress_of_its_own(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_documents(tmp_path / f"text.{suffix}")
    capfd.readouterr()
    load_texts(str(path), "train")
    assert capfd.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled(), "others may want it"


@pytest.mark.parametrize("column", TEXT_COLUMNS)
def test_every_usual_column_is_found(tmp_path: Path, column: str) -> None:
    path = write_documents(tmp_path / "text.jsonl", column)
    assert load_texts(str(path), "train") == ["\n\n".join(DOCUMENTS)]


def test_rows_without_text_are_refused_naming_the_columns(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "text.jsonl", "poem")
    with pytest.raises(ValueError, match=r"text\.jsonl has columns id, poem.*one of text"):
        load_texts(str(path), "train")


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no text nowhere") as refused:
        load_texts("nowhere", "train")
    for name in CORPUS_NAMES:
        assert name in str(refused.value)
    with pytest.raises(ValueError, match="is a folder: give one of the files in it"):
        require_source(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match=r"pipe\.txt is no regular file"):
        require_source(str(tmp_path / "pipe.txt"))


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.csv"
    path.write_text("text\nhello\n")
    with pytest.raises(ValueError, match=r"text\.csv.*\.parquet, not '\.csv'"):
        load_texts(str(path), "train")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = write_documents(tmp_path / f"text.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 + 5])
    with pytest.raises(ValueError, match=rf"text\.{suffix} cannot be read: \S"):
        load_texts(str(path), "train")


def test_an_empty_json_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.touch()
    with pytest.raises(ValueError, match=r"text\.jsonl is empty: it holds no rows"):
        load_texts(str(path), "train")


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("äöü".encode("latin-1"))
    with pytest.raises(ValueError, match=r"text\.txt is not UTF-8"):
        load_texts(str(path), "train")


# The hub


class Hub:
    """Answers ``datasets.load_dataset`` and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, path: str, name: str | None = None, **options: Any) -> datasets.Dataset:
        self.calls.append({"path": path, "name": name, **options})
        column = next(c.column for c in HUB_CORPORA.values() if c.path == path)
        texts = [f"{path} {options['split']} {number}" for number in range(1200)]
        return datasets.Dataset.from_dict({"id": list(range(1200)), column: texts})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    answering = Hub()
    monkeypatch.setattr(corpora, "hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", answering)
    return answering


EXPECTED: dict[tuple[str, str], tuple[str, str, int]] = {
    ("wikitext2", "train"): ("train", "\n\n", 1200),
    ("wikitext2", "validation"): ("test", "\n\n", 1200),
    ("ptb", "train"): ("train", " ", 1200),
    ("ptb", "validation"): ("test", " ", 1200),
    ("c4", "train"): ("train", " ", 1100),
    ("c4", "validation"): ("validation", " ", 1100),
    ("pile", "train"): ("validation", " ", 1100),
    ("pile", "validation"): ("validation", " ", 1100),
}
"""Hub split, joint and documents of each corpus and purpose."""


@pytest.mark.parametrize(("name", "split"), EXPECTED)
def test_a_hub_corpus_takes_the_split_of_the_field(hub: Hub, name: str, split: Any) -> None:
    part, joint, count = EXPECTED[name, split]
    (text,) = load_texts(name, split)
    corpus = HUB_CORPORA[name]
    assert text == joint.join(f"{corpus.path} {part} {number}" for number in range(count))
    (call,) = hub.calls
    assert call["split"] == part
    assert call["name"] == corpus.name
    assert call["revision"] == corpus.revision
    if corpus.files:
        assert call["data_files"] == {part: corpus.files[part]}, "not the whole of C4"


@pytest.mark.usefixtures("hub")
def test_a_mix_gives_one_text_per_part() -> None:
    parts = [load_texts(part, "train")[0] for part in MIX_PARTS]
    assert load_texts("mix", "train") == parts


FAILURES: dict[str, Callable[[], Exception]] = {
    "no network": lambda: ConnectionError("Couldn't reach the hub\nmore lines"),
    "no words": lambda: OSError(),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_hub_that_does_not_answer_is_one_clear_error(
    failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise FAILURES[failure]()

    monkeypatch.setattr(corpora, "hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"corpus c4 \(allenai/c4\).*local file instead") as error:
        load_texts("c4", "train")
    assert "\n" not in str(error.value)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that does not answer, and that nobody may ask."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(corpora, "hub_answers", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", refuse)


@pytest.mark.usefixtures("no_hub")
def test_a_silent_hub_is_asked_for_nothing() -> None:
    with pytest.raises(ValueError, match=r"corpus wikitext2 .*Couldn't reach.*local file instead"):
        load_texts("wikitext2", "train")
    assert not datasets.config.HF_HUB_OFFLINE, "as it was"


@pytest.mark.usefixtures("no_hub")
def test_what_a_silent_hub_gave_before_is_read_again(tmp_path: Path) -> None:
    name = "wikitext-2-raw-v1"
    folder = tmp_path / "cache" / "Salesforce___wikitext" / name / "0.0.0" / ("0" * 40)
    folder.mkdir(parents=True)
    rows = datasets.Dataset.from_dict({"text": DOCUMENTS})
    with ArrowWriter(path=str(folder / "wikitext-train.arrow"), features=rows.features) as writer:
        writer.write_table(rows.data.table)
        writer.finalize()
    split = {"name": "train", "num_examples": len(rows), "dataset_name": "wikitext"}
    info = {"config_name": name, "dataset_name": "wikitext", "splits": {"train": split}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert load_texts("wikitext2", "train") == ["\n\n".join(DOCUMENTS)]
