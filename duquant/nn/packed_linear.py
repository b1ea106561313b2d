"""A linear layer whose weight is packed codes: what a finished block consists of.

The weight is what its number format stores. Where that is integers, there are two ways to compute
the same numbers (:mod:`duquant.nn.execution`):

* **reference**: input and weight are dequantized, and floats are multiplied, as in calibration.
* **integer**: the input arrives as integers (:mod:`duquant.ops.quantized_tokens`), int8 units
  multiply it with the weight's integers, and scales come last.

In exact arithmetic both are equal. Integer products are exact, and a handful of float32 operations
follow, where the reference rounds once per input: per output the two differ by at most
``(in + 8) · ε · Σ|x̂ ŵ|``, with ``ε`` the unit roundoff of the dtype the reference multiplies in
(2⁻²⁴ for float32; 2⁻⁸ for bfloat16, which also rounds ``x̂`` and ``ŵ``). A bias is one more term.

The packed weight is the layer's state. Faster forms are made from it at first use, and it from them
when somebody saves, copies or pickles. A layer that accelerate offloads keeps none.

Where a gradient is recorded the reference computes, and the backward pass dequantizes the weight
again: an adapter trains with one weight in floats at a time, unless the reference keeps them all.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from duquant.formats.number_format import Grid, NumberFormat, split_rows
from duquant.nn.execution import Choice, Execution, Reader, is_offloaded
from duquant.nn.layouts import WeightIntegers, make_panels, planned_kernels
from duquant.nn.shared_product import SharedProduct
from duquant.nn.site import SiteTransform
from duquant.ops.freed_memory import return_freed_memory
from duquant.ops.frozen_linear import frozen_linear
from duquant.ops.gradient import records_gradient
from duquant.ops.integer_linear import Panel, integer_linear
from duquant.ops.integer_weight import ChosenWeight, Kernels
from duquant.ops.packing import pack
from duquant.transforms.exact_buffers import ExactBuffers


class PackedLinear(ExactBuffers):
    """``y = x · dequantized(W)ᵀ + bias`` from packed codes.

    Args:
        stored: what the weight's format stores, by name; ``packed`` are the codes, ``uint8 (out,
            packed width)``.
        bias: ``(out,)`` or ``None``.
        form: number format of the weight.
        activations: number format of the input.
        in_features: inputs.
        dtype: dtype of the output.
        site: transform of the input, if this linear is its only reader.
    """

    packed: Tensor | None
    scale: Tensor
    zero: Tensor
    bias: Tensor | None
    output_like: Tensor

    def __init__(
        self,
        stored: Mapping[str, Tensor],
        bias: Tensor | None,
        form: NumberFormat,
        *,
        activations: NumberFormat,
        in_features: int,
        dtype: torch.dtype,
        site: SiteTransform | None = None,
    ) -> None:
        super().__init__()
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)
        self.EXACT = tuple(stored)
        self.register_buffer("bias", bias)
        output_like = stored["packed"].new_empty(0, dtype=dtype)
        self.register_buffer("output_like", output_like, persistent=False)
        self.form = form
        self.activations = activations
        self.in_features = in_features
        self.out_features = stored["packed"].shape[0]
        self.site = site
        self.execution = Execution()
        self.choice: Choice | None = None
        self.panels: list[Panel] | None = None
        self.shared: SharedProduct | None = None
        self._dequantized: Tensor | None = None

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.form.group_size or self.in_features

    @property
    def qweight(self) -> Tensor:
        """The packed weight, whatever form lies in memory; PEFT looks for it by this name."""
        return pack(self.codes(), self.form.bits) if self.packed is None else self.packed

    @property
    def grid_device(self) -> torch.device:
        """Where the scales lie: the meta device while they are offloaded."""
        return self.get_buffer(self.EXACT[-1]).device

    @property
    def is_integer(self) -> bool:
        """Whether this linear takes integers, on the device it is on."""
        return self.is_integer_on(self.grid_device)

    def is_integer_on(self, device: torch.device) -> bool:
        """Whether this linear would take integers on a device."""
        return self.reader().is_integer_on(device)

    def reader(self) -> Reader:
        """What decides whether it takes integers."""
        formats = self.activations, self.form
        return Reader(self.execution, *formats, self.group_size, self.choice)

    def planned_kernels(self, device: torch.device) -> Kernels:
        """Kernels of its integer products on a device, for each of ``ROW_COUNTS``."""
        return planned_kernels(self._integers(), self._chosen(device), device)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)``, floats or encoded integers, to ``(..., out)``."""
        if self.site is not None:
            x = self.site(x)
        if x.dtype == torch.uint8:
            return self._multiply_integers(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if records_gradient(x) and not is_offloaded(self):
            return frozen_linear(x, self.float_weight, bias)
        return F.linear(x, self.float_weight(x.dtype), bias)

    def codes(self) -> Tensor:
        """The stored codes, ``uint8 (out, in)`` (``int32`` above 8 bits)."""
        if self.packed is not None:
            return self._restored(self.packed)[0]
        assert self.panels is not None
        signed = torch.cat([panel.weight.integers() for panel in self.panels], dim=1)
        codes: Tensor = (signed.to(torch.int16) + 2 ** (self.form.bits - 1)).to(torch.uint8)
        return codes

    def dequantized(self) -> Tensor:
        """The weight's values, float32 ``(out, in)``."""
        codes, grid = self._restored(self.qweight)
        values = self.form.values(split_rows(codes, self.form.group_size), grid)
        return values.view(self.out_features, self.in_features)

    def prepare(self) -> list[Panel]:
        """Lay the weight out for the int8 units, and keep that where it is to be kept.

        A layout that takes memory of its own replaces the packed weight, unless that is multiplied
        too. Where the packed one is to stay alone in memory or on the disk, it serves once.
        """
        if self.panels is not None:
            return self.panels
        panels: list[Panel] = self._make_panels()
        takes_memory = any(panel.weight.num_bytes for panel in panels)
        if is_offloaded(self) or (takes_memory and self.execution.weights_in_memory == "packed"):
            return panels
        self.panels = panels
        if takes_memory and not any(isinstance(panel.weight, ChosenWeight) for panel in panels):
            self.packed = None
            return_freed_memory()
        return panels

    def restore(self) -> None:
        """Return to the packed form; other forms are dropped."""
        self.packed = self.qweight
        self.panels = self._dequantized = None
        if self.shared is not None:
            self.shared.drop()

    def resident_bytes(self) -> int:
        """Bytes the weight takes in memory as it lies there now."""
        tensors = [*(self._buffers[part] for part in self.EXACT), self._dequantized]
        size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        for panel in self.panels or []:
            size += panel.weight.num_bytes + panel.sums.nbytes + panel.zero.nbytes
        return size

    def float_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight's values in ``dtype``; kept where the reference is what runs every time."""
        keeps_packed = self.execution.weights_in_memory == "packed" or self.is_integer
        if is_offloaded(self) or keeps_packed:
            return self.dequantized().to(dtype)
        if self._dequantized is None or self._dequantized.dtype != dtype:
            self._dequantized = self.dequantized().to(dtype)
        return self._dequantized

    def _restored(self, packed: Tensor) -> tuple[Tensor, Grid]:
        stored = {part: self._buffers[part] for part in self.EXACT} | {"packed": packed}
        return self.form.restore(cast(dict[str, Tensor], stored), self.in_features)

    def _multiply_integers(self, tokens: Tensor) -> Tensor:
        shared = None if self.shared is None else self.shared.output(self, tokens)
        if shared is not None:
            return shared
        rows, dtype = tokens.flatten(0, -2), self.output_like.dtype
        output = integer_linear(rows, self.prepare(), self.bias, dtype)
        shaped: Tensor = output.unflatten(0, tokens.shape[:-1])
        return shaped

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _make_panels(self) -> list[Panel]:
        return make_panels(self._integers(), self._chosen(self.grid_device))

    def _chosen(self, device: torch.device) -> Kernels | None:
        """Where weights are to stay packed, nothing is laid out beside them."""
        holds_more = self.execution.weights_in_memory == "fast" and not is_offloaded(self)
        is_chosen = holds_more and self.choice is not None and self.choice.holds_on(device)
        return self.choice.kernels if self.choice is not None and is_chosen else None

    def _integers(self) -> WeightIntegers:
        return WeightIntegers(
            packed=self.packed,
            codes=self.codes,
            scale=self.scale,
            zero=self.zero,
            columns=self.in_features,
            group_size=self.group_size,
            bits=self.form.bits,
            activation_bits=self.activations.bits,
        )

    def __getstate__(self) -> dict[str, Any]:
        """The packed form: engines' layouts belong to the process that made them."""
        state = self.__dict__.copy()
        state["_buffers"] = {**self._buffers, "packed": self.qweight}
        state["panels"] = state["_dequantized"] = state["shared"] = None
        return state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.restore()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is None:
            destination[f"{prefix}packed"] = self.qweight

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.restore()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.in_features}, {self.out_features}, {self.form}"
