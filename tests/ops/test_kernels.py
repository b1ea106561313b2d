"""The C kernel against 64-bit integer arithmetic; skipped where it cannot be compiled."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duquant.ops.kernels import int4
from duquant.ops.packing import pack
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
    product = int4.int4_product(q, pack(w, 4), largest)
    assert torch.equal(product.long(), expected(q, w))


@pytest.mark.parametrize("columns", [4096, 11008])
@pytest.mark.parametrize("largest", [15, 127])
def test_the_largest_sums_are_exact(columns: int, largest: int) -> None:
    q = torch.full((5, columns), largest, dtype=torch.uint8)
    w = torch.full((3, columns), 15, dtype=torch.uint8)
    w[1] = 0
    assert torch.equal(int4.int4_product(q, pack(w, 4), largest).long(), expected(q, w))


def test_threads_and_tokens_change_nothing() -> None:
    """Tokens are taken in blocks that fit the cache: more of them than one block holds."""
    q = torch.randint(0, 16, (150, 4096), dtype=torch.uint8)
    w = torch.randint(0, 16, (130, 4096), dtype=torch.uint8)
    packed, before = pack(w, 4), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(int4.int4_product(q, packed, 15).long(), expected(q, w))
    finally:
        torch.set_num_threads(before)


def test_the_operator_is_sound() -> None:
    q = torch.randint(0, 16, (2, 32), dtype=torch.uint8)
    packed = torch.randint(0, 256, (3, 16), dtype=torch.uint8)
    torch.library.opcheck(torch.ops.duquant.int4_product, (q, packed, 15))


def test_it_can_be_turned_off() -> None:
    code = "from duquant.ops.kernels import int4; print(int4.is_available())"
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={"DUQUANT_KERNELS": "0", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.strip() == "False"
