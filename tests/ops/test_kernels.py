"""The C kernel against 64-bit integer arithmetic; skipped where it cannot be compiled."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duquant.ops.affine import AffineGrid
from duquant.ops.kernels import int4
from duquant.ops.packing import pack
from duquant.ops.quantized_tokens import encode_tokens
from tests.forked_process import run_forked
from tests.outliers import seeds

pytestmark = pytest.mark.skipif(
    not int4.is_available(), reason="needs an x86 processor with AVX2 and a C compiler"
)


def expected(q: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return q.long() @ (w.long() - int4.OFFSET).T


@given(
    seeds,
    st.integers(1, 13),
    st.integers(1, 70),
    st.integers(1, 300).map(lambda half: 2 * half),
    st.sampled_from([3, 15, 127]),
)
def test_products_are_exact(seed: int, rows: int, out: int, columns: int, largest: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(0, largest + 1, (rows, columns), generator=generator, dtype=torch.uint8)
    w = torch.randint(0, 16, (out, columns), generator=generator, dtype=torch.uint8)
    q[0] = largest
    w[0] = 15
    product = int4.packed_product(q, pack(w, 4), largest)
    assert torch.equal(product.long(), expected(q, w))


@pytest.mark.parametrize("columns", [4096, 11008])
@pytest.mark.parametrize("largest", [15, 127])
def test_the_largest_sums_are_exact(columns: int, largest: int) -> None:
    q = torch.full((5, columns), largest, dtype=torch.uint8)
    w = torch.full((3, columns), 15, dtype=torch.uint8)
    w[1] = 0
    assert torch.equal(int4.packed_product(q, pack(w, 4), largest).long(), expected(q, w))


@pytest.mark.parametrize("tokens", [1, 40])
def test_no_columns_sum_to_zero(tokens: int) -> None:
    q, packed = (torch.zeros(rows, 0, dtype=torch.uint8) for rows in (tokens, 3))
    assert torch.equal(int4.packed_product(q, packed, 15), torch.zeros(tokens, 3))


def test_threads_and_tokens_change_nothing() -> None:
    """Tokens are taken in blocks that fit the cache: more of them than one block holds."""
    q = torch.randint(0, 16, (150, 4096), dtype=torch.uint8)
    w = torch.randint(0, 16, (130, 4096), dtype=torch.uint8)
    packed, before = pack(w, 4), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(int4.packed_product(q, packed, 15).long(), expected(q, w))
    finally:
        torch.set_num_threads(before)


@given(seeds, st.integers(1, 13), st.integers(1, 70), st.integers(1, 100), st.booleans())
def test_the_linear_is_its_formula(
    seed: int, rows: int, out: int, half: int, has_bias: bool
) -> None:
    """The same float32 operations in the same order on exact integers: equal to the last bit."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 16, (rows, 2 * half), generator=generator, dtype=torch.uint8)
    w = torch.randint(0, 16, (out, 2 * half), generator=generator, dtype=torch.uint8)
    grid = AffineGrid(
        torch.rand(rows, 1, generator=generator) + 0.1,
        torch.randint(-20, 36, (rows, 1), generator=generator).float(),
    )
    scale = torch.rand(out, generator=generator)
    zero = torch.randint(-8, 8, (out,), generator=generator).float()
    sums = (w.float() - int4.OFFSET).sum(dim=1) - 2 * half * zero
    bias = torch.randn(out, generator=generator) if has_bias else None
    exact = expected(q, w).float() - grid.zero * sums - q.sum(1, keepdim=True) * zero
    result = exact * scale * grid.scale
    result = result if bias is None else result + bias
    arguments = (encode_tokens(q, grid), pack(w, 4), scale, zero, sums, bias, 15)
    assert torch.equal(int4.packed_linear(*arguments, torch.float32), result)
    assert torch.equal(int4.packed_linear(*arguments, torch.bfloat16), result.bfloat16())


def test_what_is_not_finite_stays_in_its_token() -> None:
    q = torch.randint(0, 16, (3, 32), dtype=torch.uint8)
    grid = AffineGrid(torch.tensor([[1.0], [float("nan")], [2.0]]), torch.zeros(3, 1))
    ones = torch.ones(5)
    arguments = (encode_tokens(q, grid), pack(q[:1].repeat(5, 1), 4), ones, ones, ones, None, 15)
    for dtype in (torch.float32, torch.bfloat16):
        finite = int4.packed_linear(*arguments, dtype).isfinite()
        assert finite.all(dim=1).tolist() == [True, False, True]
        assert not finite[1].any()


def test_they_are_right_whatever_dtype_is_the_default() -> None:
    """vLLM sets a model's dtype as the default while it loads the weights."""
    code = "import torch; torch.set_default_dtype(torch.bfloat16);"
    code += "from duquant.ops.kernels import int4, rows, screen, transform;"
    code += "print([each._library() is None for each in (int4, rows, screen, transform)])"
    run = [sys.executable, "-W", "ignore", "-c", code]
    process = subprocess.run(run, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == str([False] * 4), process.stderr


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"DUQUANT_KERNELS": "0"}, ""),
        ({"CC": ""}, "there is no C compiler ''"),
        ({"CC": "no-such-compiler -O1"}, "there is no C compiler 'no-such-compiler -O1'"),
        ({"CC": "false"}, "the C compiler failed: Command '['false', "),
        ({"CC": "cc -include no-such-header.h"}, "compilation terminated."),
        ({"CC": "cc '"}, "they cannot be compiled or loaded (No closing quotation)"),
        ({"XDG_CACHE_HOME": "/proc"}, "([Errno 2] No such file or directory: '/proc/duquant')"),
    ],
    ids=str,
)
def test_it_may_be_off_or_missing_and_says_so_once(setting: dict[str, str], reason: str) -> None:
    kernels = "int4, rows, screen, transform"
    code = f"from duquant.ops.kernels import {kernels}; int4.is_available(); rows.is_available();"
    code += "transform.panel_width(); print(int4.is_available())"
    process = run_forked(["-c", code], {"PATH": os.environ["PATH"], **setting})
    assert (process.returncode, process.stdout.strip()) == (0, "False"), process.stderr
    assert process.stderr.count("C kernels are off") == bool(reason)
    assert reason in process.stderr
