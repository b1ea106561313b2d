"""MXFP4 and NVFP4 beside compressed-tensors, whose files vLLM reads.

compressed-tensors rounds MXFP4's scale up where the largest entry would round past 7 (and cannot in
the last binade of a float32), gives groups that NVFP4's scales cannot tell from zero a scale of
0.125, and loses the sign of a negative zero. The rest is equal.
"""

import pytest
import torch
from torch import Tensor

from duquant.formats.mxfp4 import MXFP4
from duquant.formats.number_format import split_rows
from duquant.formats.nvfp4 import NVFP4
from duquant.ops.e2m1 import e2m1_codes, e2m1_values
from duquant.ops.e4m3 import SMALLEST
from duquant.ops.packing import unpack
from tests.number_rows import adversarial_rows, ordinary_rows

pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors.mx_utils import (
    compress_mx_scale,
    decompress_mx_scale,
)
from compressed_tensors.compressors.nvfp4.helpers import (
    quantize_and_pack_fp4,
    unpack_fp4_from_uint8,
)
from compressed_tensors.quantization.quant_scheme import (
    MXFP4 as MXFP4_SCHEME,
)
from compressed_tensors.quantization.quant_scheme import (
    NVFP4 as NVFP4_SCHEME,
)
from compressed_tensors.quantization.utils.helpers import (
    calculate_qparams,
    generate_gparam,
)

COLUMNS = 64
ROWS = [adversarial_rows(COLUMNS), *(ordinary_rows(COLUMNS, seed) for seed in range(5))]


def their_groups(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    groups = x.unflatten(-1, (-1, size))
    return groups.amin(-1), groups.amax(-1)


@pytest.mark.parametrize("x", ROWS)
def test_mxfp4(x: Tensor) -> None:
    form = MXFP4()
    rows = split_rows(x, form.group_size)
    grid = form.grid(rows)
    stored = form.store(form.codes(rows, grid).view(x.shape), grid)
    scale = grid[0].view(len(x), -1)
    packed = quantize_and_pack_fp4(x.clone(), scale, group_size=form.group_size)
    own, theirs = (e2m1_values(unpack(p, 4, COLUMNS)) for p in (stored["packed"], packed))
    assert torch.equal(theirs, own)
    values = unpack_fp4_from_uint8(stored["packed"], len(x), COLUMNS, torch.float32)
    values = (
        values.unflatten(-1, (-1, 32)) * decompress_mx_scale(stored["scale"]).float()[..., None]
    )
    assert torch.equal(values.reshape(rows.shape), form.values(form.codes(rows, grid), grid))

    theirs, _ = calculate_qparams(*their_groups(x, 32), MXFP4_SCHEME["weights"])
    theirs = compress_mx_scale(theirs, torch.int32)
    largest = x.unflatten(-1, (-1, 32)).abs().amax(-1)
    rounds_up = largest.frexp().mantissa * 2 >= 1.75
    normal = (stored["scale"] > 0) & (largest < 1.75 * 2.0**127)
    assert normal.float().mean() > 0.5
    assert torch.equal(theirs[normal], (stored["scale"].int() + rounds_up)[normal])


@pytest.mark.parametrize("x", ROWS)
@pytest.mark.parametrize("peak", [None, 2688.0 * 2**-6])
def test_nvfp4(x: Tensor, peak: float | None) -> None:
    form = NVFP4()
    rows = split_rows(x, form.group_size)
    largest = x.abs().max() if peak is None else torch.tensor(peak)
    grid = form.grid(rows, peak=largest)
    stored = form.store(form.codes(rows, grid).view(x.shape), grid)
    their_global = generate_gparam(-largest, largest)
    torch.testing.assert_close(stored["global_scale"], 1 / their_global)
    theirs, _ = calculate_qparams(
        *their_groups(x, 16), NVFP4_SCHEME["weights"], global_scale=their_global
    )
    ours = grid[0].view(len(x), -1)
    tiny = ours == SMALLEST
    assert torch.equal(theirs[~tiny], ours[~tiny])
    packed = quantize_and_pack_fp4(x.clone(), ours, global_scale=their_global, group_size=16)
    # Their step is scale / (1 / g), ours scale · g: the last digit may differ, and decide a tie.
    quotient = rows / (grid[0] * grid[1])
    decided = e2m1_codes(quotient * (1 + 1e-6)) == e2m1_codes(quotient * (1 - 1e-6))
    own, theirs = (e2m1_values(unpack(p, 4, COLUMNS)) for p in (stored["packed"], packed))
    differs = (theirs != own).view(rows.shape)
    assert not (differs & decided).any()
    assert not differs.any() or peak is None  # a power of two as global scale: all is exact
