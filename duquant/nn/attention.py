"""Quantized attention: Q, K and V in few bits, without copying any model's attention code.

transformers lets a process register attention functions by name. ``duquant_attention`` quantizes Q,
K and V and hands them to the implementation that the model is set to, by default PyTorch's scaled
dot product attention. A quantized attention module asks for ``duquant_attention`` by a
configuration of its own, so ``model.set_attn_implementation`` may choose what computes and never
whether Q, K and V are quantized. A module without an ``attention_quantizer`` is passed through
untouched, so the name may stand in a model's configuration too. It is registered for masks as well:
without that transformers would build no mask for it, and the model would silently see the future.

Where a gradient is recorded on a GPU, the fused kernels' backward passes add in whatever order
their blocks end, and what is trained, or resumed, twice would differ in its last bits. So scaled
dot product attention then takes a way that repeats them: FlashAttention in one order
(:mod:`duquant.ops.repeatable_attention`) where CUDA has it for the tensors at hand, else plain
matrix products.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from duquant.nn.attention_quantizer import ATTENTION_NAME, AttentionQuantizer
from duquant.ops.gradient import records_gradient
from duquant.ops.repeatable_attention import can_repeat_flash, repeatable_flash

IMPLEMENTATIONS = ("sdpa", "eager", ATTENTION_NAME)
"""What a model may be set to; our own name means sdpa."""
BIASES = "duquant_biases"
"""Keyword argument of the attention function: biases, and whether K and V have theirs already."""
AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


def duquant_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention function with transformers' signature; shapes as in ``sdpa_attention_forward``."""
    quantizer = getattr(module, "attention_quantizer", None)
    attend: AttentionFunction = sdpa_attention_forward
    if quantizer is not None:
        if BIASES not in kwargs:
            raise ValueError(f"{type(module).__name__} passes no keyword arguments on to attention")
        biases, are_quantized = kwargs.pop(BIASES)
        query, key, value = quantizer(query, key, value, biases, are_quantized=are_quantized)
        attend = _implementation(module, quantizer.implementation())
    if query.device.type == "cpu" or not any(map(records_gradient, (query, key, value))):
        return attend(module, query, key, value, attention_mask, **kwargs)
    return _repeatable(attend, module, query, key, value, attention_mask, **kwargs)


def install_attention_quantizer(attention: nn.Module, quantizer: AttentionQuantizer) -> None:
    """Let a decoder's attention module quantize, whatever implementation its model is set to."""
    own: Any = copy.copy(attention.config)
    own._attn_implementation_internal = ATTENTION_NAME
    quantizer.model_config, attention.config = attention.config, own
    attention.attention_quantizer = quantizer


def require_implementation(name: str | None) -> None:
    """Refuse an attention implementation that cannot be given quantized Q, K and V.

    Raises:
        ValueError: naming it and those that can.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"attn_implementation is {name!r}; a quantized model runs with "
            f"{' or '.join(IMPLEMENTATIONS[:2])}"
        )


def _repeatable(
    attend: AttentionFunction,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention on a GPU whose gradients are the same bits every time."""

    def output(*operands: Tensor) -> Tensor:
        return attend(module, *operands, mask, **kwargs)[0]

    biases = mask if mask is not None else kwargs.get("position_bias")
    fused = attend is sdpa_attention_forward
    if fused and can_repeat_flash(query, key, value, biases, kwargs.get("dropout", 0.0)):
        return repeatable_flash(output, query, key, value), None
    with sdpa_kernel(SDPBackend.MATH):
        return attend(module, query, key, value, mask, **kwargs)


def _implementation(module: nn.Module, name: str | None) -> AttentionFunction:
    require_implementation(name)
    if name == "eager":  # every model has its own
        eager: AttentionFunction = sys.modules[type(module).__module__].eager_attention_forward
        return eager
    sdpa: AttentionFunction = sdpa_attention_forward
    return sdpa


def register_attention() -> None:
    """Make ``attn_implementation="duquant"`` known to transformers; calling again is harmless."""
    AttentionInterface.register(ATTENTION_NAME, duquant_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
