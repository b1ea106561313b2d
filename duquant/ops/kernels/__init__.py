"""The C kernel for packed 4-bit weights, compiled where it is first used.

PyTorch's int8 products need weights of a byte each, laid out beforehand. ``int4_product.c`` reads
the packed weights as they lie in the file, half a byte each: nothing is laid out, nothing is kept
twice, and decoding, which waits for memory, waits half as long. It needs an x86 processor with AVX2
and a C compiler; where either is missing, or it fails its own test, PyTorch's products serve.

The library is compiled for the machine it runs on and kept in the user's cache directory under a
name that changes with source, compiler, processor and PyTorch. ``DUQUANT_KERNELS=0`` turns it off.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from duquant.ops.packing import pack

SOURCE = Path(__file__).with_name("int4_product.c")
OFFSET = 8
"""The kernel multiplies by weights minus this: signed 4-bit integers."""
LARGEST_ACTIVATION = 127
SECONDS_TO_COMPILE = 60


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
    wanted = os.environ.get("DUQUANT_KERNELS", "1") != "0"
    is_x86 = platform.machine() in ("x86_64", "AMD64") and platform.system() == "Linux"
    has_vectors = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if not (wanted and is_x86 and has_vectors and compiler):
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # no home directory: RuntimeError
        return None
    library.int4_product.argtypes = [
        *[ctypes.c_void_p] * 3,
        *[ctypes.c_int64] * 4,
        ctypes.c_int,
    ]
    library.int4_product.restype = ctypes.c_int
    return library if _is_right(library) else None


def _compiled(compiler: str) -> Path:
    # PyTorch's own OpenMP library, or two pools of threads would fight for the cores
    openmp = [str(file) for file in (Path(torch.__file__).parent / "lib").glob("libgomp*")][:1]
    command = [compiler, "-O3", "-march=native", "-std=c11", "-fopenmp", "-shared", "-fPIC"]
    identity = [SOURCE.read_bytes(), " ".join(command + openmp).encode(), _processor()]
    identity.append(subprocess.check_output([compiler, "--version"], timeout=SECONDS_TO_COMPILE))
    name = hashlib.sha256(b"\0".join(identity)).hexdigest()[:16]
    library = _cache_directory() / f"int4_product-{name}.so"
    if not library.is_file():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / library.name
            command += [str(SOURCE), "-o", str(built), *openmp]
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS_TO_COMPILE)
            built.replace(library)
    return library


def _processor() -> bytes:
    """What the processor can do: a cache directory may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return next((line for line in lines if line.startswith(b"flags")), b"")


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "duquant"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


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
