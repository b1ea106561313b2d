"""Checkpoints: written in one step, read as data only."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.checkpointing import DurableCheckpointIO, LastCheckpoint, last_checkpoint
from callbacks.defaults import default_callbacks
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun

pytestmark = LIGHTNING_WARNINGS
CONTENT: dict[str, Any] = {"duquant_run": {"seed": 2}, "state_dict": {"x": torch.arange(3.0)}}


@pytest.fixture
def io() -> DurableCheckpointIO:
    return DurableCheckpointIO()


def test_a_checkpoint_comes_back(io: DurableCheckpointIO, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "last.ckpt"
    io.save_checkpoint(CONTENT, path)
    loaded = io.load_checkpoint(path)
    assert loaded["duquant_run"] == {"seed": 2}
    assert torch.equal(loaded["state_dict"]["x"], torch.arange(3.0))
    assert list(path.parent.iterdir()) == [path]


def test_a_failing_write_leaves_the_old_checkpoint(
    io: DurableCheckpointIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    io.save_checkpoint(CONTENT, path)
    before = path.read_bytes()

    def fail(checkpoint: Any, file: Path) -> None:
        file.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        io.save_checkpoint({**CONTENT, "epoch": 2}, path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    io.save_checkpoint({**CONTENT, "epoch": 2}, path)
    assert io.load_checkpoint(path)["epoch"] == 2
    assert list(tmp_path.iterdir()) == [path], "what the failed write left is gone"


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("weights_only", [True, False, None])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_checkpoint_cannot_run_code(
    io: DurableCheckpointIO,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    weights_only: bool | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    bomb = {**CONTENT, "bomb": Bomb()}
    if form == "torch":
        torch.save(bomb, path)
    else:
        path.write_bytes(pickle.dumps(bomb, protocol=2))
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged or not a checkpoint of duquant"):
        io.load_checkpoint(path, weights_only=weights_only)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("left", [0, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(
    io: DurableCheckpointIO, tmp_path: Path, left: float
) -> None:
    path = tmp_path / "last.ckpt"
    io.save_checkpoint(CONTENT, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(left if left >= 1 else left * len(content))])
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged"):
        io.load_checkpoint(path)


def test_a_missing_checkpoint_is_named(io: DurableCheckpointIO, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no checkpoint .*nowhere\.ckpt"):
        io.load_checkpoint(tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize("content", [{"state_dict": {}}, torch.zeros(2), [1, 2]])
def test_a_checkpoint_of_something_else_is_named(
    io: DurableCheckpointIO, tmp_path: Path, content: Any
) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt is not a checkpoint of duquant"):
        io.load_checkpoint(tmp_path / "other.ckpt")


def test_a_run_keeps_one_checkpoint_without_weights(finished_run: FinishedRun) -> None:
    path = last_checkpoint(finished_run.output)
    assert list(path.parent.iterdir()) == [path]
    loaded = torch.load(path, weights_only=True)
    assert int(loaded["state_dict"]["block_index"]) == 2
    model = finished_run.model
    assert loaded["state_dict"].keys() == {*model.state_dict(), "block_index"}
    assert loaded["duquant_run"] == model.run_description


def test_checkpoints_are_written_after_everything_else(tmp_path: Path) -> None:
    assert isinstance(default_callbacks(tmp_path)[-1], LastCheckpoint)
