"""Linears that read one site, as one: the input is transformed and quantized once.

In transformers the site stands behind the norm and hands its output to q, k and v. An engine with
fused linears calls one module with the norm's output; so the site stands in front of them here. The
site, the linears and the quantizer of attention are the modules that transformers runs
(:mod:`duquant.nn`), so the numbers are the same.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from duquant.model.execution import configure_site, describe_kernels
from duquant.nn.attention_quantizer import AttentionQuantizer
from duquant.nn.execution import Execution
from duquant.nn.joined_linears import join
from duquant.nn.linear import QuantLinear
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.site import SiteTransform


class FusedLinear(nn.Module):
    """``site(x)`` once, then the outputs of every linear side by side.

    Linears that multiply integers become one, once they are loaded.

    Args:
        site: transforms and quantizes the input.
        linears: by name, in the order of their outputs.
        attention: quantizes V, where the linears are those of Q, K and V.
    """

    def __init__(
        self,
        site: SiteTransform,
        linears: Mapping[str, QuantLinear | PackedLinear],
        attention: AttentionQuantizer | None = None,
    ) -> None:
        super().__init__()
        self.site = site
        self.linears = nn.ModuleDict(linears)
        self.attention = attention
        self.width_of_value = 0

    @property
    def out_features(self) -> list[int]:
        """Outputs of every linear."""
        return [
            linear.out_features
            if isinstance(linear, PackedLinear)
            else len(linear.get_buffer("weight"))
            for linear in self.linears.values()
        ]

    def make_ready(self, execution: Execution) -> str:
        """Choose how to compute, once the tensors are loaded, and lay the weights out for it.

        Returns:
            How, in words.

        Raises:
            ValueError: if integers were asked for and cannot be multiplied here.
        """
        if self.attention is not None:
            self.attention.compute_hadamard()
        linears = list(self.linears.values())
        self.width_of_value = self.out_features[-1]
        configure_site(self.site, linears, execution)
        packed = [linear for linear in linears if isinstance(linear, PackedLinear)]
        joined = join(packed) if len(packed) > 1 and packed[0].is_integer else None
        if joined is not None:
            self.linears, packed = nn.ModuleDict({"all": joined}), [joined]
        for linear in packed:
            if linear.is_integer:
                linear.prepare()
            else:
                linear.float_weight(linear.output_like.dtype)
        if not packed:
            return "weights that are not quantized, in floating point"
        return describe_kernels(packed)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(tokens, in)`` to ``(tokens, sum of outputs)``; V comes quantized."""
        inputs = self.site(x)
        parts = [linear(inputs) for linear in self.linears.values()]
        outputs = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if self.attention is not None:
            value = outputs[:, -self.width_of_value :]
            value.copy_(self._quantized(value, self.attention))
        return outputs

    @staticmethod
    def _quantized(value: Tensor, attention: AttentionQuantizer) -> Tensor:
        heads = value.reshape(1, len(value), -1, attention.head_dim)
        bias = None if attention.biases is None else attention.biases.value
        if bias is not None:
            bias = bias.float().view(1, 1, -1, attention.head_dim)
        return attention.quantized_value(heads, bias).view(value.shape)
