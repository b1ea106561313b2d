"""A frozen linear beside ``F.linear``: the same output, the same gradient, a weight made twice."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from duquant.ops.frozen_linear import frozen_linear
from duquant.ops.gradient import records_gradient


def a_source(weight: Tensor, asked: list[torch.dtype]) -> Callable[[torch.dtype], Tensor]:
    def make(dtype: torch.dtype) -> Tensor:
        asked.append(dtype)
        return weight.to(dtype)

    return make


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_value_and_gradient(dtype: torch.dtype, shape: tuple[int, ...], has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    weight = torch.randn(4, 5, generator=generator).to(dtype)
    bias = torch.randn(4, generator=generator).to(dtype) if has_bias else None
    x, asked = torch.randn(shape, generator=generator).to(dtype), list[torch.dtype]()
    results = []
    for product in (
        lambda x, bias: frozen_linear(x, a_source(weight, asked), bias),
        lambda x, bias: F.linear(x, weight, bias),
    ):
        leaf = x.clone().requires_grad_()
        own_bias = None if bias is None else bias.clone().requires_grad_()
        output = product(leaf, own_bias)
        output.square().sum().backward()
        assert leaf.grad is not None
        of_bias = [] if own_bias is None else [own_bias.grad]
        results.append((output.detach(), leaf.grad, *of_bias))
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected)
    assert asked == [dtype, dtype], "once forward, once backward"


def test_when_a_gradient_is_recorded() -> None:
    x = torch.ones(2)
    assert not records_gradient(x)
    assert records_gradient(x.requires_grad_())
    with torch.no_grad():
        assert not records_gradient(x)
