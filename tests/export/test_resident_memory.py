"""What quantized weights take in memory, by the module's own count and by the operating system's.

The process in question builds blocks, as loading does, and runs a token through each. What its
resident set grows by is what the blocks hold. The peak would hold temporary memory too, which is
that of one linear, however many there are.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from duquant.ops.integer_product import engine
from tests.assets import REPOSITORY

MEASURE = """
import gc, json, resource
import torch
from duquant.formats.integer import Integer
from duquant.nn.execution import Execution
from duquant.nn.packed_linear import PackedLinear
from duquant.ops.affine import AffineGrid
from duquant.ops.freed_memory import return_freed_memory
from duquant.ops.packing import packed_width
from duquant.ops.quantized_tokens import encode_tokens

torch.set_num_threads(1)
HIDDEN, INTERMEDIATE, BLOCKS = 1024, 2816, 8
SHAPES = [(HIDDEN, HIDDEN)] * 4 + [(INTERMEDIATE, HIDDEN)] * 2 + [(HIDDEN, INTERMEDIATE)]


def linear(rows, columns, memory):
    made = PackedLinear(
        {
            "packed": torch.randint(0, 256, (rows, packed_width(columns, 4)), dtype=torch.uint8),
            "scale": torch.ones(rows, 1),
            "zero": torch.full((rows, 1), 8, dtype=torch.int16),
        },
        None,
        Integer(4),
        activations=Integer(4),
        in_features=columns,
        dtype=torch.bfloat16,
    )
    made.execution = Execution("integer", memory)
    return made


def block(memory):
    return [linear(*shape, memory) for shape in SHAPES]


def run(linears):
    grid = AffineGrid(torch.ones(1, 1), torch.zeros(1, 1))
    for each in linears:
        each(encode_tokens(torch.ones(1, each.in_features), grid))
    return linears


def resident():
    gc.collect()
    with open("/proc/self/statm") as opened:
        return int(opened.read().split()[1]) * resource.getpagesize()


bf16 = sum(2 * rows * columns for rows, columns in SHAPES)
kept, result = [], {}
for memory in ("packed", "fast"):
    kept.append(run(block(memory)))  # what the first run leaves behind does not count
    return_freed_memory()
    before = resident()
    blocks = [block(memory) for _ in range(BLOCKS)]
    for each in blocks:
        run(each)
    if memory == "packed":
        return_freed_memory()  # what unpacking left; fast linears do that themselves
    result[memory] = {
        "system": (resident() - before) / BLOCKS / bf16,
        "counted": sum(made.resident_bytes() for made in blocks[0]) / bf16,
    }
    kept += blocks
print(json.dumps(result))
"""


@pytest.mark.skipif(engine(torch.device("cpu")) is None, reason="this processor has no int8 engine")
@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")
def test_weights_take_what_is_promised() -> None:
    process = subprocess.run(
        [sys.executable, "-c", MEASURE],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert process.returncode == 0, process.stderr
    measured = json.loads(process.stdout)
    for memory, promised in (("fast", 0.55), ("packed", 0.31)):
        share = measured[memory]
        assert share["counted"] <= promised
        assert share["system"] <= promised
        # Neither count leaves out what the other sees; pages and allocators blur some percent.
        assert share["system"] == pytest.approx(share["counted"], rel=0.1)
