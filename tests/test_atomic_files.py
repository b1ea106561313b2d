"""Files are whole or not there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from duquant.atomic_files import partial, write_durably, write_json, write_tensors, write_text


def test_writes_through_a_temporary_name_and_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "letter.txt"
    seen: list[Path] = []

    def write(temporary: Path) -> None:
        seen.append(temporary)
        assert temporary.parent == path.parent, "a rename across file systems is not atomic"
        assert not path.exists()
        temporary.write_text("new")

    write_durably(path, write)
    assert seen[0] != path
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_failing_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_durably(path, fail)
    assert path.read_text() == "old"


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    leftover: list[Path] = []

    def die(temporary: Path) -> None:
        leftover.append(temporary)
        temporary.write_text("a long beginning that nobody finished")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_durably(path, die)
    assert leftover[0].is_file()
    write_durably(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert not leftover[0].exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_lacks_is_never_written(value: float, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"perplexity": 1.0})
    for content in (value, [1.0, value], {"perplexity": {"text": value}}):
        with pytest.raises(
            ValueError, match=r"summary\.json cannot be written: .* is no finite number"
        ):
            write_json(path, content)
    assert json.loads(path.read_text()) == {"perplexity": 1.0}
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_flushed_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "letter.txt"
    events: list[str] = []
    rename = Path.replace

    def replace(source: Path, target: Path) -> Path:
        events.append("rename")
        return rename(source, target)

    monkeypatch.setattr("os.fsync", lambda _: events.append("flush"))
    monkeypatch.setattr(Path, "replace", replace)
    write_durably(path, lambda temporary: temporary.write_text("new"))
    assert events == ["flush", "rename", "flush"], "file, name, folder"


def test_json_is_readable_and_the_same_every_time(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": {"perplexity": 46.29, "name": "Zürich"}}
    write_json(tmp_path / "one.json", value)
    write_json(tmp_path / "two.json", dict(reversed(value.items())))
    text = (tmp_path / "one.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "Zürich" in text
    assert text.endswith("}\n")
    assert text == (tmp_path / "two.json").read_text(encoding="utf-8")


def test_a_value_that_is_not_json_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "one.json", {"tensor": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_tensors_come_back_exactly(tmp_path: Path) -> None:
    tensors = {
        "float": torch.randn(3, 4),
        "half": torch.randn(5).to(torch.bfloat16),
        "packed": torch.arange(6, dtype=torch.uint8).view(2, 3),
        "transposed": torch.randn(4, 2).T,
        "trained": torch.nn.Parameter(torch.randn(2)),
    }
    write_tensors(tmp_path / "tensors.safetensors", tensors, {"block": "7"})
    stored = load_file(tmp_path / "tensors.safetensors")
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(stored[name], tensor.detach()), name
        assert stored[name].dtype == tensor.dtype
    with safe_open(tmp_path / "tensors.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "block": "7"}


def test_equal_tensors_make_equal_files(tmp_path: Path) -> None:
    metadata = {f"block {index}": str(index) for index in range(9)}
    written = set()
    for turn in range(4):
        path = tmp_path / f"{turn}.safetensors"
        write_tensors(path, {"a": torch.ones(3), "ä": torch.zeros(2, 2)}, metadata)
        written.add(path.read_bytes())
        assert load_file(path)["ä"].shape == (2, 2)
    assert len(written) == 1


def test_tensors_are_as_readable_as_other_files(tmp_path: Path) -> None:
    """Also behind a killed writer, whose temporary file safetensors had closed to others."""
    write_text(tmp_path / "letter.txt", "new")
    path = tmp_path / "tensors.safetensors"
    partial(path).touch(mode=0o600)
    write_tensors(path, {"a": torch.ones(3)})
    assert path.stat().st_mode == (tmp_path / "letter.txt").stat().st_mode
