"""Kept perplexities: found again where nothing has changed, and never in place of another one."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from duquant.checksum import with_checksum
from duquant.evaluation import known_perplexity
from duquant.evaluation.known_perplexity import KnownPerplexity
from duquant.model import checkpoint
from duquant.model.content_digest import content_digest
from duquant.model.decoder import Decoder
from duquant.processes import Processes
from tests.in_process import small_data, write_text
from tests.small_run import write_small_model

PERPLEXITY = 42.78100000000001
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("known")
    write_text(folder / "text.txt")
    write_text(folder / "other.txt", skip=6)
    write_small_model(folder / "model", blocks=1)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "duquant" / "perplexity"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    return copy


def known(
    folder: Path,
    *,
    text: str = "text.txt",
    dtype: torch.dtype = torch.float32,
    processes: Processes | None = None,
    **options: Any,
) -> KnownPerplexity:
    model = folder / "model"
    data = small_data(model, folder / text, **options)
    if processes is not None:
        data.processes = processes
    return KnownPerplexity(Decoder(str(model), dtype), data, "topics", CPU)


def test_it_is_found_again_to_the_last_bit(folder: Path, cache: Path) -> None:
    assert known(folder).find() is None
    known(folder).keep(PERPLEXITY)
    assert known(folder).find() == PERPLEXITY
    (file,) = cache.iterdir()
    assert file.suffix == ".json", "and nothing half written beside it"
    elsewhere = folder.with_name("elsewhere")
    shutil.move(folder, elsewhere)
    assert known(elsewhere).find() == PERPLEXITY, "a place is no part of what decides"
    os.utime(elsewhere / "model" / "model.safetensors")
    assert known(elsewhere).find() == PERPLEXITY


OTHERS: dict[str, dict[str, Any]] = {
    "text": {"text": "other.txt"},
    "dtype": {"dtype": torch.bfloat16},
    "length": {"sequence_length": 16},
    "stride": {"stride": 8},
    "windows": {"validation_windows": 3},
    "chunk": {"validation_chunk": 2},
    "processes": {"processes": Processes(0, 2)},
    "special tokens": {"add_special_tokens": True, "sequence_length": 33},
}


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("change", OTHERS)
def test_another_measurement_is_not_taken_for_it(change: str, original: Path) -> None:
    known(original).keep(PERPLEXITY)
    assert known(original, **OTHERS[change]).find() is None
    assert known(original).find() == PERPLEXITY


SURROUNDINGS: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "code": lambda patch: patch.setattr(known_perplexity, "_code_digest", lambda: "other"),
    "processor": lambda patch: patch.setattr(known_perplexity, "_processor", lambda: "other"),
    "threads": lambda patch: patch.setattr(torch, "get_num_threads", lambda: 64),
    "torch": lambda patch: patch.setattr(torch, "__version__", "9.9.9"),
    "libraries": lambda patch: patch.setenv("MKL_CBWR", "COMPATIBLE"),
    "precision": lambda patch: patch.setattr(
        known_perplexity, "product_settings", lambda: ["ieee", "bf16"]
    ),
}


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("change", SURROUNDINGS)
def test_other_surroundings_may_round_otherwise(
    change: str, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(original).keep(PERPLEXITY)
    with monkeypatch.context() as patch:
        SURROUNDINGS[change](patch)
        assert known(original).find() is None
    assert known(original).find() == PERPLEXITY


@pytest.mark.usefixtures("cache")
def test_one_bit_of_the_weights_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the digest that recognizes a model by samples does not look."""
    monkeypatch.setattr(checkpoint, "SAMPLED_BYTES", 1)
    known(folder).keep(PERPLEXITY)
    file, chance = folder / "model" / "model.safetensors", random.Random(0)
    content, sampled = file.read_bytes(), known(folder).checkpoint.digest()
    header = 8 + int.from_bytes(content[:8], "little")
    unseen = 0
    for _ in range(8):
        damaged = bytearray(content)
        damaged[chance.randrange(header, len(damaged))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        assert known(folder).find() is None
        unseen += known(folder).checkpoint.digest() == sampled
    assert unseen > 0
    file.write_bytes(content)
    assert known(folder).find() == PERPLEXITY


@pytest.mark.usefixtures("cache")
def test_the_configuration_counts(folder: Path) -> None:
    known(folder).keep(PERPLEXITY)
    file = folder / "model" / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "rms_norm_eps": 2e-6}))
    assert known(folder).find() is None


def test_a_damaged_file_is_measured_anew(original: Path, cache: Path) -> None:
    entry = known(original)
    entry.keep(PERPLEXITY)
    (file,) = cache.iterdir()
    content, chance = file.read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(content)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        assert entry.find() in (None, PERPLEXITY)
        file.write_bytes(content[: chance.randrange(len(content))])
        assert entry.find() is None
    file.write_bytes(content)
    assert entry.find() == PERPLEXITY


HOSTILE = {
    "a list": [],
    "nothing": {},
    "no checksum": {"perplexity": 3.0},
    "text": {"perplexity": "3.0"},
    "negative": {"perplexity": -3.0},
    "nothing measured": {"perplexity": None},
    "settings of another": {"settings": {"dtype": "torch.float32"}},
    "no weights": {"weights": None},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_somebody_else_wrote(kind: str, original: Path, cache: Path) -> None:
    entry, changes = known(original), HOSTILE[kind]
    entry.keep(PERPLEXITY)
    (file,) = cache.iterdir()
    values: Any = changes
    if isinstance(changes, dict) and changes:
        kept = json.loads(file.read_text())
        stored = kept.pop("checksum")
        values = {**kept, **changes}
        values = values if kind == "no checksum" else with_checksum(values)
        assert stored
    file.write_text(json.dumps(values))
    assert entry.find() is None
    entry.keep(PERPLEXITY)
    assert entry.find() == PERPLEXITY, "and the next one is kept again"


def test_where_nothing_can_be_kept(original: Path, cache: Path) -> None:
    entry = known(original)
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    entry.keep(PERPLEXITY)
    assert entry.find() is None


def test_without_a_home_directory(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    entry = known(original)
    entry.keep(PERPLEXITY)
    assert entry.find() is None


def test_the_content_covers_every_shard_and_name(tmp_path: Path) -> None:
    digests = set()
    for change in range(3):
        folder = write_small_model(tmp_path / str(change), blocks=1)
        if change == 1:
            (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
        if change == 2:
            file = folder / "model.safetensors"
            file.write_bytes(file.read_bytes().replace(b"embed_tokens", b"embed_tokemn"))
        digests.add(content_digest(checkpoint.Checkpoint(folder)))
    assert len(digests) == 3
