"""The registers of AMX as the C kernels set them; skipped where there are none."""

import ctypes
import shutil
from pathlib import Path

import pytest

from duquant.ops.kernels import compiler
from duquant.ops.kernels.compiler import load_library

SOURCE = """
#define _GNU_SOURCE
#include "tiles.h"
int set_and_read(uint8_t *layout) {
    if (!has_tiles()) return 1;
    begin_tiles();
    __asm__ volatile("sttilecfg %0" : "=m"(*(uint8_t(*)[64])layout));
    _tile_release();
    return 0;
}
"""
HEADER = Path(compiler.__file__).parent / "tiles.h"


def test_all_tiles_are_16_rows_of_64_bytes(tmp_path: Path) -> None:
    """GCC's intrinsic lets it leave out all but the first bytes of the layout."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or "amx_tile" not in cpu.read_text():
        pytest.skip("needs an x86 processor with AMX")
    (tmp_path / "layout.c").write_text(SOURCE)
    shutil.copy(HEADER, tmp_path)  # a library is compiled again when a header beside it changes
    library = load_library("layout", lambda _: True, tmp_path)
    if library is None:
        pytest.skip("needs a C compiler that knows AMX")
    layout = (ctypes.c_uint8 * 64)()
    if library.set_and_read(layout):
        pytest.skip("the system gives no permission to use AMX")
    rows = [16] * 8 + [0] * 8
    widths = [64, 0] * 8 + [0] * 16
    assert list(layout) == [1] + [0] * 15 + widths + rows
