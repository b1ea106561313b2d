"""Work is timed on the device that does it, not on the current GPU, which may be another one."""

from typing import Any

import pytest
import torch

from duquant.preflight.device_clock import DeviceClock

SECOND = torch.device("cuda", 1)


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was waited for."""
    events: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", events.append)
    return events


def test_it_waits_for_its_device_before_and_after(happened: list[Any]) -> None:
    assert DeviceClock(SECOND).once(lambda: happened.append("work")) >= 0
    assert happened == [SECOND, "work", SECOND]


def test_a_first_time_is_not_counted(happened: list[Any]) -> None:
    assert DeviceClock(SECOND).settled(lambda: happened.append("work")) >= 0
    assert happened == ["work", SECOND, "work", SECOND]
