"""Several devices share a model: each holds some of the rows of every weight.

A weight is cut along its outputs alone, also where tensor parallelism usually cuts its inputs
(``o_proj``, ``down_proj``). There every device is given the whole input, transforms and quantizes
it as one device would, and computes its own outputs. A permutation may then mix channels of all
devices, a token's scale belongs to the whole token, and no rotation block, group of weights or byte
of packed codes is ever cut, because all of these lie along the inputs. Every output is the sum that
one device computes, in the same order.

    rows of K and V    with fewer heads than devices, several devices hold the same head
    biases             cut as the rows
    transform, peaks   whole, on every device
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from duquant.nn.packed_linear import PackedLinear
from duquant.serving.fused_linear import FusedLinear

OPERANDS = {"query": "q", "key": "k", "value": "v"}
"""Linears whose biases attention adds."""


@dataclass(frozen=True)
class Rank:
    """One of the devices that share a model.

    Args:
        index: from 0.
        count: how many there are.
    """

    index: int
    count: int

    def rows(self, total: int, size: int) -> slice:
        """The rows that this device holds.

        Args:
            total: rows of the whole weight.
            size: rows that a device holds.

        Raises:
            ValueError: if the devices cannot share the rows in such parts.
        """
        parts, rest = divmod(total, size)
        if rest or not parts or self.count % parts:
            raise ValueError(f"{self.count} devices cannot hold {size} of {total} outputs each")
        part = self.index * parts // self.count
        return slice(part * size, (part + 1) * size)


def cut_rows(fused: FusedLinear, sizes: Sequence[int], rank: Rank) -> dict[str, slice]:
    """Leave a device's rows of every linear; nothing is copied.

    Args:
        fused: whole, on the meta device or loaded; changed in place.
        sizes: rows of each linear that the device holds.
        rank: the device.

    Returns:
        Which rows of a stored tensor they are, by the names of the tensors that were cut.

    Raises:
        ValueError: if the rows cannot be shared in such parts.
    """
    rows = {
        name: rank.rows(total, size)
        for name, total, size in zip(fused.linears, fused.out_features, sizes, strict=True)
    }
    cut: dict[str, slice] = {}
    for name, own in rows.items():
        linear = fused.linears[name]
        _cut(linear, f"linears.{name}", own, cut)
        if isinstance(linear, PackedLinear):
            linear.out_features = own.stop - own.start
    biases = None if fused.attention is None else fused.attention.biases
    for operand, name in OPERANDS.items():
        bias = None if biases is None else getattr(biases, operand)
        if bias is not None:
            setattr(biases, operand, bias[rows[name]])
            cut[f"attention.biases.{operand}"] = rows[name]
    return cut


def _cut(linear: nn.Module, prefix: str, rows: slice, cut: dict[str, slice]) -> None:
    """Cut what lies row by row; see :data:`duquant.formats.number_format.StoredShapes`."""
    for name, tensor in list(linear.named_buffers(recurse=False)):
        if tensor.ndim == 2 or name == "bias":
            setattr(linear, name, tensor[rows])
            cut[f"{prefix}.{name}"] = rows
