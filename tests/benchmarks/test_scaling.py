"""The benchmark of growing blocks runs; what it measures is nobody's promise."""

from tests.benchmarks.scaling import SAMPLES, measure


def test_both_phases_are_timed() -> None:
    assert all(seconds > 0 for seconds in measure(512, min(SAMPLES)))
