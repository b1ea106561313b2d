"""What quantized weights take in memory, by the module's own count and by the operating system's.

The process in question builds a block after the other and runs a token through each. Its peak is
filled up first (importing leaves a high one), then a block brings the temporary memory; what the
peak grows by from there on is what the blocks hold.
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
import gc, json, resource, sys
import torch
from duquant.nn.execution import Execution
from duquant.nn.packed_linear import PackedLinear
from duquant.ops.affine import AffineGrid
from duquant.ops.packing import packed_width
from duquant.ops.quantized_tokens import encode_tokens

torch.set_num_threads(1)
HIDDEN, INTERMEDIATE, BLOCKS = 1024, 2816, 8
SHAPES = [(HIDDEN, HIDDEN)] * 4 + [(INTERMEDIATE, HIDDEN)] * 2 + [(HIDDEN, INTERMEDIATE)]


def linear(rows, columns, memory):
    made = PackedLinear(
        torch.randint(0, 256, (rows, packed_width(columns, 4)), dtype=torch.uint8),
        torch.ones(rows, 1),
        torch.full((rows, 1), 8, dtype=torch.int16),
        None,
        bits=4,
        in_features=columns,
        activation_bits=4,
        dtype=torch.bfloat16,
    )
    made.execution = Execution("integer", memory)
    grid = AffineGrid(torch.ones(1, 1), torch.zeros(1, 1))
    made(encode_tokens(torch.ones(1, columns), grid))
    return made


def peak():
    unit = 1 if sys.platform == "darwin" else 1024
    gc.collect()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


bf16 = sum(2 * rows * columns for rows, columns in SHAPES)
kept, result = [], {}
for memory in ("packed", "fast"):
    ballast, high = 1 << 22, peak()
    while peak() < high + ballast:
        kept.append(torch.ones(ballast, dtype=torch.uint8))
    kept += [linear(*shape, memory) for shape in SHAPES]
    before = peak()
    blocks = [[linear(*shape, memory) for shape in SHAPES] for _ in range(BLOCKS)]
    result[memory] = {
        "system": (peak() - before) / BLOCKS / bf16,
        "counted": sum(made.resident_bytes() for made in blocks[0]) / bf16,
    }
    kept += blocks
print(json.dumps(result))
"""


@pytest.mark.skipif(engine(torch.device("cpu")) is None, reason="this processor has no int8 engine")
@pytest.mark.skipif(sys.platform == "win32", reason="resource is a module of Unix")
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
