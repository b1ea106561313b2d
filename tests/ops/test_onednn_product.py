"""oneDNN is used after it has multiplied the largest integers without an error, and not before."""

from typing import Any

import pytest
import torch
from torch import Tensor

from duquant.ops import onednn_product
from duquant.ops.integer_product import layout_kernels

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(
    "onednn" not in layout_kernels(CPU), reason="oneDNN is not exact or not there"
)


def measured_bits() -> int:
    return onednn_product.exact_bits.__wrapped__()


@needs_onednn
@pytest.mark.parametrize(
    ("limit", "expected"), [(1 << 20, 16), (255 * 64 * 2, 15), (255 * 64 * 2 - 1, 0)]
)
def test_only_widths_without_an_error_are_used(
    limit: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(onednn_product, "_is_exact", _exact_in_arithmetic(limit))
    assert measured_bits() == expected


def _exact_in_arithmetic(limit: int) -> Any:
    """The self-test of an engine whose pairs of products are cut at ``limit``."""
    is_exact = onednn_product._is_exact

    def pretended(bits: int) -> bool:
        def exact_pairs(q: Tensor, packed: Tensor) -> Tensor:
            weight = packed.to_dense().double()
            lost = (q.double()[:, 0:2] @ weight[0:2]).abs() > limit
            return (q.double() @ weight + lost).float()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onednn_product, "_multiplied", exact_pairs)
            return is_exact(bits)

    return pretended


@needs_onednn
def test_without_wide_vectors_eight_times_eight_bits_are_never_one_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(onednn_product, "_is_exact", lambda bits: True)
    assert measured_bits() == 15


def _raise(*_: Any) -> Tensor:
    raise RuntimeError("no such operator")


def test_an_operator_of_another_kind_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_product, "_laid_out", _raise)
    assert measured_bits() == 0


@needs_onednn
def test_a_layout_that_changes_integers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out = onednn_product._laid_out
    monkeypatch.setattr(onednn_product, "_laid_out", lambda q: laid_out(q.roll(1, 0)))
    assert measured_bits() == 0


def test_without_it_other_kernels_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duquant.ops.integer_product.exact_bits", lambda: 0)
    assert "onednn" not in layout_kernels(CPU)
