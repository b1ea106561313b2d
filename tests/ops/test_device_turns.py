"""Runs on an accelerator that is not there, by a clock that the runs move."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from duquant.ops import device_turns
from duquant.ops.device_turns import (
    FILLS,
    TURNS,
    WARM_UPS,
    accelerator,
    device_timings,
    is_recorded,
)

CPU = torch.device("cpu")


class Event:
    """Holds a time."""

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.time = 0.0

    def elapsed_time(self, end: "Event") -> float:
        return end.time - self.time


class Device:
    """What a module of PyTorch for a device is; it does what it is asked for at once."""

    Event = Event

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[str] = []

    def current_stream(self, device: torch.device) -> "Device":
        assert device == CPU
        return self

    def record_event(self, event: Event) -> None:
        self.asked.append("mark")
        event.time = self.now

    def synchronize(self, device: torch.device) -> None:
        assert device == CPU
        self.asked.append("wait")

    def get_device_name(self, device: torch.device) -> str:
        return f"of {device}"

    def candidate(self, name: str, milliseconds: Iterator[float]) -> Callable[[int], Any]:
        """Takes so long for a size of one."""

        def make(size: int) -> Callable[[], None]:
            def run() -> None:
                self.asked.append(name)
                self.now += size * next(milliseconds)

            return run

        return make


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(torch, "get_device_module", lambda _: device)
    monkeypatch.setattr(device_turns, "FILLED_BYTES", 8)
    return device


def always(milliseconds: float) -> Iterator[float]:
    while True:
        yield milliseconds


def test_median_and_best_of_every_size_without_warming_up(device: Device) -> None:
    slow = [900.0] * 2 * WARM_UPS
    each = [30.0, 10.0, *[40.0] * (TURNS - 2)]
    candidates = {
        "a": device.candidate("a", iter([*slow, *each, *each])),
        "b": device.candidate("b", always(20)),
    }
    found = device_timings(candidates, (1, 2), CPU)
    assert found["a"] == [pytest.approx((0.04, 0.01)), pytest.approx((0.08, 0.02))]
    assert found["b"] == [pytest.approx((0.02, 0.02)), pytest.approx((0.04, 0.04))]
    warm = ["a"] * 2 * WARM_UPS + ["b"] * 2 * WARM_UPS
    turns = ["mark", "a", "mark", "mark", "b", "mark"] * 2 * TURNS
    assert device.asked == [*warm, *turns, "wait"], "they take turns, and the host waits once"


def test_other_layers_weights_take_the_place_in_the_cache(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer is written before every run, so often that the host has asked before it begins."""
    usual = torch.Tensor.zero_

    def zero(self: torch.Tensor) -> torch.Tensor:
        device.asked.append("fill")
        return usual(self)

    monkeypatch.setattr(torch.Tensor, "zero_", zero)
    device_timings({"a": device.candidate("a", always(1))}, (1,), CPU)
    turn = ["fill"] * FILLS + ["mark", "a", "mark"]
    assert FILLS > 1
    assert device.asked == ["a"] * WARM_UPS + turn * TURNS + ["wait"]


@pytest.mark.parametrize("error", [ValueError("bad"), torch.OutOfMemoryError("short")])
@pytest.mark.parametrize("is_made", [False, True])
def test_what_fails_has_no_times(is_made: bool, error: Exception, device: Device) -> None:
    def fail(*_: int) -> Any:
        raise error

    bad = (lambda size: fail) if is_made else fail
    found = device_timings({"a": bad, "b": device.candidate("b", always(1))}, (1, 2), CPU)
    assert found["a"] == []
    assert len(found["b"]) == 2


def test_a_device_is_known_by_its_name_and_software(device: Device) -> None:
    facts = accelerator(CPU)
    assert facts["device"] == "of cpu"
    assert facts["torch"] == torch.__version__
    assert all(isinstance(value, str) for value in facts.values())


def test_what_is_compiled_is_known() -> None:
    def traced(x: torch.Tensor) -> torch.Tensor:
        return x + is_recorded(CPU)

    torch.compiler.reset()
    zeros = torch.zeros(2, device=CPU)
    assert traced(zeros).tolist() == [0, 0]
    assert torch.compile(traced, backend="eager", fullgraph=True)(zeros).tolist() == [1, 1]


def test_what_is_captured_is_known(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_recorded(CPU)
    monkeypatch.setattr(device, "is_current_stream_capturing", lambda: True, raising=False)
    assert is_recorded(CPU)
