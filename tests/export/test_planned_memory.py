"""What a loaded model will take on a device, and what the device must be able to do."""

import pytest
import torch

from duquant.nn.packed_linear import PackedLinear
from duquant.nn.site import SiteTransform
from duquant.ops.integer_product import engine
from duquant.ops.kernel_presence import _ANNOUNCED
from duquant.ops.kernels import int4
from tests.quantized_directory import QuantizedDirectory, logits, write_quantized
from tests.tiny_models import FAMILIES, token_ids

IDS = token_ids()
integers_needed = pytest.mark.skipif(
    engine(torch.device("cpu")) is None, reason="this processor has no int8 engine"
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> QuantizedDirectory:
    return write_quantized(tmp_path_factory.mktemp("llama"), FAMILIES["llama-grouped"])


def planned(written: QuantizedDirectory) -> dict[str, float]:
    """Bytes that ``device_map`` plans for every linear."""
    model = written.load()
    quantizer = model.hf_quantizer
    sizes: dict[str, float] = {}
    for name, tensor in model.named_buffers():
        owner = name.rpartition(".")[0]
        size = tensor.numel() * quantizer.param_element_size(model, name, tensor)
        sizes[owner] = sizes.get(owner, 0) + size
    return {
        name: sizes[name]
        for name, module in model.named_modules()
        if isinstance(module, PackedLinear)
    }


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> QuantizedDirectory:
    """Scales are shared widely enough for integers."""
    sizes = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1}
    return write_quantized(tmp_path_factory.mktemp("wide"), {**FAMILIES["llama"], **sizes})


def assert_planned(written: QuantizedDirectory, shares: tuple[float, float]) -> None:
    """What is planned is there behind a token: between these many times the packed bytes."""
    sizes, model = planned(written), written.load()
    logits(model, IDS)
    for name, size in sizes.items():
        linear = model.get_submodule(name)
        assert size == pytest.approx(linear.resident_bytes(), rel=0.05), name
        packed = linear.out_features * linear.in_features / 2
        assert shares[0] * packed <= size <= shares[1] * packed


@integers_needed
def test_memory_is_planned_for_packed_weights_that_a_kernel_reads(
    wide: QuantizedDirectory,
) -> None:
    if not int4.is_available():
        pytest.skip("there is no kernel here")
    assert_planned(wide, (1, 1.2))


@integers_needed
def test_memory_is_planned_for_a_byte_per_weight(
    wide: QuantizedDirectory, without_kernel: None
) -> None:
    assert_planned(wide, (2, 2.2))


def test_memory_is_planned_for_values_beside_the_packed_weight(
    llama: QuantizedDirectory,
) -> None:
    """Few inputs share a scale here, so the reference runs; its model is float32."""
    assert_planned(llama, (9, 10.5))


@pytest.mark.parametrize(
    ("capability", "has_kernel", "times"),
    [((8, 0), True, 1), ((8, 0), False, 2), ((7, 0), False, 1 + 8)],
)
def test_memory_is_planned_for_the_gpu(
    capability: tuple[int, int],
    has_kernel: bool,
    times: int,
    wide: QuantizedDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = wide.load()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setitem(_ANNOUNCED, ("duquant::packed_linear", "cuda"), lambda: has_kernel)
    name = "model.layers.0.mlp.up_proj.packed"
    assert model.hf_quantizer.param_element_size(model, name, model.get_buffer(name)) == times


@integers_needed
def test_on_a_gpu_without_int8_units_sites_emit_floats(
    wide: QuantizedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU of that kind stands in for the device that the model is moved to."""
    model = wide.load()
    sites = [module for module in model.modules() if isinstance(module, SiteTransform)]
    assert all(site.emits_integers for site in sites)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    for module in ("duquant.nn.site", "duquant.nn.execution", "duquant.ops.integer_product"):
        monkeypatch.setattr(f"{module}.engine", lambda _: engine(torch.device("cuda")))
    model.to("cpu")
    assert not any(site.emits_integers for site in sites)
    assert torch.equal(logits(model, IDS), wide.logits_block_by_block(IDS))
