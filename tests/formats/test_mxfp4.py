"""MXFP4 beside a slow implementation of its definition."""

import pytest
import torch
from torch import Tensor

from duquant.formats.mxfp4 import MXFP4
from duquant.formats.number_format import Clip, split_rows
from tests.number_rows import adversarial_rows, ordinary_rows
from tests.slow_formats import mxfp4_group


@pytest.mark.parametrize(
    "x", [adversarial_rows(64), ordinary_rows(64, 0)], ids=["adversarial", "ordinary"]
)
def test_codes_and_scales_are_those_of_the_definition(x: Tensor) -> None:
    form = MXFP4()
    groups = split_rows(x, 32)
    grid = form.grid(groups)
    codes = form.codes(groups, grid)
    stored = form.store(codes.view(x.shape), grid)
    for group, own, byte in zip(groups, codes, stored["scale"].flatten().tolist(), strict=True):
        assert (byte, own.tolist()) == mxfp4_group(group.tolist())


def test_a_worked_example() -> None:
    x = torch.zeros(1, 32)
    x[0, :5] = torch.tensor([7.9, -3.5, 0.25, -0.1, 5.0])
    form = MXFP4()
    grid = form.grid(x)
    stored = form.store(form.codes(x, grid), grid)
    assert grid[0].item() == 1.0  # 2^(2 - 2)
    assert form.values(form.codes(x, grid), grid)[0, :5].tolist() == [6, -4, 0, 0, 4]
    assert stored["scale"].item() == 127
    assert stored["packed"][0, :3].tolist() == [0xE7, 0x80, 0x06]  # the first entry in the low half


def test_infinite_entries_stay_infinite_and_poison_their_group_alone() -> None:
    x = torch.ones(2, 64)
    x[0, 3] = torch.inf
    x[1, 40] = torch.nan
    values = MXFP4().fake_quantize(split_rows(x, 32)).view(2, 64)
    assert values[0, 3] == torch.inf
    assert values[0, :3].eq(0).all()
    assert values[0, 32:].eq(1).all()
    assert values[1, 32:].isnan().all()
    assert values[1, :32].eq(1).all()


def test_a_clip_factor_of_two_saves_the_largest_entry() -> None:
    x = torch.zeros(1, 32)
    x[0, 0] = 7.9
    assert MXFP4().fake_quantize(x)[0, 0] == 6
    assert MXFP4().fake_quantize(x, Clip(2.0, 2.0))[0, 0] == 8


@pytest.mark.parametrize("group_size", [0, 33, 128])
def test_other_groups_are_refused(group_size: int) -> None:
    with pytest.raises(ValueError, match=f"group_size is {group_size}; mxfp4 has groups of 32"):
        MXFP4(group_size)
