"""Streams of many processes: everyone's own come back, and any number of processes goes on."""

import itertools
from pathlib import Path

import pytest
import torch

from duquant.data.stream_shares import StreamShares
from duquant.data.streams import Streams, StreamSizes
from duquant.processes import Processes

SAMPLES = torch.randn(12, 3, 2, generator=torch.Generator().manual_seed(0))
STATISTIC = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(1))


def streams_of(processes: Processes, *, with_quantized: bool = True) -> Streams:
    own = processes.share(SAMPLES)
    return Streams(own, own + 1 if with_quantized else own[:0], STATISTIC)


def shares_of(
    directory: Path, processes: Processes, *, with_quantized: bool = True, in_memory: bool = True
) -> StreamShares:
    sizes = StreamSizes(len(SAMPLES) // processes.count, 3, 2, torch.float32, with_quantized)
    return StreamShares(directory, processes, sizes, in_memory=in_memory)


def write(
    directory: Path, count: int, block: int, *, with_quantized: bool = True
) -> list[StreamShares]:
    shares = []
    for rank in range(count):
        processes = Processes(rank, count)
        shares.append(shares_of(directory, processes, with_quantized=with_quantized))
        shares[-1].save(block, streams_of(processes, with_quantized=with_quantized))
    return shares


def stored(directory: Path) -> list[str]:
    return sorted(str(f.relative_to(directory)) for f in directory.rglob("*.safetensors"))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("with_quantized", [True, False])
@pytest.mark.parametrize(("before", "after"), [*itertools.product([1, 2, 3, 4], repeat=2)])
def test_any_number_of_processes_goes_on(
    tmp_path: Path, before: int, after: int, with_quantized: bool, in_memory: bool
) -> None:
    write(tmp_path, before, 5, with_quantized=with_quantized)
    for rank in range(after):
        processes = Processes(rank, after)
        shares = shares_of(tmp_path, processes, with_quantized=with_quantized, in_memory=in_memory)
        assert shares.hold(5)
        loaded = shares.load(5)
        expected = streams_of(processes, with_quantized=with_quantized)
        assert torch.equal(loaded.full_precision[:], expected.full_precision)
        assert torch.equal(loaded.quantized[:], expected.quantized)
        assert torch.equal(loaded.calibration_mean, STATISTIC)


def test_one_process_writes_where_it_always_did(tmp_path: Path) -> None:
    write(tmp_path, 1, 0)
    assert stored(tmp_path) == ["block_00000.safetensors"]


def test_a_boundary_that_one_process_did_not_reach_is_not_held(tmp_path: Path) -> None:
    first, _ = write(tmp_path, 2, 1)
    first.save(2, streams_of(Processes(0, 2)))
    assert first.hold(1)
    assert not first.hold(2)
    with pytest.raises(ValueError, match=r"process_1_of_2.block_00002\.safetensors is missing"):
        shares_of(tmp_path, Processes(1, 2)).load(2)


def test_what_another_number_wrote_is_kept_until_it_is_overtaken(tmp_path: Path) -> None:
    for block in (1, 2):
        write(tmp_path, 2, block)
    write(tmp_path, 1, 2)[0].drop_others(2)
    assert stored(tmp_path) == [
        "block_00002.safetensors",
        "process_0_of_2/block_00001.safetensors",
        "process_1_of_2/block_00001.safetensors",
    ], "the boundary before is what the checkpoint still points at"
    write(tmp_path, 1, 3)[0].drop_others(3)
    assert stored(tmp_path) == ["block_00002.safetensors", "block_00003.safetensors"]


def test_nothing_is_left_at_the_end(tmp_path: Path) -> None:
    directory = tmp_path / "streams"
    shares = [*write(directory, 1, 1), *write(directory, 2, 2)]
    shares[0].remove()
    assert not directory.exists()
