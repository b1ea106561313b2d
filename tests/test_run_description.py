"""What differs between two runs is named."""

from typing import Any

import pytest

from duquant.run_description import compare_runs

STORED = {"recipe": {"weight_bits": 4, "lwc": {"epochs": 20}}, "seed": 2}


def test_equal_runs_have_no_differences() -> None:
    assert compare_runs(STORED, {"recipe": {**STORED["recipe"]}, "seed": 2}) == []  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("wanted", "difference"),
    [
        ({"seed": 3}, "seed was 2, now 3"),
        ({"recipe": {"weight_bits": 3}}, "recipe.weight_bits was 4, now 3"),
        ({"recipe": {"lwc": {"epochs": 0}}}, "recipe.lwc.epochs was 20, now 0"),
        ({"dtype": "float32"}, "dtype was None, now float32"),
        ({"seed": {"data": 1}}, "seed was 2, now {'data': 1}"),
    ],
)
def test_a_difference_names_its_path_and_both_values(
    wanted: dict[str, Any], difference: str
) -> None:
    assert compare_runs(STORED, wanted) == [difference]


def test_every_difference_is_named() -> None:
    wanted = {"recipe": {"weight_bits": 3, "lwc": {"epochs": 1}}, "seed": 5}
    assert len(compare_runs(STORED, wanted)) == 3


def test_only_what_is_wanted_is_compared() -> None:
    assert compare_runs(STORED, {"seed": 2}) == []
    assert compare_runs({}, STORED) != []
