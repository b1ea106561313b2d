"""Compile a C source of this folder and load it.

A library is compiled for the machine it runs on and kept in the user's cache directory under a name
that changes with source, compiler, processor and PyTorch. It needs an x86 processor with AVX2 and a
C compiler; elsewhere PyTorch does the work. Where only the compiler is missing or fails, or the
directory cannot be written, a message says so, once. ``DUQUANT_KERNELS=0`` turns all kernels off.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SECONDS_TO_COMPILE = 60
# ISO C never fuses a product and a sum; exceptions and errno do not matter here.
FLAGS = ["-O3", "-march=native", "-std=c11", "-ffp-contract=off", "-fno-math-errno"]
FLAGS += ["-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]

_reasons: list[str] = []


def load_library(name: str) -> ctypes.CDLL | None:
    """The library of ``name.c``, or ``None`` where it cannot be had."""
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
        return ctypes.CDLL(str(_compiled(Path(__file__).with_name(f"{name}.c"), compiler)))
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


def _compiled(source: Path, compiler: list[str]) -> Path:
    # PyTorch's own OpenMP library, or two pools of threads would fight for the cores
    openmp = [str(file) for file in (Path(torch.__file__).parent / "lib").glob("libgomp*")][:1]
    command = [*compiler, *FLAGS]
    identity = [source.read_bytes(), " ".join(command + openmp).encode(), _processor()]
    identity.append(subprocess.check_output([*compiler, "--version"], timeout=SECONDS_TO_COMPILE))
    name = hashlib.sha256(b"\0".join(identity)).hexdigest()[:16]
    library = _cache_directory() / f"{source.stem}-{name}.so"
    if not library.is_file():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / library.name
            command += [str(source), "-o", str(built), *openmp]
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
