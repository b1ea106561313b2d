"""A model is recognized by every byte of it, and each file is read for that once."""

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from callbacks.run_directory import describe_run
from duquant.evaluation.loaded_model import ModelSource
from duquant.model import checkpoint, content_digest
from duquant.model.checkpoint import Checkpoint
from duquant.run_description import compare_runs
from tests.in_process import LIGHTNING_WARNINGS, small_language_model
from tests.small_run import write_small_model

pytestmark = LIGHTNING_WARNINGS


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint, "SAMPLED_BYTES", 1)
    return write_small_model(tmp_path / "model", blocks=1)


def flip_where_no_sample_looks(model: Path) -> None:
    file, chance, before = model / "model.safetensors", random.Random(0), Checkpoint(model).digest()
    content = file.read_bytes()
    while True:
        damaged = bytearray(content)
        damaged[chance.randrange(len(content) // 2, len(content))] ^= 1
        file.write_bytes(damaged)
        if Checkpoint(model).digest() == before:
            return


def test_another_model_with_the_same_samples_is_another(model: Path, tmp_path: Path) -> None:
    """For a run, and for an evaluation; runs of earlier releases go on."""
    stored = describe_run(small_language_model(model, tmp_path / "run"), None)
    source = ModelSource.find(str(model)).description()
    flip_where_no_sample_looks(model)
    now = describe_run(small_language_model(model, tmp_path / "run"), None)
    (difference,) = compare_runs(stored, now)
    assert difference.startswith("model.content was ")
    assert ModelSource.find(str(model)).description() != source
    del stored["model"]["content"]
    assert compare_runs(stored, now) == []
    stored["model"]["weights"] = "0" * 16
    assert len(compare_runs(stored, now)) == 1


def test_a_file_is_read_once_until_it_changes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    really = content_digest._read

    def counting(file: Path) -> str:
        read.append(file.name)
        return really(file)

    monkeypatch.setattr(content_digest, "_read", counting)
    now = time.time()

    def digest(later: float = 60.0) -> str:
        monkeypatch.setattr(time, "time", lambda: now + later)
        return content_digest.content_digest(Checkpoint(model))

    first = digest(later=0.0)
    assert digest(later=0.0) == first
    assert len(read) == 4, "files of this moment are read each time"
    for _ in range(3):
        assert digest() == first
    assert len(read) == 6
    for kept in (tmp_path / "cache").rglob("content/*.json"):
        kept.write_text(kept.read_text().replace('"digest": "', '"digest": "0'))
    assert digest() == first, "a damaged entry is no entry"
    times = (model / "model.safetensors").stat()
    flip_where_no_sample_looks(model)
    os.utime(model / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digest() != first, "also where the time of the change is hidden"
    monkeypatch.setenv("XDG_CACHE_HOME", str(model / "config.json"))
    assert digest() != first
    shutil.rmtree(tmp_path / "cache")
