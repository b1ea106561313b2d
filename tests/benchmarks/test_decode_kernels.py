"""Kernels of a token and layer in a compiled model."""

import shutil
from collections.abc import Iterator

import pytest
import torch

from tests.benchmarks.decode_kernels import of_a_layer, reason_to_skip
from tests.ceilings import COMPILED_FOR_PROCESSORS

# What PyTorch's own tracer and generator do in passing.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function'> should not be instantiated"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
]
COMPILER = next((name for name in ("c++", "g++", "clang++", "cl") if shutil.which(name)), None)


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_a_decoded_token_launches_no_more() -> None:
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    counts = of_a_layer(quantized=True)
    assert counts["duquant::packed_linear"] == 4
    assert counts["duquant::transformed_tokens"] == 2 * 4
    assert counts.total() <= COMPILED_FOR_PROCESSORS, counts
