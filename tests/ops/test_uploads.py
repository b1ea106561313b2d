"""Copies between host and device where there is only the host: everything stays as it is.

What happens with a device stands in ``tests/emulated/test_copies.py``.
"""

from pathlib import Path

import pytest
import torch

from duquant.model.file_tensor import lay_out, open_tensors
from duquant.ops.copy_stream import CopyStream, pinned_bytes
from duquant.ops.downloads import Downloads, downloaded
from duquant.ops.uploads import uploaded

CPU = torch.device("cpu")


def test_the_cpu_has_no_queue_for_copies() -> None:
    assert CopyStream.of(CPU) is None
    assert CopyStream.of(torch.device("meta")) is None


def test_on_the_cpu_items_are_given_out_as_they_are() -> None:
    items = [(torch.zeros(2), torch.ones(2, 3)), (torch.zeros(1), torch.ones(1, 3))]
    read: list[int] = []

    def reading() -> object:
        for number, item in enumerate(items):
            read.append(number)
            yield item

    for number, found in enumerate(uploaded(reading(), CPU)):  # type: ignore[arg-type]
        assert all(ours is theirs for ours, theirs in zip(found, items[number], strict=True))
        assert read == list(range(number + 1)), "none is read ahead: it may lie on disk"


def test_without_a_queue_values_are_stored_at_once(tmp_path: Path) -> None:
    path, values = tmp_path / "values.safetensors", torch.randn(3, 4)
    lay_out(path, {"values": (3, 4)}, torch.float32)
    stored, kept = open_tensors(path)["values"], torch.zeros(3, 4)
    with Downloads(None) as downloads:
        for target in (stored, kept):
            downloads.put(target, slice(1, 3), values[1:])
            assert torch.equal(target[1:], values[1:])
    assert not kept[0].any()


def test_tensors_of_the_host_are_not_copied() -> None:
    tensors = {"a": torch.zeros(2, requires_grad=True), "b": torch.ones(3)}
    found = downloaded(tensors)()
    assert [found[name].data_ptr() for name in "ab"] == [tensors[n].data_ptr() for n in "ab"]
    assert not found["a"].requires_grad
    assert downloaded({})() == {}


@pytest.mark.parametrize(
    ("asked", "pinned"), [(0, 0), (1, 1), (5, 8), (8, 8), (20 << 20, 32 << 20)]
)
def test_pinned_memory_is_rounded_up(asked: int, pinned: int) -> None:
    assert pinned_bytes(asked) == pinned
