"""Scenarios of what a GPU repeats bit by bit, and what it does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from duquant.modules.block import QuantBlock
from tests.emulated.counts import counting
from tests.emulated.scenarios import DEVICE, Facts, scenario
from tests.emulated.steps import measured


def _gradient(work: Callable[[Tensor], Tensor], *shape: int) -> Callable[[], None]:
    def forward_and_backward() -> None:
        x = torch.rand(shape).to(DEVICE).requires_grad_()
        work(x).sum().backward()

    return forward_and_backward


def _places(work: Callable[[], object]) -> int:
    with counting() as counts:
        work()
    return counts.unordered.total()


@scenario
def orders(folder: Path) -> Facts:
    """How often single operations may be computed in any order."""
    x, index = torch.rand(4, 6).to(DEVICE), torch.tensor([[1, 1]] * 4).to(DEVICE)
    row, first = index[0], index[:, :1]
    whole, table = torch.arange(6).to(DEVICE), torch.rand(8, 3).to(DEVICE)
    any_order: dict[str, Callable[[], object]] = {
        "index_add_": lambda: x.clone().index_add_(0, row, x[:2]),
        "index_copy_": lambda: x.clone().index_copy_(0, row, x[:2]),
        "index_put_": lambda: x.clone().index_put_((row,), x[:2]),
        "index_put_ that adds": lambda: x.clone().index_put_((row,), x[:2], accumulate=True),
        "put_": lambda: x.clone().put_(row, x[0, :2]),
        "scatter_ of tensors": lambda: x.clone().scatter_(1, index, x),
        "scatter_add_": lambda: x.clone().scatter_add_(1, index, x),
        "scatter_reduce_": lambda: x.clone().scatter_reduce_(1, index, x, "sum"),
        "histc": lambda: x.histc(4),
        "bincount": lambda: whole.bincount(x[0]),
        "cumsum": lambda: x.cumsum(1),
        "median": lambda: x.median(1),
        "gather": _gradient(lambda w: w.gather(1, index), 4, 6),
        "index_select": _gradient(lambda w: w.index_select(0, row), 4, 6),
        "indexing": _gradient(lambda w: w[row], 4, 6),
        "embedding": _gradient(lambda w: functional.embedding(row, w), 8, 3),
        "max_pool3d": _gradient(lambda w: functional.max_pool3d(w, 2), 1, 1, 4, 4, 4),
        "interpolate": _gradient(
            lambda w: functional.interpolate(w, scale_factor=2, mode="bilinear"), 1, 1, 4, 4
        ),
        "cross entropy": _gradient(lambda w: functional.cross_entropy(w, row), 2, 8),
        "attention": _gradient(
            lambda w: functional.scaled_dot_product_attention(w, w, w), 1, 2, 4, 8
        ),
    }
    one_order: dict[str, Callable[[], object]] = {
        "one index in a row": lambda: x.clone().scatter_add_(1, first, x),
        "scatter_ of a number": lambda: x.clone().scatter_(1, index, 2.0),
        "cumsum of integers": lambda: whole.cumsum(0),
        "median of all": x.median,
        "gather": lambda: x.gather(1, index),
        "embedding": lambda: functional.embedding(row, table),
        "product": _gradient(lambda w: w @ w.T, 4, 6),
        "norm": _gradient(lambda w: functional.layer_norm(w, (6,)), 4, 6),
        "sum": _gradient(lambda w: w.sum(0).softmax(0), 4, 6),
    }
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        one_order_math = _places(any_order["attention"])
    return {
        "any order": {name: _places(work) for name, work in any_order.items()},
        "one order": {
            "math attention": one_order_math,
            **{name: _places(work) for name, work in one_order.items()},
        },
    }


@scenario
def a_step_that_adds_in_any_order(folder: Path) -> Facts:
    """LWC with an operation in the loss of a block whose gradient CUDA adds up as it comes."""
    loss = QuantBlock.loss

    def selecting(self: QuantBlock, batch: Any) -> Tensor:
        value = loss(self, batch)
        twice = torch.zeros(2, dtype=torch.int64, device=value.device)
        return value.view(1).index_select(0, twice).mean()

    QuantBlock.loss = selecting  # type: ignore[method-assign]
    return {"LWC": measured(folder)}
