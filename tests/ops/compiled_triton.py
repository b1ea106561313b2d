"""Compile every Triton kernel for a GPU that is not there, as its launches would.

A driver that names a GPU stands in the place of one that finds it, and a launch ends when its
kernel is compiled. Prints a line of JSON for each: its name, bytes of shared memory, and which
instructions of a list it has. ``test_triton_kernels.py`` runs this file.
"""

import json
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from duquant.ops.triton_kernels import int4, rows, scaled_sums, transform, transformed

INSTRUCTIONS = ("mma.sync", ".s8.s8.s32", "cp.async", "div.rn.f32", "div.full", "fma.rn.f32")


class AbsentGpu:
    """What Triton asks a driver before it compiles: capability 8.0, the first that is taken."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 80, 32)


launch = JITFunction.run


def compile_and_tell(self: Any, *arguments: Any, warmup: bool, **options: Any) -> None:
    kernel = launch(self, *arguments, warmup=True, **options)
    code = kernel.asm["ptx"]
    found = [each for each in INSTRUCTIONS if each in code]
    line = {"name": self.fn.__name__, "shared": kernel.metadata.shared, "has": found}
    print(json.dumps(line), flush=True)


def main() -> None:
    driver.set_active(AbsentGpu())
    JITFunction.run = compile_and_tell
    x, clip = torch.zeros(32, 4096), torch.ones(32, 1)
    _, *ends = rows._fake_quantize(x, (clip, clip), (1.0, 1.0), 4, False)
    rows._gradient(x, x, tuple(ends), 4, True)
    rows.encode(x.bfloat16(), 4, 0.9, clip[:2], False)
    packed, each = torch.zeros(256, 2048, dtype=torch.uint8), torch.ones(256)
    for count, largest in ((1, 15), (256, 15), (1, 255), (256, 255)):
        tokens = torch.zeros(count, 4102, dtype=torch.uint8)
        output = torch.empty(count, 256, dtype=torch.bfloat16)
        int4._run(tokens, packed, int4._Rows(each, each, each, each), output, largest)
    product = torch.zeros(256, 256, dtype=torch.int32)
    scaled_sums._run(product, tokens, (each, each, each, each), torch.bfloat16)
    rotations, order = torch.zeros(2, 32, 128, 128), torch.arange(4096).view(1, 4096)
    transformed._tokens(x[:1].bfloat16(), x[0], rotations, order, 4, 0.9, None, False)
    transformed._values(x[:, :128].bfloat16(), rotations[0, 0], 4, 0.9, False)
    transform._transform(x.bfloat16(), rotations, order)


if __name__ == "__main__":
    main()
