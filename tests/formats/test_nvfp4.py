"""NVFP4 beside a slow implementation of its definition."""

import pytest
import torch
from torch import Tensor

from duquant.formats.number_format import Clip, split_rows
from duquant.formats.nvfp4 import NVFP4
from tests.number_rows import LARGEST, adversarial_rows, ordinary_rows
from tests.slow_formats import nvfp4_group

ADVERSARIAL = adversarial_rows(32)
EVERYDAY = ADVERSARIAL[(ADVERSARIAL.abs().amax(-1) < 1e3) & (ADVERSARIAL.abs().amax(-1) > 1e-3)]


@pytest.mark.parametrize(
    ("x", "peak"),
    [
        (ADVERSARIAL, None),
        (ordinary_rows(32, 0), None),
        (ordinary_rows(32, 1), 1e3),  # some groups saturate
        (EVERYDAY, None),
        (EVERYDAY, 2688.0 * 2**-6),  # a power of two as global scale: all ties are exact
        (EVERYDAY, 0.7),
        (EVERYDAY, 1e5),  # scales that E4M3 cannot tell from zero
    ],
)
def test_codes_and_scales_are_those_of_the_definition(x: Tensor, peak: float | None) -> None:
    form = NVFP4()
    groups = split_rows(x, 16)
    grid = form.grid(groups, peak=None if peak is None else torch.tensor(peak))
    codes = form.codes(groups, grid)
    stored = form.store(codes.view(x.shape), grid)
    for group, own, byte in zip(groups, codes, stored["scale"].flatten().tolist(), strict=True):
        expected = nvfp4_group(group.tolist(), peak or float(x.abs().max()))
        assert (byte, own.tolist()) == expected


def test_a_worked_example() -> None:
    x = torch.zeros(1, 16)
    x[0, :4] = torch.tensor([6.0, -2.6, 0.25, -0.1])
    form = NVFP4()
    grid = form.grid(x, peak=torch.tensor(2688.0))
    stored = form.store(form.codes(x, grid), grid)
    assert [part.item() for part in grid] == [1.0, 1.0]
    assert form.values(form.codes(x, grid), grid)[0, :4].tolist() == [6, -3, 0, 0]
    assert stored["scale"].item() == 0b0_0111_000
    assert stored["global_scale"].tolist() == [1.0]
    assert stored["packed"][0, :2].tolist() == [0xD7, 0x80]


@pytest.mark.parametrize("peak", [0.0, 2.0**-149, 1e-38, 1e38, LARGEST, torch.inf])
def test_no_peak_leads_to_a_division_by_zero(peak: float) -> None:
    x = torch.zeros(3, 16)
    x[1, 0], x[2] = min(peak, LARGEST), torch.linspace(-1, 1, 16)
    for given in (None, torch.tensor(peak)):
        values = NVFP4().fake_quantize(x, peak=given)
        assert values.isfinite().all()
        assert values[0].eq(0).all()
    assert NVFP4().fake_quantize(torch.zeros(2, 16)).eq(0).all()


def test_what_exceeds_the_calibrated_peak_saturates() -> None:
    x = torch.tensor([[1.0, 50.0] + [0.0] * 14])
    assert NVFP4().fake_quantize(x, peak=torch.tensor(5.0)).amax().item() == pytest.approx(5.0)
    x[0, 1] = torch.inf
    assert NVFP4().fake_quantize(x, peak=torch.tensor(5.0)).amax().item() == pytest.approx(5.0)


def test_the_peak_is_the_tensors_and_untouched_by_clipping() -> None:
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    _, global_scale = NVFP4().grid(x, Clip(0.5, 0.5))
    assert torch.equal(global_scale, (x.abs().max() / 2688).expand(4, 1))


@pytest.mark.parametrize("group_size", [0, 17, 32])
def test_other_groups_are_refused(group_size: int) -> None:
    with pytest.raises(ValueError, match=f"group_size is {group_size}; nvfp4 has groups of 16"):
        NVFP4(group_size)
