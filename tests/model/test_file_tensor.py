"""Tensors that stay in a safetensors file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from duquant.model.file_tensor import lay_out, open_tensors

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_laid_out_file_is_safetensors_of_zeros(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "new" / "a.safetensors"
    lay_out(path, {"one": (3, 5, 2), "two": (1, 4)}, dtype)
    loaded = load_file(path)
    assert {name: tensor.shape for name, tensor in loaded.items()} == {
        "one": (3, 5, 2), "two": (1, 4),
    }  # fmt: skip
    assert all(tensor.dtype == dtype and not tensor.any() for tensor in loaded.values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_written_in_any_order_are_what_others_read(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    path = tmp_path / "a.safetensors"
    one, two = torch.randn(7, 5, 2).to(dtype), torch.randn(1, 4).to(dtype)
    lay_out(path, {"one": one.shape, "two": two.shape}, dtype)
    stored = open_tensors(path)
    for start in (4, 0, 2, 6):
        stored["one"][start : start + 2] = one[start : start + 2]
    stored["two"][:] = two
    assert torch.equal(load_file(path)["one"], one)
    assert torch.equal(load_file(path)["two"], two)
    assert torch.equal(stored["one"][:], one)
    assert torch.equal(stored["one"][2:5], one[2:5])
    assert torch.equal(stored["one"][3], one[3])


def test_files_of_others_are_opened_likewise(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(4, 3), "a": torch.arange(5)}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    for name, stored in open_tensors(path).items():
        assert (stored.shape, stored.dtype) == (tensors[name].shape, tensors[name].dtype)
        assert len(stored) == len(tensors[name])
        assert torch.equal(stored[:], tensors[name])


def test_what_was_read_is_a_copy_to_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(4, 3)}, path)
    (stored,) = open_tensors(path).values()
    stored[:].fill_(1)
    assert not stored[:].any()


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    lay_out(path, {"a": (4, 3)}, torch.float32)
    (stored,) = open_tensors(path).values()
    for values in (torch.zeros(3, 3), torch.zeros(2, 3, dtype=torch.bfloat16)):
        with pytest.raises(AssertionError):
            stored[0:2] = values


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.safetensors is missing"):
        open_tensors(tmp_path / "a.safetensors")
