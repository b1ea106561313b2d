"""What is chosen by which times."""

from collections.abc import Sequence
from typing import Any

import pytest

from duquant.nn.choice import CLEARLY, decide
from duquant.nn.execution import FEWEST_INPUTS_PER_SCALE, Choice
from duquant.ops.integer_weight import ROW_COUNTS, row_class

WIDE, NARROW = FEWEST_INPUTS_PER_SCALE, FEWEST_INPUTS_PER_SCALE - 1
PACKED = ("packed", "packed", "packed")


def choice(
    columns: int = WIDE,
    device_type: str = "cpu",
    **seconds: Sequence[float] | Sequence[Sequence[float]],
) -> Choice:
    """Medians for each number of tokens, or pairs of median and best."""
    times: Any = {
        name: [each if isinstance(each, tuple) else (each, each) for each in timings]
        for name, timings in seconds.items()
    }
    kernels: Any = [name for name in times if name != "reference"]
    return decide(times, kernels, columns, device_type)


@pytest.mark.parametrize(
    ("rows", "index"),
    [(0, 0), (1, 0), (4, 0), (5, 1), (16, 1), (45, 1), (46, 2), (128, 2), (9999, 2)],
)
def test_the_nearest_number_of_tokens_counts(rows: int, index: int) -> None:
    assert row_class(rows) == index
    assert len(ROW_COUNTS) == 3


def test_few_and_many_tokens_may_have_kernels_of_their_own() -> None:
    """As on a processor with AMX."""
    times = {"packed": (1, 4, 9), "fbgemm": (2, 3, 8), "onednn": (2, 2, 4), "reference": (4, 4, 4)}
    assert choice(**times) == Choice(True, ("packed", "onednn", "onednn"))


def test_at_most_one_other_kernel_is_taken() -> None:
    times = {"packed": (9, 9, 9), "fbgemm": (1, 2, 4), "onednn": (2, 1, 1), "reference": (9, 9, 9)}
    assert choice(**times).kernels == ("onednn",) * 3


def test_another_kernel_must_be_clearly_faster_and_worth_its_memory() -> None:
    times = {"packed": (1.2, 1.49, 1.51), "fbgemm": (1, 1, 1), "reference": (9, 9, 9)}
    assert choice(**times).kernels == ("packed", "packed", "fbgemm")
    times = {"fbgemm": (1.04, 1.04, 1.04), "onednn": (1, 1, 1), "reference": (9, 9, 9)}
    assert choice(**times).kernels == ("fbgemm",) * 3
    times = {"fbgemm": (1.06, 1.06, 1.06), "onednn": (1, 1, 1), "reference": (9, 9, 9)}
    assert choice(**times).kernels == ("onednn",) * 3


@pytest.mark.parametrize(
    ("columns", "reference", "is_integer"),
    [
        (WIDE, 1 / CLEARLY + 0.01, True),
        (WIDE, 1 / CLEARLY - 0.01, False),
        (NARROW, CLEARLY - 0.01, False),
        (NARROW, CLEARLY + 0.01, True),
    ],
)
def test_the_rule_goes_on_unless_the_other_is_clearly_faster(
    columns: int, reference: float, is_integer: bool
) -> None:
    times = {"packed": (1, 1, 1), "fbgemm": (2, 2, 2), "reference": [reference] * 3}
    assert choice(columns, **times) == Choice(is_integer, PACKED)


@pytest.mark.parametrize(("prompt", "is_integer"), [(1.5, True), (3.0, False)])
def test_all_numbers_of_tokens_decide_together(prompt: float, is_integer: bool) -> None:
    """Twice as fast for one token, three times as slow for a prompt: the reference."""
    times = {"packed": (1, 1, prompt), "fbgemm": (9, 9, 9), "reference": (2, 1, 1)}
    assert choice(**times).is_integer is is_integer


def test_what_only_the_median_says_changes_nothing() -> None:
    """A machine that was busy while the usual one ran."""
    noisy = (40, 1)
    times: Any = {"packed": [noisy] * 3, "fbgemm": [(1, 1)] * 3, "reference": [(2, 2)] * 3}
    assert choice(**times) == Choice(True, PACKED)
    times = {"packed": [(1, 1)] * 3, "fbgemm": [(9, 9)] * 3, "reference": [(0.5, 2)] * 3}
    assert choice(**times) == Choice(True, PACKED)
    times = {"packed": [(1, 1)] * 3, "fbgemm": [(9, 9)] * 3, "reference": [noisy] * 3}
    assert choice(NARROW, **times) == Choice(False, PACKED)


@pytest.mark.parametrize("columns", [WIDE, NARROW])
def test_without_times_the_rule_decides(columns: int) -> None:
    assert decide({}, ["packed", "fbgemm"], columns) == Choice(columns == WIDE, PACKED)


@pytest.mark.parametrize(("ratio", "kernel"), [(1.49, "packed"), (1.51, "cuda")])
def test_on_an_accelerator_one_kernel_runs_every_number_of_tokens(
    ratio: float, kernel: Any
) -> None:
    """The mean decides, a prompt that is faster by another does not."""
    times = {"packed": (1, ratio, ratio**2), "cuda": (1, 1, 1), "reference": (9, 9, 9)}
    found = choice(device_type="cuda", **times)
    assert found == Choice(True, (kernel,) * 3, "cuda")


@pytest.mark.parametrize(("reference", "is_integer"), [(1 / 1.49, True), (1 / 1.51, False)])
def test_on_an_accelerator_the_reference_must_be_worth_its_memory(
    reference: float, is_integer: bool
) -> None:
    times = {"packed": (1, 1, 1), "cuda": (9, 9, 9), "reference": [reference] * 3}
    assert choice(device_type="cuda", **times) == Choice(is_integer, PACKED, "cuda")
    assert choice(**times) == Choice(False, PACKED)


@pytest.mark.parametrize("columns", [WIDE, NARROW])
@pytest.mark.parametrize(
    ("failing", "is_integer", "kernel"),
    [
        ({"packed"}, True, "cuda"),
        ({"cuda"}, True, "packed"),
        ({"packed", "cuda"}, False, "packed"),
        ({"packed", "cuda", "reference"}, False, "packed"),
        ({"reference"}, None, "packed"),
    ],
)
def test_what_failed_is_left_out(
    failing: set[str], is_integer: bool | None, kernel: Any, columns: int
) -> None:
    """Without the reference the rule decides between it and integers."""
    times: dict[str, Any] = {"packed": (1, 1, 1), "cuda": (2, 2, 2), "reference": (9, 9, 9)}
    times |= dict.fromkeys(failing, ())
    expected = columns == WIDE if is_integer is None else is_integer
    assert choice(columns, "cuda", **times) == Choice(expected, (kernel,) * 3, "cuda")
