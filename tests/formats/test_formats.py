"""What every number format has to do, whatever its numbers are."""

import pickle

import pytest
import torch
from torch import Tensor

from duquant.formats.integer import Integer
from duquant.formats.mxfp4 import MXFP4
from duquant.formats.number_format import Clip, Grid, NumberFormat, largest_divisor, split_rows
from duquant.formats.nvfp4 import NVFP4
from duquant.formats.table import FORMATS
from duquant.formats.unquantized import Unquantized
from tests.number_rows import adversarial_rows, ordinary_rows

QUANTIZED: list[NumberFormat] = [kind() for kind in FORMATS.values() if kind is not Unquantized]
VARIANTS: list[NumberFormat] = [
    Integer(bits=2, symmetric=True),
    Integer(bits=3, group_size=16),
    Integer(bits=8, symmetric=True, group_size=64),
    Integer(bits=11),
    MXFP4(group_size=8),
    NVFP4(group_size=4),
]
FORMS = QUANTIZED + VARIANTS
every_format = pytest.mark.parametrize("form", FORMS, ids=repr)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COLUMNS = 64


def rows_of(form: NumberFormat, seed: int | None = None) -> Tensor:
    x = adversarial_rows(COLUMNS) if seed is None else ordinary_rows(COLUMNS, seed)
    return split_rows(x, form.group_size)


def part(grid: Grid, rows: slice) -> Grid:
    return tuple(tensor[rows] for tensor in grid)


@every_format
@pytest.mark.parametrize("seed", [None, 0])
def test_codes_fit_and_fake_quantization_is_their_values(
    form: NumberFormat, seed: int | None
) -> None:
    x = rows_of(form, seed)
    grid = form.grid(x)
    codes = form.codes(x, grid)
    assert codes.dtype == (torch.uint8 if form.bits <= 8 else torch.int32)
    assert codes.shape == x.shape
    assert 0 <= int(codes.min()) <= int(codes.max()) < 2**form.bits
    assert all(tensor.shape == (len(x), 1) for tensor in grid)
    values = form.values(codes, grid)
    assert values.dtype == grid[0].dtype
    assert not values.isnan().any()
    assert torch.equal(form.fake_quantize(x), values)


@every_format
@pytest.mark.parametrize("seed", [None, 1])
def test_values_have_the_codes_they_came_from(form: NumberFormat, seed: int | None) -> None:
    x = rows_of(form, seed)
    grid = form.grid(x)
    values = form.values(form.codes(x, grid), grid)
    assert torch.equal(form.values(form.codes(values, grid), grid), values)


@every_format
@pytest.mark.parametrize("seed", [None, 2])
def test_what_is_stored_comes_back(form: NumberFormat, seed: int | None) -> None:
    rows = rows_of(form, seed)
    grid = form.grid(rows)
    codes = form.codes(rows, grid).view(-1, COLUMNS)
    stored = form.store(codes, grid)
    shapes = form.stored_shapes(len(codes), COLUMNS)
    assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == shapes
    assert list(stored) == list(shapes)
    restored, its_grid = form.restore(stored, COLUMNS)
    assert torch.equal(restored, codes)
    assert all(torch.equal(*pair) for pair in zip(its_grid, grid, strict=True))


@every_format
def test_parts_of_the_rows_are_cut_and_joined_like_them(form: NumberFormat) -> None:
    x = ordinary_rows(COLUMNS, 3)
    peak = x.abs().amax()
    rows = split_rows(x, form.group_size)
    per_row = len(rows) // len(x)
    whole = form.grid(rows, peak=peak)
    cut = slice(2 * per_row, 7 * per_row)
    own = form.grid(rows[cut], peak=peak)
    assert all(torch.equal(*pair) for pair in zip(own, part(whole, cut), strict=True))
    stored = form.store(form.codes(rows, whole).view(x.shape), whole)
    mine = form.store(form.codes(rows[cut], own).view(-1, COLUMNS), own)
    for name, tensor in stored.items():
        assert torch.equal(mine[name], tensor[2:7] if tensor.ndim == 2 else tensor)


@every_format
def test_groups_are_rows_of_their_own(form: NumberFormat) -> None:
    if form.group_size is None:
        return
    x, peak = ordinary_rows(COLUMNS, 4), torch.tensor(1e9)
    together = form.fake_quantize(split_rows(x, form.group_size), peak=peak).view(x.shape)
    for start in range(0, COLUMNS, form.group_size):
        group = slice(start, start + form.group_size)
        assert torch.equal(form.fake_quantize(x[:, group], peak=peak), together[:, group])


