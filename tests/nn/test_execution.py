"""Which way a linear computes, and what is said where it cannot."""

from typing import Any

import pytest
import torch

from duquant.formats.integer import Integer
from duquant.formats.mxfp4 import MXFP4
from duquant.formats.number_format import NumberFormat
from duquant.formats.table import build_format
from duquant.nn import execution
from duquant.nn.execution import FEWEST_INPUTS_PER_SCALE, Execution

CPU = torch.device("cpu")
WIDE: dict[str, Any] = {
    "activations": Integer(4),
    "weights": Integer(4),
    "columns": FEWEST_INPUTS_PER_SCALE,
}


@pytest.fixture(params=[True, False], ids=["int8 units", "no int8 units"])
def has_units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    name = "fbgemm" if request.param else None
    monkeypatch.setattr(execution, "engine", lambda device: name)
    return bool(request.param)


def test_auto_takes_integers_where_they_run(has_units: bool) -> None:
    assert Execution().is_integer(CPU, **WIDE) is has_units


def test_reference_never_takes_integers(has_units: bool) -> None:
    assert not Execution("reference").is_integer(CPU, **WIDE)


def test_integers_are_taken_or_refused(has_units: bool) -> None:
    if has_units:
        assert Execution("integer").is_integer(CPU, **WIDE)
        return
    with pytest.raises(ValueError, match=r"cpu has no int8 matrix product; use 'reference'"):
        Execution("integer").is_integer(CPU, **WIDE)


@pytest.mark.parametrize("has_units", [True], indirect=True)
@pytest.mark.parametrize(("activation_bits", "weight_bits"), [(16, 4), (4, 9), (12, 12)])
def test_wider_integers_are_left_to_the_reference(
    has_units: bool, activation_bits: int, weight_bits: int
) -> None:
    formats: dict[str, Any] = {
        "activations": build_format("integer", bits=activation_bits),
        "weights": build_format("integer", bits=weight_bits),
        "columns": 4096,
    }
    assert not Execution().is_integer(CPU, **formats)
    words = f"weights of {weight_bits} and activations of {activation_bits} bits do not both fit"
    with pytest.raises(ValueError, match=words):
        Execution("integer").is_integer(CPU, **formats)


@pytest.mark.parametrize("has_units", [True], indirect=True)
@pytest.mark.parametrize(
    ("formats", "words"),
    [
        ((MXFP4(), Integer(4)), "mxfp4 and integer are not both integers"),
        ((Integer(4), MXFP4()), "integer and mxfp4 are not both integers"),
        ((Integer(4), Integer(4, group_size=64)), "groups of 64 activations have scales"),
    ],
)
def test_other_numbers_are_left_to_the_reference(
    has_units: bool, formats: tuple[NumberFormat, NumberFormat], words: str
) -> None:
    weights, activations = formats
    assert not Execution().is_integer(CPU, weights=weights, activations=activations, columns=4096)
    with pytest.raises(ValueError, match=words):
        Execution("integer").is_integer(CPU, weights=weights, activations=activations, columns=4096)


@pytest.mark.parametrize("has_units", [True], indirect=True)
def test_small_groups_are_worthwhile_only_on_request(has_units: bool) -> None:
    narrow = {**WIDE, "columns": FEWEST_INPUTS_PER_SCALE - 1}
    assert not Execution().is_integer(CPU, **narrow)
    assert Execution("integer").is_integer(CPU, **narrow)


@pytest.mark.parametrize("has_units", [True], indirect=True)
@pytest.mark.parametrize(("columns", "expected"), [(128, False), (256, False), (512, True)])
def test_usual_group_sizes_stay_in_floating_point(
    has_units: bool, columns: int, expected: bool
) -> None:
    """Groups of 128 are what most recipes use; as integers they were slower than as floats."""
    assert Execution().is_integer(CPU, **{**WIDE, "columns": columns}) is expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "fast"}, "backend is 'fast'; it must be one of auto, reference, integer"),
        ({"weights_in_memory": "tiny"}, "weights_in_memory is 'tiny'; it must be one of fast, pa"),
    ],
)
def test_an_unknown_choice_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Execution(**options)
