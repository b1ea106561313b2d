"""A plain model: the quantized weights as floats, the transforms undone.

A linear of a quantized block reads ``x T`` and holds ``Ŵ ≈ W T``. A model that knows no transforms
reads ``x``, so it gets

    W' = Ŵ T⁻¹        because        x W'ᵀ = (x T) Ŵᵀ

where ``T`` first divides by the smoothing scale, if that could not be folded. Biases of Q, K and V
go back to their projections. The result has the error of the quantized weights and none of the
activations'; any tool can load it.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.export.targets.plain_parts import plain_parts
from duquant.model.execution import transform_of
from duquant.model.structure import SITES
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.site import SiteTransform


class Dequantized:
    """bfloat16 weights under the names of the original model."""

    name: ClassVar[str] = "dequantized"
    about: ClassVar[str] = (
        "The quantized weights as bfloat16 numbers, transforms undone: the error of the weights "
        "and none of the activations. It takes the memory of a model that is not quantized."
    )
    dtype: ClassVar[torch.dtype | None] = torch.bfloat16

    def require_expressible(self, recipe: Recipe) -> None:
        """Refuse subtracted means; all else is, its activations left in floating point.

        Raises:
            ValueError: if sites subtract means, which a plain model has no place for.
        """
        if recipe.smoothing.subtract_mean:
            raise ValueError(
                "smoothing.subtract_mean is true: a model without quantization has no place for "
                "the means; quantize without it, or export to native"
            )

    @torch.no_grad()
    def tensors(self, block: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
        """Weights, biases and norms."""
        tensors = plain_parts(block)
        for site in SITES:
            transform = transform_of(block, site)
            for name in site.linears:
                weight = _plain_weight(block.get_submodule(name), transform)
                tensors[f"{name}.weight"] = weight.detach()
        return tensors

    def quantization_config(
        self, recipe: Recipe, checksums: dict[str, str], model_config: dict[str, Any]
    ) -> None:
        """None: the model is not quantized any more."""


def _plain_weight(linear: nn.Module, site: SiteTransform) -> Tensor:
    """The weight ``(out, in)`` for inputs that are not transformed, float32."""
    if isinstance(linear, PackedLinear):
        weight = linear.dequantized()
    else:
        weight = linear.get_buffer("weight").float()
    weight = site.transform.off_weight(weight)
    return weight / site.online_scale if site.online_scale.numel() else weight
