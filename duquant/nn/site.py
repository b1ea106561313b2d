"""A site: one activation, the transform it goes through, and the linears that read it.

q, k and v read the same tensor, gate and up another; so a decoder block has four sites, not seven
(see the table in :mod:`duquant.model.structure`). Transforming and quantizing once per site instead
of once per linear halves that work and guarantees that linears which share an input share its
transform.

    x  ->  x / s (where s could not be folded)  ->  x - mean (if the recipe subtracts means)
       ->  transform  ->  quantize per token
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from duquant.nn.activation import ActivationQuantizer
from duquant.nn.execution import Reader
from duquant.ops.chunks import in_chunks
from duquant.ops.gradient import records_gradient
from duquant.ops.integer_product import engine
from duquant.ops.kernel_presence import call
from duquant.ops.precision import widen_on_cpu
from duquant.ops.transformed_tokens import is_fused, transformed_tokens
from duquant.transforms.exact_buffers import ExactBuffers
from duquant.transforms.identity import Identity
from duquant.transforms.rotate_permute import RotatePermute
from duquant.transforms.transform import Transform


class SiteTransform(ExactBuffers):
    """Smooth (online part), transform and quantize the input of one site.

    Args:
        width: channels of the site's input.
        quantizer: quantizes each transformed token.
    """

    EXACT = ("online_scale", "mean")
    online_scale: Tensor
    mean: Tensor

    def __init__(self, width: int, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.width = width
        self.quantizer = quantizer
        self.emits_integers = False
        self.reader: Reader | None = None
        self.divide_online(torch.ones(0, dtype=torch.float32, device="cpu"))
        self.subtract(torch.zeros(0, dtype=torch.float32, device="cpu"))
        self.transform: Transform = Identity(width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move; the linears behind may take integers on one device and floats on another."""
        before = self.online_scale.device.type
        super()._apply(fn, recurse)
        device = self.online_scale.device
        if device.type != before and self.reader is not None:
            has_units = engine(device) is not None
            self.emits_integers = has_units and self.reader.is_integer_on(device)
        elif self.emits_integers:
            self.emits_integers = engine(device) is not None
        return self

    def divide_online(self, scale: Tensor) -> None:
        """Divide the input by ``scale`` of shape ``(width,)`` at every forward pass.

        One without entries means "none" and is not stored.
        """
        self.register_buffer("online_scale", scale, persistent=scale.numel() > 0)

    def subtract(self, mean: Tensor) -> None:
        """Subtract ``mean`` of shape ``(width,)`` at every forward pass, behind the division.

        One without entries means "nothing" and is not stored.
        """
        self.register_buffer("mean", mean, persistent=mean.numel() > 0)

    def smooth(self, x: Tensor) -> Tensor:
        """The part of smoothing that could not be folded into the producer of ``x``."""
        if self.online_scale.numel():
            x = x / self.online_scale.to(x.dtype)
        return x - self.mean.to(x.dtype) if self.mean.numel() else x

    def transformed(self, x: Tensor) -> Tensor:
        """Smoothed and transformed input; half precision becomes float32 on the CPU."""
        transformed: Tensor = self.transform(self.smooth(widen_on_cpu(x)))
        return transformed

    def forward(self, x: Tensor) -> Tensor:
        """Transformed and quantized input, shape ``(..., width)`` and dtype of ``x``.

        With ``emits_integers`` it is not dequantized but encoded for integer linears (see
        :mod:`duquant.ops.quantized_tokens`), unless a gradient is recorded: bytes pass none on.
        """
        if self.emits_integers and not records_gradient(x):
            rows = x.flatten(0, -2)
            fused = self._transformed_tokens(rows)
            tokens = in_chunks(self._encoded, rows, dim=0) if fused is None else fused
            shaped: Tensor = tokens.unflatten(0, x.shape[:-1])
            return shaped
        quantized: Tensor = self.quantizer(self.transformed(x)).to(x.dtype)
        return quantized

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"width={self.width}"

    def _transformed_tokens(self, x: Tensor) -> Tensor | None:
        """The same of ``(tokens, width)`` in one step, where there is a kernel for it."""
        transform = self.transform
        if not isinstance(transform, RotatePermute) or self.online_scale.numel():
            return None
        mean = self.mean if self.mean.numel() else None
        if not is_fused("transformed_tokens", x, transform.rotations, mean):
            return None
        matrices, grid = transform.matrices, self.quantizer.token_grid()
        tokens: Tensor = call(transformed_tokens, x, mean, *matrices, *grid)
        return tokens

    def _encoded(self, x: Tensor) -> Tensor:
        return self.quantizer.encoded(self.transformed(x))


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
