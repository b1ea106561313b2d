"""``torch.compile``: one graph without breaks, the same numbers."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import StaticCache

import duquant
from duquant.formats.integer import Integer
from duquant.nn.activation import ActivationQuantizer
from duquant.nn.execution import Execution
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.site import SiteTransform
from duquant.ops.integer_product import engine
from duquant.rounding.nearest import Nearest
from tests.outliers import outlier_activation, random_weight
from tests.quantized_directory import logits, write_quantized
from tests.tiny_models import FAMILIES, token_ids

# What PyTorch's own tracer and generator do in passing.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function'> should not be instantiated"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
]
IDS = token_ids(1, 8)
COMPILER = next((name for name in ("c++", "g++", "clang++", "cl") if shutil.which(name)), None)
BACKENDS = [
    "reference",
    pytest.param(
        "integer",
        marks=pytest.mark.skipif(
            engine(torch.device("cpu")) is None, reason="this processor has no int8 engine"
        ),
    ),
]


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    options = {**FAMILIES["llama-grouped"], "num_hidden_layers": 1}
    return write_quantized(tmp_path_factory.mktemp("model"), options).load()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_is_one_graph(backend: Any, model: Any) -> None:
    """Traced, not generated: machine code for a whole model takes a minute."""
    duquant.set_execution(model, backend)
    expected = logits(model, IDS, use_cache=False)  # the first pass lays out the weights
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(logits(compiled, IDS, use_cache=False), expected)


def test_biases_and_their_positions_are_part_of_the_graph(tmp_path: Path) -> None:
    options = {**FAMILIES["qwen2"], "num_hidden_layers": 1}
    model = write_quantized(tmp_path, options).load()
    duquant.set_execution(model, "reference")
    expected = logits(model, IDS, use_cache=False)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(logits(compiled, IDS, use_cache=False), expected)
    whole, part = (StaticCache(config=model.config, max_cache_len=8) for _ in range(2))
    logits(model, IDS[:, :7], past_key_values=whole)
    logits(model, IDS[:, :7], past_key_values=part)
    expected = logits(model, IDS[:, 7:], past_key_values=whole)
    assert torch.equal(logits(compiled, IDS[:, 7:], past_key_values=part), expected)


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_linear_becomes_machine_code(backend: Any) -> None:
    form = Integer(4)
    codes, grid, *_ = Nearest()(random_weight(32, 64, seed=0), form)
    site = SiteTransform(64, ActivationQuantizer(form, 0.9))
    linear = PackedLinear(
        form.store(codes, grid), None, form,
        activations=form, in_features=64, dtype=torch.float32, site=site,
    )  # fmt: skip
    linear.execution = Execution(backend)
    site.emits_integers = backend == "integer"
    x = outlier_activation(5, 64, seed=1)
    with torch.no_grad():
        expected = linear(x)
        output = torch.compile(linear, fullgraph=True)(x)
    # The same integers; the compiler may round the float32 steps around them otherwise.
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
