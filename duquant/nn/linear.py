"""A linear layer with a quantized weight.

The weight is held in floating point, already smoothed and transformed; it is fake-quantized with
the current clip factors at every forward pass while those are being learned, and rounded once and
for all when the block is finished (:meth:`QuantLinear.round`). A transform that is itself being
learned is applied at every forward pass too. The input arrives transformed and quantized from the
site before it; where the linear is its site's only reader it owns the site.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from duquant.formats.number_format import NumberFormat, split_rows
from duquant.nn.clipping import ClipFactors, FixedClip
from duquant.nn.site import SiteTransform
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.rounding.weight_rounding import Rounded, WeightRounding
from duquant.transforms.transform import Transform


class QuantLinear(nn.Module):
    """``y = x · quantized(W)ᵀ + bias``.

    Args:
        weight: float weight ``(out, in)``.
        bias: ``(out,)`` or ``None``; never quantized.
        clip: clip factors of the weight's rows.
        form: number format of the weight.
        site: transform of the input, if this linear is its only reader.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        clip: ClipFactors | FixedClip,
        form: NumberFormat,
        *,
        site: SiteTransform | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.clip = clip
        self.form = form
        self.site = site
        self.learned_transform: Transform | None = None
        self.rounded: Rounded | None = None
        self.is_frozen = False

    @property
    def is_quantized(self) -> bool:
        """Whether the weight's format rounds at all."""
        return self.form.bits < UNQUANTIZED_BITS

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)`` in the dtype of ``x``."""
        if self.site is not None:
            x = self.site(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.quantized_weight().to(x.dtype), bias)

    def install(self, transform: Transform) -> None:
        """Transform the weight: for good, or, where the transform learns, at every forward."""
        if transform.learns:
            self.learned_transform = transform
        else:
            self.weight = transform.on_weight(self.weight)

    def transformed_weight(self) -> Tensor:
        """The float weight as it is rounded, ``(out, in)``."""
        if self.learned_transform is None:
            return self.weight
        return self.learned_transform.on_weight(self.weight)

    def quantized_weight(self) -> Tensor:
        """The dequantized weight ``(out, in)``, differentiable in what is learned."""
        weight = self.transformed_weight()
        if self.is_frozen or not self.is_quantized:
            return weight
        rows = split_rows(weight, self.form.group_size)
        return self.form.fake_quantize(rows, self.clip()).reshape(weight.shape)

    def round(self, rounding: WeightRounding, gram: Tensor | None = None) -> None:
        """Choose the weight's codes, see :func:`round_linears`."""
        round_linears([self], rounding, gram)

    def freeze(self, weight: Tensor, rounded: Rounded | None) -> None:
        """Compute with the values of codes, or with ``weight`` itself if there are none."""
        assert not self.is_frozen, "a weight is rounded once"
        self.learned_transform = None
        self.rounded = rounded
        if rounded is not None:
            rows = split_rows(rounded.codes, self.form.group_size)
            weight = self.form.values(rows, rounded.grid).reshape(weight.shape)
        self.weight = weight
        self.is_frozen = True

    def extra_repr(self) -> str:
        """Show the sizes."""
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, {self.form}"


@torch.no_grad()
def round_linears(
    linears: Sequence[QuantLinear], rounding: WeightRounding, gram: Tensor | None = None
) -> None:
    """Choose the codes of linears that read the same input, which are what is stored.

    Args:
        linears: of one number format.
        rounding: chooses.
        gram: ``Xᵀ X`` of their input, where the rounding needs it.
    """
    weights = [linear.transformed_weight().detach() for linear in linears]
    chosen: list[Rounded | None] = [None] * len(linears)
    if linears[0].is_quantized:
        clips = [linear.clip() for linear in linears]
        chosen[:] = rounding.together(weights, linears[0].form, clips, gram)
    for linear, weight, rounded in zip(linears, weights, chosen, strict=True):
        linear.freeze(weight, rounded)
