"""LoRA by PEFT: frozen packed weights, adapters that learn, through every backend."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache

import duquant
from duquant.model.execution import describe_execution
from duquant.nn.packed_linear import PackedLinear
from tests.quantized_directory import QuantizedDirectory, logits, write_quantized
from tests.tiny_models import FAMILIES, token_ids

peft = pytest.importorskip("peft", reason="needs PEFT, which the test extra installs")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
LINEARS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
"""One of every kind: inputs that are transformed before the linear, and within it."""


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> QuantizedDirectory:
    return write_quantized(tmp_path_factory.mktemp("lora"), FAMILIES["llama-biases"])


@pytest.fixture(params=["integer", "reference"])
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def lora(**options: Any) -> Any:
    settings = {"r": 4, "target_modules": LINEARS, "task_type": "CAUSAL_LM"}
    return duquant.register_lora(peft.LoraConfig(**{**settings, **options}))


def adapted(quantized: QuantizedDirectory, backend: Any) -> Any:
    """A model with adapters, which do nothing yet."""
    torch.manual_seed(0)
    model = quantized.load()
    duquant.set_execution(model, backend)
    return peft.get_peft_model(model, lora())


def train(model: Any, steps: int = 4) -> list[float]:
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer, losses = torch.optim.SGD(parameters, lr=0.3), []
    for _ in range(steps):
        loss = model(input_ids=token_ids(), labels=token_ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_an_adapter_starts_as_the_model_itself(quantized: QuantizedDirectory, backend: Any) -> None:
    model = quantized.load()
    duquant.set_execution(model, backend)
    expected = logits(model, token_ids())
    torch.testing.assert_close(logits(adapted(quantized, backend), token_ids()), expected)


def test_adapters_learn_and_nothing_else(quantized: QuantizedDirectory, backend: Any) -> None:
    model = adapted(quantized, backend)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = [name for name, each in model.named_parameters() if each.requires_grad]
    assert len(trainable) == 2 * 2 * len(LINEARS)
    losses = train(model)
    assert losses[-1] < losses[0] - 0.02
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed == set(trainable)
    assert describe_execution(model).startswith(backend)


def test_the_gradient_is_that_of_the_reference(quantized: QuantizedDirectory) -> None:
    """Of the last block's adapters and, through its packed linears, of the first block's."""
    gradients = []
    for backend in ("integer", "reference"):
        model = adapted(quantized, backend)
        train(model, 1)  # B is no longer zero, so that A has a gradient
        model.load_state_dict(
            {n: t.sign() * 0.01 for n, t in model.state_dict().items() if "lora_B" in n},
            strict=False,
        )
        model(input_ids=token_ids(), labels=token_ids()).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0, name
        alike = F.cosine_similarity(gradient.flatten(), gradients[1][name].flatten(), dim=0)
        assert alike > 0.9, f"{name}: activations may round to neighbours, no more"


def test_it_comes_back_from_its_directory(
    quantized: QuantizedDirectory, backend: Any, tmp_path: Path
) -> None:
    model = adapted(quantized, backend)
    train(model)
    model.save_pretrained(tmp_path)
    base = quantized.load()
    duquant.set_execution(base, backend)
    config = duquant.register_lora(peft.LoraConfig.from_pretrained(tmp_path))
    loaded = peft.PeftModel.from_pretrained(base, tmp_path, config=config)
    assert torch.equal(logits(loaded, token_ids()), logits(model, token_ids()))
    duquant.set_execution(loaded, backend)
    assert describe_execution(loaded).startswith(backend), "linears are found behind adapters"


def test_encoded_and_plain_inputs_give_the_adapter_the_same(quantized: QuantizedDirectory) -> None:
    """The integer backend hands a linear bytes; an adapter must not multiply those."""
    outputs = []
    for backend in ("integer", "reference"):
        model = adapted(quantized, backend)
        state = {n: torch.ones_like(t) for n, t in model.state_dict().items() if "lora_B" in n}
        model.load_state_dict(state, strict=False)
        outputs.append(logits(model, token_ids(1, 1)))
    scale = outputs[1].abs().mean()
    assert (outputs[0] - outputs[1]).abs().mean() < 0.05 * scale


def test_adapters_generate_with_a_packed_cache(quantized: QuantizedDirectory) -> None:
    model = adapted(quantized, "integer")
    train(model)
    tokens = [
        model.generate(
            input_ids=token_ids(1, 8), past_key_values=cache, max_new_tokens=6, do_sample=False
        )
        for cache in (duquant.PackedCache(model), DynamicCache())
    ]
    assert torch.equal(*tokens)


def test_training_keeps_no_weight_in_floating_point(quantized: QuantizedDirectory) -> None:
    model = adapted(quantized, "integer")
    linears = [module for module in model.modules() if isinstance(module, PackedLinear)]
    bytes_before = [linear.resident_bytes() for linear in linears]
    train(model)
    for linear, before in zip(linears, bytes_before, strict=True):
        assert linear._dequantized is None
        assert linear.resident_bytes() < 3 * before, "packed, or laid out as bytes"


def test_transformers_may_train_it(quantized: QuantizedDirectory) -> None:
    """By its own adapters; without any its Trainer refuses."""
    from transformers.trainer_utils import validate_quantization_for_training

    model = quantized.load()
    with pytest.raises(ValueError, match="attach trainable adapters"):
        validate_quantization_for_training(model)
    model.add_adapter(lora())
    validate_quantization_for_training(model)
    losses = train(model)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora needs a floating-point weight"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which needs"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora', which needs"),
    ],
)
def test_what_needs_the_weight_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        lora(**options)
    assert "\n" not in str(refused.value)


def test_merging_is_refused(quantized: QuantizedDirectory) -> None:
    model = adapted(quantized, "reference")
    with pytest.raises(ValueError, match="cannot be merged into a packed weight"):
        model.merge_and_unload()
    names = ["default", "__base__"]
    with pytest.raises(ValueError, match="one adapter for the whole batch"):
        model.eval()(input_ids=token_ids(), adapter_names=names)
