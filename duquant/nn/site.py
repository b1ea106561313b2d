"""A site: one activation, the transform it goes through, and the linears that read it.

q, k and v read the same tensor, gate and up another; so a decoder block has four sites, not seven
(see the table in :mod:`duquant.model.structure`). Transforming and quantizing once per site instead
of once per linear halves that work and guarantees that linears which share an input share its
transform.

    x  ->  x / s (only where s could not be folded)  ->  R₁ P R₂  ->  quantize per token
"""

import torch
from torch import Tensor, nn

from duquant.nn.activation import ActivationQuantizer
from duquant.nn.exact_buffers import ExactBuffers
from duquant.ops.dual_transform import DualTransform, apply_transform, identity_transform
from duquant.ops.gradient import records_gradient
from duquant.ops.pieces import in_pieces
from duquant.ops.precision import widen_on_cpu


class SiteTransform(ExactBuffers):
    """Smooth (online part), rotate, permute and quantize the input of one site.

    Args:
        width: channels of the site's input.
        quantizer: quantizes each transformed token.
    """

    EXACT = ("rotations", "online_scale")
    rotations: Tensor
    permutations: Tensor
    online_scale: Tensor

    def __init__(self, width: int, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.width = width
        self.quantizer = quantizer
        self.emits_integers = False
        self._hold("online_scale", torch.ones(0))
        self.install(identity_transform(width))

    @property
    def transform(self) -> DualTransform:
        """The dual transformation now in force."""
        return DualTransform(self.rotations, self.permutations)

    def install(self, transform: DualTransform) -> None:
        """Take over a transform, of a search or of a file."""
        self._hold("rotations", transform.rotations)
        self._hold("permutations", transform.permutations)

    def divide_online(self, scale: Tensor) -> None:
        """Divide the input by ``scale`` of shape ``(width,)`` at every forward pass."""
        self._hold("online_scale", scale)

    def smooth(self, x: Tensor) -> Tensor:
        """The part of smoothing that could not be folded into the producer of ``x``."""
        return x / self.online_scale.to(x.dtype) if self.online_scale.numel() else x

    def transformed(self, x: Tensor) -> Tensor:
        """Smoothed, rotated and permuted input; half precision becomes float32 on the CPU."""
        return apply_transform(self.smooth(widen_on_cpu(x)), self.transform)

    def forward(self, x: Tensor) -> Tensor:
        """Transformed and quantized input, shape ``(..., width)`` and dtype of ``x``.

        With ``emits_integers`` it is not dequantized but encoded for integer linears (see
        :mod:`duquant.ops.quantized_tokens`), unless a gradient is recorded: bytes pass none on.
        """
        if self.emits_integers and not records_gradient(x):
            tokens = in_pieces(self._encoded, x.flatten(0, -2), dim=0)
            shaped: Tensor = tokens.unflatten(0, x.shape[:-1])
            return shaped
        quantized: Tensor = self.quantizer(self.transformed(x)).to(x.dtype)
        return quantized

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"width={self.width}, rotations={tuple(self.rotations.shape)}"

    def _encoded(self, x: Tensor) -> Tensor:
        return self.quantizer.encoded(self.transformed(x))

    def _hold(self, name: str, tensor: Tensor) -> None:
        """Register a tensor as state; one without entries means "none" and is not stored."""
        self.register_buffer(name, tensor, persistent=tensor.numel() > 0)


class SiteNorm(nn.Module):
    """A norm layer followed by the site that reads its output.

    Args:
        norm: the decoder's own norm.
        site: transform of the attention input or of the MLP input.
    """

    def __init__(self, norm: nn.Module, site: SiteTransform) -> None:
        super().__init__()
        self.norm = norm
        self.site = site

    def forward(self, x: Tensor) -> Tensor:
        """Normalized, transformed and quantized ``x``."""
        transformed: Tensor = self.site(self.norm(x))
        return transformed
