"""The C kernel for packed 4-bit weights.

PyTorch's int8 products need weights of a byte each, laid out beforehand. ``int4_product.c`` reads
the packed weights as they lie in the file, half a byte each: nothing is laid out, nothing is kept
twice, and decoding, which waits for memory, waits half as long. Where it is missing, or fails its
own test, PyTorch's products serve.
"""

import ctypes
import functools

import torch
from torch import Tensor

from duquant.ops.kernels.compiler import load_library
from duquant.ops.packing import pack

OFFSET = 8
"""The kernel multiplies by weights minus this: signed 4-bit integers."""
LARGEST_ACTIVATION = 127


def is_available() -> bool:
    """Whether this machine has the kernel; compiles it when asked for the first time."""
    return _library() is not None


@torch.library.custom_op("duquant::int4_product", mutates_args=())
def int4_product(q: Tensor, packed: Tensor, largest: int) -> Tensor:
    """Exact products of activations with packed weights.

    Args:
        q: integers ``0 … largest``, ``uint8 (rows, in)``, ``in`` even.
        packed: ``uint8 (out, in / 2)`` as :func:`duquant.ops.packing.pack` lays 4 bits.
        largest: at most 127.

    Returns:
        ``Σ q · (w − 8)``, float32 ``(rows, out)``; exact below ``2**24``.
    """
    library = _library()
    assert library is not None
    q, packed = q.contiguous(), packed.contiguous()
    (rows, columns), out_features = q.shape, packed.shape[0]
    assert packed.shape[1] * 2 == columns
    assert q.dtype == packed.dtype == torch.uint8
    assert 1 <= largest <= LARGEST_ACTIVATION
    product = q.new_empty(rows, out_features, dtype=torch.float32)
    status = library.int4_product(
        q.data_ptr(),
        packed.data_ptr(),
        product.data_ptr(),
        rows,
        out_features,
        columns,
        largest,
        torch.get_num_threads(),
    )
    if status:
        raise MemoryError(f"no memory for the integer product of {rows} x {columns} activations")
    return product


@int4_product.register_fake
def _(q: Tensor, packed: Tensor, largest: int) -> Tensor:
    return q.new_empty(q.shape[0], packed.shape[0], dtype=torch.float32)


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = load_library("int4_product")
    if library is None:
        return None
    library.int4_product.argtypes = [
        *[ctypes.c_void_p] * 3,
        *[ctypes.c_int64] * 4,
        ctypes.c_int,
    ]
    library.int4_product.restype = ctypes.c_int
    return library if _is_right(library) else None


def _is_right(library: ctypes.CDLL) -> bool:
    """Compare one small product, all integers at their largest, with plain arithmetic."""
    rows, out, columns = 5, 3, 2306
    q = torch.full((rows, columns), LARGEST_ACTIVATION, dtype=torch.uint8)
    w = torch.full((out, columns), 15, dtype=torch.uint8)
    q[1::2] = torch.arange(columns).remainder(16)
    w[1] = torch.arange(columns).remainder(15)
    packed, product = pack(w, 4), torch.empty(rows, out)
    library.int4_product(
        q.data_ptr(), packed.data_ptr(), product.data_ptr(), rows, out, columns, 127, 1
    )
    return torch.equal(product.long(), q.long() @ (w.long() - OFFSET).T)
