"""Preflight where a GPU computes: its memory is asked, not the host's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import preflight
from callbacks.preflight import describe_job, require_room, stream_device
from duquant.config import LWCConfig
from duquant.data.stream_files import BYTES_AT_ONCE
from duquant.data.streams import CPU, StreamSizes
from duquant.export.packed_size import packed_bytes
from duquant.ops.copy_stream import pinned_bytes
from duquant.preflight import placement
from duquant.preflight.copy_buffers import (
    chunk_bytes,
    device_buffers,
    pinned_buffers,
    written_block,
)
from duquant.preflight.memory import device_phase, host_phase, largest_phase, memory_phases
from duquant.preflight.thin_model import thin_config
from duquant.processes import Processes
from tests.in_process import NO_LWC, small_data, small_language_model, write_text
from tests.small_run import write_small_model


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Model and data of a run whose process has a GPU, without room for the streams."""
    free(monkeypatch, 0)
    source = write_small_model(tmp_path / "source", blocks=1)
    data = small_data(source, write_text(tmp_path / "text.txt"))
    data.processes = Processes(device=torch.device("cuda", 1))
    data.num_samples = 1 << 13  # streams are larger than all else
    return small_language_model(source, tmp_path / "run"), data


def free(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    monkeypatch.setattr(preflight, "free_device_bytes", lambda device: count)


def test_a_gpu_that_is_too_small_is_refused(
    run: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = device_phase(describe_job(*run)).num_bytes
    free(monkeypatch, needed)
    require_room(*run)
    assert stream_device(*run) == CPU
    free(monkeypatch, needed - 1)
    with pytest.raises(ValueError, match=r"of the memory of cuda:1 \(\w+\), but .* free there"):
        require_room(*run)


def test_the_host_needs_no_room_for_what_the_gpu_does(
    run: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = run
    job = describe_job(model, data)
    assert job.on_gpu
    assert host_phase(job).num_bytes < largest_phase(job).num_bytes
    monkeypatch.setattr(preflight, "available_bytes", lambda: host_phase(job).num_bytes)
    free(monkeypatch, 1 << 60)
    require_room(model, data)
    data.processes = Processes()
    free(monkeypatch, None)
    assert not describe_job(model, data).on_gpu
    with pytest.raises(ValueError, match="more memory"):
        require_room(model, data)


def test_streams_lie_on_a_gpu_that_has_room_for_them(
    run: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = run
    device, beside = data.processes.device, describe_job(model, data)
    free(monkeypatch, 1 << 60)
    job = describe_job(model, data)
    assert stream_device(model, data) == device
    needed, held = device_phase(job).num_bytes, job.streams.bytes_at_once
    assert needed > device_phase(beside).num_bytes
    more = host_phase(beside).num_bytes - host_phase(job).num_bytes
    assert more == held + pinned_buffers(beside) - pinned_buffers(job)
    free(monkeypatch, needed)
    assert stream_device(model, data) == device
    free(monkeypatch, needed - 1)
    assert stream_device(model, data) == CPU
    data.stream_memory_gb = held / 1e9
    free(monkeypatch, needed)
    assert stream_device(model, data) == device
    data.stream_memory_gb = held / 2e9
    assert stream_device(model, data) == CPU


def test_training_on_a_gpu_holds_the_matrices_of_attention(
    run: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = run
    monkeypatch.setattr("duquant.preflight.memory.LARGEST_COPIED_CHECKPOINT", 0)
    data.stream_memory_gb = 0.0  # in files, on either
    job = describe_job(model, data)
    buffers = device_buffers(job) - 2 * chunk_bytes(job)  # where the host maps two chunks
    there = {each.name: each.num_bytes for each in memory_phases(job)}
    data.processes = Processes()
    free(monkeypatch, None)
    here = {each.name: each.num_bytes for each in memory_phases(describe_job(model, data))}
    scores = model.decoder.config.num_attention_heads * data.sequence_length**2
    more = there.pop("training") - here.pop("training")
    assert more == 4 * 4 * data.batch_size * scores + buffers
    block = packed_bytes(model.decoder.meta_block(), model.recipe)
    for phase in ("full precision", "search"):  # the block before is written by the host
        less = here.pop(phase) - there.pop(phase)
        assert less == block - buffers
    assert there.pop("embedding") - here.pop("embedding") == buffers
    assert there == here


def test_training_by_flash_attention_holds_no_matrices(
    run: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = run
    by_products = describe_job(model, data)
    monkeypatch.setattr(placement, "repeats_flash_on", lambda *_: True)
    by_flash = describe_job(model, data)
    assert by_products == replace(by_flash, holds_scores=True)
    scores = model.decoder.config.num_attention_heads * data.sequence_length**2
    phases = [{p.name: p.num_bytes for p in memory_phases(j)} for j in (by_products, by_flash)]
    less = phases[0]["training"] - phases[1]["training"]
    assert less == 4 * 4 * data.batch_size * scores
    model.decoder.config.sliding_window = data.sequence_length - 1  # there is a mask
    assert describe_job(model, data).holds_scores
    model.decoder.config.sliding_window = data.sequence_length
    assert not describe_job(model, data).holds_scores


def test_a_gpu_is_timed_with_a_block_as_wide_as_it_is(run: tuple[Any, Any]) -> None:
    model, _ = run
    config = model.decoder.config
    config.hidden_size, config.intermediate_size, config.num_attention_heads = 4096, 11008, 32
    whole = thin_config(config, model.recipe, whole=True)
    assert (whole.hidden_size, whole.intermediate_size) == (4096, 11008)
    assert thin_config(config, model.recipe).hidden_size < 4096


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [({"lwc": NO_LWC}, 0), ({}, 2), ({"lwc": LWCConfig(augmented_loss=True)}, 3)],
)
def test_what_is_on_its_way_is_counted(
    run: tuple[Any, Any], recipe: dict[str, Any], parts: int
) -> None:
    """Two buffers of each part of a batch and of each chunk, to the GPU and back."""
    model, data = run
    job = describe_job(model, data)
    changed = replace(job.recipe, **recipe)
    streams = StreamSizes.of(changed, *job.streams.shape, job.streams.dtype)
    job = replace(job, recipe=changed, streams=streams, batch_size=3)
    chunk, batch = chunk_bytes(job), 3 * job.streams.sample_bytes
    assert device_buffers(job) == max(4 * chunk, 3 * parts * batch)
    assert pinned_bytes(batch) == 4 * job.streams.sample_bytes, "a power of two"
    block = pinned_bytes(written_block(job))
    assert pinned_buffers(job) == block + 4 * chunk + 2 * parts * pinned_bytes(batch)
    wide = replace(job, batch_size=1000)
    assert device_buffers(wide) == max(4 * chunk, 3000 * parts * job.streams.sample_bytes)
    written = min(BYTES_AT_ONCE, job.streams.stream_bytes)
    assert pinned_buffers(replace(job, streams_on_gpu=True)) == block + 2 * pinned_bytes(written)
