"""Packed linears that read the same tokens, multiplied as one: q, k and v, or gate and up.

A decoder calls them one after the other. To decode a token every call is a launch, and launches
take longer than the products of a small weight. The rows of a joined weight are those of its parts,
each multiplied as it was, so no bit of an output changes. Of many tokens each multiplies alone:
there products take the time, and outputs that lie apart are quicker to read on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from duquant.nn.execution import is_offloaded
from duquant.nn.packed_linear import PackedLinear

FEW_TOKENS = 16
"""Up to which they are multiplied as one."""


def join(linears: Sequence[PackedLinear]) -> PackedLinear | None:
    """One linear with the rows of all, which are copied.

    Args:
        linears: of the same inputs.

    Returns:
        ``None`` where they have no common form: other number formats, dtypes or devices, a bias in
        some of them, or numbers that belong to the whole of a weight.
    """
    first = linears[0]
    if len({_kind(linear) for linear in linears}) > 1:
        return None
    parts = {name: [linear.get_buffer(name) for linear in linears] for name in first.EXACT}
    if any(tensors[0].ndim != 2 for tensors in parts.values()):
        return None
    biases = [linear.bias for linear in linears if linear.bias is not None]
    joined = PackedLinear(
        {name: torch.cat(tensors) for name, tensors in parts.items()},
        torch.cat(biases) if biases else None,
        first.form,
        activations=first.activations,
        in_features=first.in_features,
        dtype=first.output_like.dtype,
    )
    joined.execution, joined.choice = first.execution, first.choice
    return joined


class JoinedLinears:
    """The readers of a site, for as long as all of them are multiplied as they are packed.

    The joined weight is made when tokens first arrive. Its rows take the place of the parts'
    buffers, so the memory stays what it was. The linear that is called first multiplies for all,
    and the others take their outputs if they are given the same tensor. Where outputs were left,
    somebody calls the linears in another way, and each multiplies alone from then on.

    Args:
        linears: of the same inputs.
    """

    def __init__(self, linears: Sequence[PackedLinear]) -> None:
        self._linears = list(linears)
        self._joined: PackedLinear | None = None
        self._is_tried = False
        # One attribute: whoever runs the model in several threads sees all of it or nothing.
        self._waiting: tuple[Tensor, dict[nn.Module, Tensor]] | None = None

    @property
    def is_made(self) -> bool:
        """Whether the joined weight exists."""
        return self._joined is not None

    def output(self, linear: nn.Module, tokens: Tensor) -> Tensor | None:
        """See :class:`duquant.nn.shared_product.SharedProduct`."""
        joined = self._made()  # of a prompt too: what is compiled afterwards can make nothing
        if joined is None or tokens.numel() > FEW_TOKENS * tokens.shape[-1]:
            return None
        waiting = self._waiting
        if waiting is None:
            rows = [each.out_features for each in self._linears]
            outputs = joined(tokens).split(rows, dim=-1)
            waiting = tokens, dict(zip(self._linears, outputs, strict=True))
        elif waiting[0] is not tokens or linear not in waiting[1]:
            self._joined = self._waiting = None
            return None
        others = {each: output for each, output in waiting[1].items() if each is not linear}
        self._waiting = (tokens, others) if others else None
        return waiting[1][linear]

    def drop(self) -> None:
        """Forget the joined weight; the parts keep their buffers."""
        self._joined, self._is_tried, self._waiting = None, False, None

    def _made(self) -> PackedLinear | None:
        if not self._is_tried and not torch.compiler.is_compiling():
            self._is_tried = True
            with torch.inference_mode(False):  # whose tensors cannot be loaded into later
                self._joined = self._make()
        return self._joined

    def _make(self) -> PackedLinear | None:
        # They may have moved since it was decided that they are multiplied as one.
        if any(map(is_offloaded, self._linears)) or not are_multiplied_packed(self._linears):
            return None
        joined = join(self._linears)
        if joined is not None:
            joined.prepare()
            _share(joined, self._linears)
        return joined


def are_multiplied_packed(linears: Sequence[PackedLinear]) -> bool:
    """Whether the packed kernel alone multiplies them, whatever the number of tokens."""
    return all(
        linear.is_integer and set(linear.planned_kernels(linear.grid_device)) == {"packed"}
        for linear in linears
    )


def _kind(linear: PackedLinear) -> tuple[object, ...]:
    formats = linear.form, linear.activations
    place = linear.output_like.dtype, linear.grid_device
    return *formats, linear.in_features, *place, linear.bias is None, linear.packed is None


def _share(joined: PackedLinear, linears: Sequence[PackedLinear]) -> None:
    """Let the parts' buffers be rows of the whole; equal numbers, the old tensors are freed.

    The parts are prepared, as they multiply many tokens: what is compiled cannot do it.
    """
    rows = [linear.out_features for linear in linears]
    for name in joined.EXACT:
        for linear, part in zip(linears, joined.get_buffer(name).split(rows), strict=True):
            setattr(linear, name, part)
    for linear in linears:
        linear.panels = None  # of the old tensors, if it has multiplied alone
        linear.prepare()
