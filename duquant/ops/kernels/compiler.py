"""Compile a C source of this folder and load it.

A library is compiled for the machine it runs on and kept in the user's cache directory under a name
that changes with source, compiler, processor and PyTorch (:mod:`duquant.ops.kernels.library_cache`
says when it is used again). It needs an x86 processor with AVX2 and a C compiler; elsewhere PyTorch
does the work. Where only the compiler is missing or fails, the directory cannot be written or
results are wrong, a message says so, once. ``DUQUANT_KERNELS=0`` turns all kernels off.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from duquant.ops.kernels.library_cache import cache_directory, publish, sound_libraries

SECONDS_TO_COMPILE = 60
# ISO C never fuses a product and a sum; exceptions and errno do not matter here.
FLAGS = ["-O3", "-march=native", "-std=c11", "-ffp-contract=off", "-fno-math-errno"]
FLAGS += ["-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]

_reasons: list[str] = []


def load_library(
    name: str, is_right: Callable[[ctypes.CDLL], bool], folder: Path = Path(__file__).parent
) -> ctypes.CDLL | None:
    """The library of ``name.c``, or ``None`` where it cannot be had.

    Args:
        name: of the source, without its suffix.
        is_right: declares the library's functions and says whether they compute what they should;
            an ``AttributeError``, for a function that is missing, is a no.
        folder: where the source is.
    """
    wanted = os.environ.get("DUQUANT_KERNELS", "1") != "0"
    is_x86 = platform.machine() in ("x86_64", "AMD64") and platform.system() == "Linux"
    has_vectors = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    if not (wanted and is_x86 and has_vectors):
        return None
    try:
        compiler = shlex.split(os.environ.get("CC", "cc"))  # may be "ccache gcc"
        if not (compiler and shutil.which(compiler[0])):
            _explain(f"there is no C compiler {' '.join(compiler)!r}: install one or set CC")
            return None
        return _cached_or_compiled(folder / f"{name}.c", compiler, is_right)
    except subprocess.SubprocessError as error:
        last = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
        _explain(f"the C compiler failed: {last.splitlines()[-1] if last else error}")
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError: no home directory; ValueError: a quote in CC without its pair
        _explain(f"they cannot be compiled or loaded ({error}): see CC and XDG_CACHE_HOME")
    return None


def _explain(reason: str) -> None:
    if not _reasons:
        logging.getLogger(__name__).warning(
            "C kernels are off, PyTorch does their work more slowly: %s; "
            "DUQUANT_KERNELS=0 does without them and this message",
            reason,
        )
    _reasons.append(reason)


def _cached_or_compiled(
    source: Path, compiler: list[str], is_right: Callable[[ctypes.CDLL], bool]
) -> ctypes.CDLL:
    # PyTorch's own OpenMP library, or two pools of threads would fight for the cores
    openmp = [str(file) for file in (Path(torch.__file__).parent / "lib").glob("libgomp*")][:1]
    command = [*compiler, *FLAGS]
    sources = [source, *sorted(source.parent.glob("*.h"))]  # which it may include
    identity = [*(file.read_bytes() for file in sources), " ".join(command + openmp).encode()]
    identity.append(_processor())
    identity.append(subprocess.check_output([*compiler, "--version"], timeout=SECONDS_TO_COMPILE))
    name = "-".join([source.stem, hashlib.sha256(b"\0".join(identity)).hexdigest()[:16]])
    directory = cache_directory()
    for library in sound_libraries(directory, name):
        with contextlib.suppress(OSError):
            return _load(library, is_right)
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        built = Path(folder) / f"{name}.so"
        command += [str(source), "-o", str(built), *openmp]
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS_TO_COMPILE)
        return _load(publish(built, directory, name), is_right)


def _load(library: Path, is_right: Callable[[ctypes.CDLL], bool]) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    with contextlib.suppress(AttributeError):  # a function is missing
        if is_right(loaded):
            return loaded
    raise OSError(f"{library} computes wrong results")


def _processor() -> bytes:
    """What the processor can do: a cache directory may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return next((line for line in lines if line.startswith(b"flags")), b"")
