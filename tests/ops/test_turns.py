"""Runs that take turns, by a clock that the runs themselves move."""

from collections.abc import Callable, Iterator

import pytest

from duquant.ops import turns
from duquant.ops.turns import FEWEST_TURNS, MOST_TURNS, timings


class Clock:
    """Seconds that runs say they took."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, seconds: Iterator[float]) -> Callable[[], None]:
        def take() -> None:
            self.order.append(name)
            self.now += next(seconds)

        return take


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(turns, "clock", clock)
    return clock


def always(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def test_median_and_best_without_the_first(clock: Clock) -> None:
    slow = clock.run("a", iter([9.0, 0.3, 0.1, 0.2, 0.5, 0.4]))
    found = timings({"a": slow, "b": clock.run("b", always(0.2))}, end=100)
    assert found is not None
    assert found["a"] == pytest.approx((0.3, 0.1))
    assert found["b"] == pytest.approx((0.2, 0.2))
    assert clock.order == ["a", "b"] * (1 + FEWEST_TURNS), "they take turns"


def test_short_runs_are_repeated_more_often(clock: Clock) -> None:
    timings({"a": clock.run("a", always(1e-6))}, end=100)
    assert len(clock.order) == 1 + MOST_TURNS


def test_a_hopeless_run_is_not_repeated(clock: Clock) -> None:
    runs = {"a": clock.run("a", always(0.1)), "b": clock.run("b", always(0.5))}
    found = timings(runs, end=100)
    assert found is not None
    assert clock.order.count("b") == 3
    assert found["b"].best == pytest.approx(0.5)


def test_one_slow_turn_does_not_make_a_run_hopeless(clock: Clock) -> None:
    seconds = iter([0.1, 9.0, 0.1, 0.1, 0.1, 0.1])
    runs = {"a": clock.run("a", always(0.1)), "b": clock.run("b", seconds)}
    found = timings(runs, end=100)
    assert found is not None
    assert found["b"] == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize("end", [0.5, 3.0])
def test_it_gives_up_where_the_time_does_not_suffice(end: float, clock: Clock) -> None:
    runs = {name: clock.run(name, always(0.4)) for name in "abc"}
    assert timings(runs, end=end) is None
    assert clock.now <= end + 0.4
