"""Which way a linear computes, and what is said where it cannot."""

from typing import Any

import pytest
import torch

from duquant.nn import execution
from duquant.nn.execution import FEWEST_INPUTS_PER_SCALE, Execution

CPU = torch.device("cpu")
WIDE: dict[str, Any] = {"activation_bits": 4, "weight_bits": 4, "columns": FEWEST_INPUTS_PER_SCALE}


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
    bits = {"activation_bits": activation_bits, "weight_bits": weight_bits, "columns": 4096}
    assert not Execution().is_integer(CPU, **bits)
    words = f"weights of {weight_bits} and activations of {activation_bits} bits do not both fit"
    with pytest.raises(ValueError, match=words):
        Execution("integer").is_integer(CPU, **bits)


@pytest.mark.parametrize("has_units", [True], indirect=True)
def test_small_groups_are_worthwhile_only_on_request(has_units: bool) -> None:
    narrow = {**WIDE, "columns": FEWEST_INPUTS_PER_SCALE - 1}
    assert not Execution().is_integer(CPU, **narrow)
    assert Execution("integer").is_integer(CPU, **narrow)


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
