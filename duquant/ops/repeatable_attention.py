"""FlashAttention on CUDA whose gradients are the same bits every time.

By default its backward pass adds up the gradient of Q in whatever order its blocks end. PyTorch has
a second way that adds in one order, taken while deterministic algorithms are asked for
(``torch.use_deterministic_algorithms``). That switch stands for everything which runs meanwhile,
and products refuse to run under it unless ``CUBLAS_WORKSPACE_CONFIG`` is set. So it is turned on
for attention's backward pass alone, which computes the forward pass once more to have one of its
own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention's output from Q, K and V of shape (sequences, heads, tokens, head_dim)."""
LEAST_CAPABILITY, SURE_WIDTH = (8, 0), 192
"""Compute capability that CUDA's FlashAttention needs, and channels of a head that it takes there,
with gradients, whatever the GPU."""


def can_repeat_flash(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> bool:
    """Whether FlashAttention computes this on CUDA and repeats it: half precision, no mask.

    Args:
        query: shape (sequences, heads, tokens, head_dim).
        key: likewise, perhaps with fewer heads.
        value: as ``key``.
        mask: of attention, None for a causal one.
        dropout: probability of leaving a score out.
    """
    is_plain = mask is None and dropout == 0 and not torch.compiler.is_compiling()
    if not (is_plain and _heeds_the_switch(query.device)):
        return False
    few = key.shape[1] != query.shape[1]
    asked = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, True, few)
    return torch.backends.cuda.can_use_flash_attention(asked)


def _heeds_the_switch(device: torch.device) -> bool:
    """AMD's GPUs are left out: not all of their kernels do."""
    return device.type == "cuda" and torch.version.hip is None


def repeats_flash_on(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether training's attention without a mask will be :func:`repeatable_flash`, beforehand.

    Where it may be or not (heads of more than 192, on some GPUs) it says no: then more memory is
    counted than is needed.
    """
    return (
        _heeds_the_switch(device)
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim <= SURE_WIDTH
        and torch.backends.cuda.is_flash_attention_available()
        and torch.backends.cuda.flash_sdp_enabled()
        and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
    )


def repeatable_flash(attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What ``attend`` computes by FlashAttention; gradients are added in one order.

    Gradients of gradients are refused: FlashAttention has none.

    Args:
        attend: computes attention by ``scaled_dot_product_attention``, the same every time.
        query: shape (sequences, heads, tokens, head_dim), as :func:`can_repeat_flash` allows it.
        key: likewise.
        value: likewise.
    """
    output: Tensor = _RepeatableFlash.apply(attend, query, key, value)
    return output


class _RepeatableFlash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attend: Attend, *operands: Tensor) -> Tensor:
        ctx.attend = attend
        ctx.save_for_backward(*operands)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return attend(*operands)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        operands = [operand.detach().requires_grad_() for operand in ctx.saved_tensors]
        with torch.enable_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION), _in_one_order():
            output = ctx.attend(*operands)
            return (None, *torch.autograd.grad(output, operands, gradients))


@contextmanager
def _in_one_order() -> Iterator[None]:
    """Meanwhile kernels add in one order; empty memory is not filled, as it else would be."""
    settings: Any = torch.utils.deterministic
    mode, fills = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        settings.fill_uninitialized_memory = fills