@every_format
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_are_kept_and_half_precision_is_widened(
    form: NumberFormat, dtype: torch.dtype
) -> None:
    x = rows_of(form, 5).clamp(-6e4, 6e4).to(dtype)
    quantized = form.fake_quantize(x)
    assert quantized.dtype == dtype
    assert quantized.isfinite().all()
    if dtype != torch.float64:
        assert torch.equal(quantized, form.fake_quantize(x.float()).to(dtype))
        assert all(tensor.dtype == torch.float32 for tensor in form.grid(x))
        assert torch.equal(form.codes(x, form.grid(x)), form.codes(x.float(), form.grid(x)))


@every_format
@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64), (64,), (2, 3, 4, 64)])
def test_any_leading_dimensions(form: NumberFormat, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    assert torch.equal(form.fake_quantize(x), form.fake_quantize(x.reshape(-1, 64)).view(shape))
    grid = form.grid(x)
    assert all(tensor.shape == (*shape[:-1], 1) for tensor in grid)
    assert form.values(form.codes(x, grid), grid).shape == shape


@every_format
def test_strides_do_not_matter(form: NumberFormat) -> None:
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(7)).t()
    assert torch.equal(form.fake_quantize(x), form.fake_quantize(x.contiguous()))


@every_format
def test_clipping_shrinks_a_range_by_row(form: NumberFormat) -> None:
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(8))
    x, peak = torch.cat([x[:1], x[:1]]), x.abs().amax()
    ratios = torch.tensor([[1.0], [0.25]])
    clipped = form.fake_quantize(x, Clip(ratios, ratios), peak)
    assert torch.equal(clipped[0], form.fake_quantize(x, peak=peak)[0])
    assert clipped[1].abs().max() < 0.75 * clipped[0].abs().max()
    assert torch.equal(clipped, form.fake_quantize(x, Clip(ratios, ratios, True), peak))


@every_format
@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_errors_are_as_small_as_the_bits_allow(form: NumberFormat, size: float) -> None:
    """A bound that a wrong scale, a swapped group or a lost sign breaks."""
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(11)) * size
    error = form.fake_quantize(split_rows(x, form.group_size)).view(x.shape) - x
    share = {2: 0.6, 3: 0.05, 4: 0.02}.get(form.bits, 1e-4)
    assert error.square().sum() <= share * x.square().sum()


@pytest.mark.parametrize("form", [form for form in FORMS if not form.learns_clip_factors], ids=repr)
def test_rounding_passes_its_gradient_straight_through(form: NumberFormat) -> None:
    x = rows_of(form, 9).requires_grad_()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    y = form.fake_quantize(x)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    assert torch.equal(gradient, upstream)
    assert not any(tensor.requires_grad for tensor in form.grid(x))
    assert torch.equal(y.detach(), form.fake_quantize(x.detach()))


@every_format
def test_a_gradient_of_half_precision_arrives_in_it(form: NumberFormat) -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(10)).bfloat16()
    x.requires_grad_()
    form.fake_quantize(x).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert x.grad.any()


@every_format
def test_the_group_fits_any_width(form: NumberFormat) -> None:
    for columns in range(1, 131):
        fitted = form.fitted_to(columns)
        assert type(fitted) is type(form)
        if form.group_size is None or fitted.group_size is None:
            assert fitted == form
            continue
        sizes = [size for size in range(1, form.group_size + 1) if columns % size == 0]
        assert fitted.group_size == max(sizes) == largest_divisor(columns, form.group_size)
        assert fitted.fitted_to(columns) == fitted
        assert fitted.stored_shapes(3, columns)["scale"][0] == (3, columns // max(sizes))


@pytest.mark.parametrize("form", [f for f in FORMS if f.group_size], ids=repr)
def test_rows_that_cannot_be_divided_are_named(form: NumberFormat) -> None:
    assert form.group_size is not None
    with pytest.raises(ValueError, match=f"groups of {form.group_size} do not divide rows of 101"):
        form.stored_shapes(2, 101)


@pytest.mark.parametrize("form", [*FORMS, Unquantized()], ids=repr)
def test_formats_are_values(form: NumberFormat) -> None:
    assert pickle.loads(pickle.dumps(form)) == form
    assert len({form, type(form)(), form}) == (1 if form == type(form)() else 2)
    with pytest.raises((AttributeError, TypeError)):
        form.bits = 5  # type: ignore[misc]
