"""A quantized directory as transformers loads it, runs it, saves it, and refuses it."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline

import duquant
from duquant.config import Recipe, RotationConfig
from duquant.evaluation.perplexity import window_losses
from duquant.export import hugging_face
from duquant.export.checksums import RECIPE, recipe_checksum
from duquant.export.hugging_face import register
from duquant.export.quantization_config import QUANT_METHOD, DuquantConfig
from duquant.model.decoder import Decoder
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.site import SiteTransform
from duquant.ops.integer_product import engine
from tests.block_by_block import small_recipe
from tests.forked_process import run_forked
from tests.quantized_directory import (
    QuantizedDirectory,
    logits,
    quantize_source,
    write_quantized,
)
from tests.small_run import write_small_model
from tests.tiny_models import FAMILIES, token_ids, write_tiny_model

IDS = token_ids()
HAS_INTEGERS = engine(torch.device("cpu")) is not None
integers_needed = pytest.mark.skipif(not HAS_INTEGERS, reason="this processor has no int8 engine")
BACKENDS = ["reference", pytest.param("integer", marks=integers_needed)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], QuantizedDirectory]:
    written: dict[str, QuantizedDirectory] = {}

    def find(family: str) -> QuantizedDirectory:
        if family not in written:
            written[family] = write_quantized(tmp_path_factory.mktemp(family), FAMILIES[family])
        return written[family]

    return find


@pytest.fixture(scope="module")
def llama(directory: Callable[[str], QuantizedDirectory]) -> QuantizedDirectory:
    return directory("llama-grouped")


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> QuantizedDirectory:
    """A model with a tokenizer."""
    path = tmp_path_factory.mktemp("speaking")
    return quantize_source(
        write_small_model(path / "source", blocks=1), path / "model", small_recipe()
    )


def reference(model: Any) -> Any:
    duquant.set_execution(model, "reference")
    return model


def stored_tensors(path: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for file in sorted(path.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_tensors(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


# The same model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_runs_and_saves_as_validation_computes_it(
    family: str, directory: Callable[[str], QuantizedDirectory], tmp_path: Path
) -> None:
    written = directory(family)
    model = reference(written.load())
    assert not model.training
    expected = written.logits_block_by_block(IDS)
    assert torch.equal(logits(model, IDS), expected)
    model.save_pretrained(tmp_path)
    assert_same_tensors(stored_tensors(tmp_path), stored_tensors(written.path))
    again = reference(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert torch.equal(logits(again, IDS), expected)


RECIPES: dict[str, Recipe] = {
    "W3A8 in groups": replace(small_recipe(8), weight_bits=3, group_size=16),
    "W16A4": replace(small_recipe(), weight_bits=16),
    "W4A16": replace(small_recipe(), activation_bits=16),
    "W12A4": replace(small_recipe(), weight_bits=12),
    "symmetric": replace(small_recipe(), symmetric=True),
    "divided online": small_recipe(attention_output="query_channel"),
    "no rotation": replace(small_recipe(), rotation=RotationConfig(selector="none")),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_loads_and_saves(recipe: str, tmp_path: Path) -> None:
    written = write_quantized(tmp_path, FAMILIES["llama-grouped"], RECIPES[recipe])
    model = reference(written.load())
    assert torch.equal(logits(model, IDS), written.logits_block_by_block(IDS))
    duquant.set_execution(model)
    logits(model, IDS)
    model.save_pretrained(tmp_path / "again")
    assert_same_tensors(stored_tensors(tmp_path / "again"), stored_tensors(written.path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_loaded_as_it_was_stored(dtype: torch.dtype, tmp_path: Path) -> None:
    written = write_quantized(tmp_path, FAMILIES["qwen2"], dtype=dtype)
    model = reference(written.load())
    assert model.dtype == dtype
    assert torch.equal(logits(model, IDS), written.logits_block_by_block(IDS))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_another_dtype_casts_everything_but_grids_and_transforms(
    dtype: Any, llama: QuantizedDirectory, tmp_path: Path
) -> None:
    model = llama.load(dtype=dtype)
    asked = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert logits(model, IDS).dtype == model.dtype == asked
    model.save_pretrained(tmp_path)
    tensors, stored = stored_tensors(tmp_path), stored_tensors(llama.path)
    for name, tensor in tensors.items():
        is_ordinary = name.endswith(".weight")
        assert tensor.dtype == (asked if is_ordinary else stored[name].dtype), name
        assert torch.equal(tensor, stored[name].to(tensor.dtype)), name


@integers_needed
def test_saving_while_running_in_integers_stores_the_same_tensors(
    llama: QuantizedDirectory, tmp_path: Path, without_kernel: None
) -> None:
    model = llama.load()
    duquant.set_execution(model, "integer")
    before = logits(model, IDS)
    assert model.model.layers[0].mlp.up_proj.packed is None, "weights lie as the engine wants them"
    model.save_pretrained(tmp_path)
    assert_same_tensors(stored_tensors(tmp_path), stored_tensors(llama.path))
    assert torch.equal(logits(model, IDS), before)


def test_shards_of_any_size_load(llama: QuantizedDirectory, tmp_path: Path) -> None:
    llama.load().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = reference(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert torch.equal(logits(again, IDS), llama.logits_block_by_block(IDS))


LOAD_AND_COMPARE = """
import sys, torch, duquant
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
ids, expected = torch.load(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
duquant.set_execution(model, "reference")
with torch.no_grad():
    assert torch.equal(model(ids).logits, expected)
print(model.generate(ids[:1], max_new_tokens=3, do_sample=False)[0, -3:].tolist())
"""


def test_another_process_computes_the_same(llama: QuantizedDirectory, tmp_path: Path) -> None:
    torch.save((IDS, llama.logits_block_by_block(IDS)), tmp_path / "expected.pt")
    arguments = [str(llama.path), str(tmp_path / "expected.pt")]
    process = run_forked(["-c", LOAD_AND_COMPARE, *arguments], dict(os.environ))
    assert process.returncode == 0, process.stderr
    tokens = reference(llama.load()).generate(IDS[:1], max_new_tokens=3, do_sample=False)
    assert process.stdout.strip() == str(tokens[0, -3:].tolist())


def test_loading_and_registering_twice_is_harmless(llama: QuantizedDirectory) -> None:
    first = reference(llama.load())
    register()
    register()
    second = reference(llama.load())
    assert torch.equal(logits(first, IDS), logits(second, IDS))
    config = AutoConfig.from_pretrained(llama.path)
    assert config.quantization_config["quant_method"] == QUANT_METHOD
    assert isinstance(second.config.quantization_config, DuquantConfig)


# Where it runs


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_device_maps(device_map: Any, llama: QuantizedDirectory) -> None:
    pytest.importorskip("accelerate")
    model = reference(llama.load(device_map=device_map))
    assert torch.equal(logits(model, IDS), llama.logits_block_by_block(IDS))


OFFLOADED = {
    "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
    "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu",
}  # fmt: skip


@pytest.mark.parametrize("memory", ["fast", "packed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_block_may_wait_on_the_disk(
    backend: Any, memory: Any, llama: QuantizedDirectory, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    model = llama.load(device_map=OFFLOADED, offload_folder=tmp_path)
    whole = llama.load()
    for each in (model, whole):
        duquant.set_execution(each, backend, memory)
    assert model.model.layers[1].input_layernorm.norm.weight.is_meta, "it is on the disk"
    for _ in range(2):
        assert torch.equal(logits(model, IDS), logits(whole, IDS))


@pytest.mark.parametrize(
    ("backend", "offload_buffers"),
    [
        ("auto", True),
        ("reference", True),
        ("reference", False),
        pytest.param("integer", False, marks=integers_needed),
    ],
)
def test_an_offloaded_block_leaves_no_faster_form_in_memory(
    backend: Any, offload_buffers: bool, llama: QuantizedDirectory, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    model = llama.load(
        device_map=OFFLOADED, offload_folder=tmp_path, offload_buffers=offload_buffers
    )
    duquant.set_execution(model, backend)
    logits(model, IDS)
    for block, keeps in zip(model.model.layers, (True, False), strict=True):
        linears = [module for module in block.modules() if isinstance(module, PackedLinear)]
        assert len(linears) == 7
        for linear in linears:
            is_joined = linear.shared is not None and linear.shared.is_made
            kept = is_joined or linear.panels is not None or linear._dequantized is not None
            assert kept == keeps
            assert keeps or linear.packed is not None


def test_packed_weights_go_back_to_the_disk_with_offload_buffers(
    llama: QuantizedDirectory, tmp_path: Path
) -> None:
    """accelerate leaves buffers where they are unless it is told to move them."""
    pytest.importorskip("accelerate")
    options = {"device_map": OFFLOADED, "offload_folder": tmp_path, "offload_buffers": True}
    model, expected = llama.load(**options), llama.logits_block_by_block(IDS)
    duquant.set_execution(model, "reference", "packed")
    linear = model.model.layers[1].mlp.up_proj
    for _ in range(2):
        assert torch.equal(logits(model, IDS), expected)
        assert linear.packed.is_meta
        assert linear.scale.is_meta
    with pytest.raises(ValueError, match="meta has no int8 matrix product; use 'reference'"):
        duquant.set_execution(model, "integer")


def test_low_cpu_memory_usage_is_accepted(llama: QuantizedDirectory) -> None:
    model = reference(llama.load(low_cpu_mem_usage=True))
    assert torch.equal(logits(model, IDS), llama.logits_block_by_block(IDS))


def test_a_pipeline_speaks(speaking: QuantizedDirectory) -> None:
    generate = pipeline("text-generation", model=str(speaking.path))
    (answer,) = generate("def", max_new_tokens=4, do_sample=False, return_full_text=True)
    tokenizer = AutoTokenizer.from_pretrained(speaking.path)
    tokens = speaking.load().generate(
        **tokenizer("def", return_tensors="pt"), max_new_tokens=4, do_sample=False
    )
    assert answer["generated_text"] == tokenizer.decode(tokens[0], skip_special_tokens=True)


# Generation

PADDED = torch.cat([torch.zeros(2, 3, dtype=torch.int64), IDS[:, :9]], dim=1)
PADDED[1, :3] = IDS[1, 9:12]
MASK = (PADDED != 0).long()
GENERATIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "top_k": 5},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}


@pytest.fixture(scope="module")
def model(llama: QuantizedDirectory) -> Any:
    return reference(llama.load())


def generate(
    model: Any, ids: Tensor = PADDED, mask: Tensor | None = MASK, **options: Any
) -> Tensor:
    torch.manual_seed(0)
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask, **options}
    tokens: Tensor = model.generate(ids, **settings)
    return tokens


@pytest.mark.parametrize("kind", GENERATIONS)
def test_every_way_to_generate(kind: str, model: Any) -> None:
    tokens = generate(model, **GENERATIONS[kind])
    assert torch.equal(tokens[:, :12], PADDED)
    assert 12 < tokens.shape[1] <= 18
    assert torch.equal(generate(model, **GENERATIONS[kind]), tokens)
    if kind in ("static cache", "no cache"):
        assert torch.equal(tokens, generate(model))
    elif kind != "greedy":
        assert not torch.equal(tokens, generate(model))


def test_greedy_tokens_are_those_of_the_largest_logits(model: Any) -> None:
    tokens = generate(model, IDS[:1], None, max_new_tokens=4, min_new_tokens=4, eos_token_id=-1)
    for length in range(IDS.shape[1], tokens.shape[1]):
        assert tokens[0, length] == logits(model, tokens[:, :length])[0, -1].argmax()


def test_left_padding_changes_no_answer(model: Any) -> None:
    alone = generate(model, PADDED[:1, 3:], None)
    together = generate(model)[:1, 3:]
    assert torch.equal(together[:, : alone.shape[1]], alone)


@integers_needed
def test_both_backends_write_the_same_text(llama: QuantizedDirectory, model: Any) -> None:
    integer = llama.load()
    duquant.set_execution(integer, "integer")
    assert torch.equal(generate(integer), generate(model))
    cache = duquant.PackedCache(integer)
    assert torch.equal(generate(integer, past_key_values=cache), generate(model))


# Two backends


@integers_needed
@pytest.mark.parametrize("family", ["llama-biases", "qwen3", "gemma"])
def test_perplexity_is_the_same_on_both_backends(
    family: str, directory: Callable[[str], QuantizedDirectory]
) -> None:
    model, windows = directory(family).load(), token_ids(16, 32, seed=7)
    perplexities = []
    for backend in ("reference", "integer"):
        duquant.set_execution(model, backend)  # type: ignore[arg-type]
        perplexities.append(float(window_losses(logits(model, windows), windows).mean().exp()))
    # Sums are rounded otherwise, which now and then moves an activation to the next of 16 levels.
    assert perplexities[1] == pytest.approx(perplexities[0], rel=2e-3)


@integers_needed
def test_integers_are_what_auto_takes_where_scales_are_shared_widely(tmp_path: Path) -> None:
    wide = {
        **FAMILIES["llama"],
        "hidden_size": 512,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
    }
    model = write_quantized(tmp_path, wide).load()
    block = model.model.layers[0]
    assert block.input_layernorm.site.emits_integers
    assert block.self_attn.o_proj.site.emits_integers
    assert not block.mlp.down_proj.site.emits_integers, "64 inputs are too few to be worthwhile"
    torch.testing.assert_close(
        logits(model, IDS[:, :4]), logits(reference(model), IDS[:, :4]), rtol=0, atol=0.05
    )
    assert not any(
        module.emits_integers for module in model.modules() if isinstance(module, SiteTransform)
    )


@integers_needed
def test_weights_that_are_not_quantized_have_no_integers(tmp_path: Path) -> None:
    recipe = RECIPES["W16A4"]
    model = write_quantized(tmp_path, FAMILIES["llama"], recipe).load()
    with pytest.raises(ValueError, match="integer backend cannot run here: the weights are not"):
        duquant.set_execution(model, "integer")


def test_a_choice_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    model = write_quantized(tmp_path, FAMILIES["llama"], RECIPES["W4A16"]).load()
    ids = torch.arange(3, 9).view(1, -1)
    with torch.no_grad():
        before = model(ids).logits
        with pytest.raises(ValueError, match="cannot run here"):
            duquant.set_execution(model, "integer")
        assert torch.equal(model(ids).logits, before)


def test_an_unknown_backend_is_named(llama: QuantizedDirectory) -> None:
    with pytest.raises(ValueError, match="backend is 'fastest'; it must be one of auto, ref"):
        duquant.set_execution(llama.load(), "fastest")  # type: ignore[arg-type]


def test_what_runs_comes_back_in_words_and_is_logged_once(
    llama: QuantizedDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    model = llama.load()
    hugging_face._say.cache_clear()
    with caplog.at_level("INFO", logger="duquant"):
        for _ in range(2):
            assert duquant.set_execution(model, "reference") == "reference in float32"
        if HAS_INTEGERS:
            assert duquant.set_execution(model, "integer").startswith("integer by ")
    assert caplog.messages.count("linears: reference in float32") == 1


@pytest.mark.parametrize("memory", ["fast", "packed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_does_not_decide_numbers(backend: Any, memory: Any, model: Any) -> None:
    expected = logits(reference(model), IDS)
    duquant.set_execution(model, backend, memory)
    output = logits(model, IDS)
    kept = [m.packed is not None for m in model.modules() if isinstance(m, PackedLinear)]
    assert all(kept) or (backend, memory) == ("integer", "fast")
    reference(model)
    if backend == "reference":
        assert torch.equal(output, expected)
    else:
        torch.testing.assert_close(output, expected, rtol=0, atol=0.05)


# Refusals

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
BLOCK, OUTSIDE = "model-block-00001.safetensors", "model-outside.safetensors"
UP = "model.layers.1.mlp.up_proj"
Change = Callable[[Path], None]


def quantization(**changes: Any) -> Change:
    def change(path: Path) -> None:
        config = json.loads((path / CONFIG).read_text())
        config["quantization_config"].update(changes)
        (path / CONFIG).write_text(json.dumps(config))

    return change


def configuration(**changes: Any) -> Change:
    def change(path: Path) -> None:
        config = json.loads((path / CONFIG).read_text())
        (path / CONFIG).write_text(json.dumps({**config, **changes}))

    return change


def tensors(file: str, edit: Callable[[dict[str, Tensor]], object]) -> Change:
    def change(path: Path) -> None:
        with safe_open(path / file, "pt") as opened:
            metadata = opened.metadata()
        held = load_file(path / file)
        edit(held)
        save_file(held, path / file, metadata=metadata)

    return change


def without(file: str, name: str) -> Change:
    return tensors(file, lambda held: held.pop(name))


def with_tensor(file: str, name: str, tensor: Tensor) -> Change:
    return tensors(file, lambda held: held.update({name: tensor}))


REFUSALS: dict[str, tuple[Change, str]] = {
    "newer format": (
        quantization(format_version=4, colour="blue"),
        "has format version 4; this duquant reads versions 2 to 3: install a newer one",
    ),
    "older format": (
        quantization(format_version=1, blocks=[]),
        "has format version 1; this duquant reads versions 2 to 3: quantize again",
    ),
    "no checksums": (
        quantization(checksums=None),
        "quantization_config has no checksums: the model directory is damaged",
    ),
    "empty checksums": (quantization(checksums={}), "the recipe in config.json is not the one"),
    "unknown key": (quantization(colour="blue"), "has an unknown key: colour"),
    "unknown key of the recipe": (quantization(recipe={"weight_bit": 4}), "weight_bit"),
    "impossible recipe": (quantization(recipe={"weight_bits": 1}), "weight_bits is 1"),
    "another recipe": (
        quantization(recipe=small_recipe(8).to_dict()),
        "the recipe in config.json is not the one the model was quantized by",
    ),
    "fewer blocks": (
        configuration(num_hidden_layers=1), "asks for 1 blocks; the quantized model has 2"
    ),
    "more blocks": (
        configuration(num_hidden_layers=3), "asks for 3 blocks; the quantized model has 2"
    ),
    "no weight": (
        without(BLOCK, f"{UP}.packed"), "block 1 .* the stored block lacks mlp.up_proj.packed"
    ),
    "no norm in a block": (
        without(BLOCK, "model.layers.1.input_layernorm.norm.weight"),
        "block 1 .* lacks input_layernorm.norm.weight",
    ),
    "no rotation": (
        without(BLOCK, "model.layers.1.mlp.down_proj.site.transform.rotations"),
        "block 1 .* lacks mlp.down_proj.site.transform.rotations",
    ),
    "no final norm": (without(OUTSIDE, "model.norm.weight"), "lacks model.norm.weight"),
    "no embeddings": (
        without(OUTSIDE, "model.embed_tokens.weight"), "lacks model.embed_tokens.weight"
    ),
    "no head": (without(OUTSIDE, "lm_head.weight"), "lacks lm_head.weight"),
    "left over": (
        with_tensor(BLOCK, "model.layers.1.mlp.router", torch.zeros(1)),
        "block 1 .* does not belong to it: mlp.router",
    ),
    "shape of a scale": (
        with_tensor(BLOCK, f"{UP}.scale", torch.ones(96, 2)),
        r"block 1 .* mlp.up_proj.scale has shape \(96, 2\)",
    ),
    "shape of the final norm": (
        with_tensor(OUTSIDE, "model.norm.weight", torch.ones(3)),
        r"model.norm.weight has shape \(3,\); config.json asks for \(64,\)",
    ),
    "one bit": (
        tensors(BLOCK, lambda held: held[f"{UP}.packed"][3, 5].bitwise_xor_(1)),
        "block 1 of the quantized model: damaged or altered",
    ),
    "one scale": (
        tensors(BLOCK, lambda held: held[f"{UP}.scale"][3].mul_(1.0001)),
        "block 1 of the quantized model: damaged or altered",
    ),
    "one tensor too many": (
        with_tensor(OUTSIDE, "model.router", torch.zeros(1)),
        "embeddings, norm and head of the quantized model: damaged or altered",
    ),
    "no block": (lambda path: (path / BLOCK).unlink(), f"{BLOCK} is missing"),
    "half a block": (
        lambda path: (path / BLOCK).write_bytes((path / BLOCK).read_bytes()[:3000]),
        f"{BLOCK} is damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_in_one_line(
    case: str, llama: QuantizedDirectory, tmp_path: Path
) -> None:
    change, words = REFUSALS[case]
    shutil.copytree(llama.path, tmp_path / "changed")
    change(tmp_path / "changed")
    with pytest.raises(ValueError, match=words) as refused:
        AutoModelForCausalLM.from_pretrained(tmp_path / "changed")
    assert "\n" not in str(refused.value)


def test_a_head_that_is_tied_is_not_missed(directory: Callable[[str], QuantizedDirectory]) -> None:
    model = directory("llama-tied").load()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_a_quantized_directory_is_no_model_to_calibrate(llama: QuantizedDirectory) -> None:
    with pytest.raises(ValueError, match="holds a model that is quantized already; give the orig"):
        Decoder(str(llama.path), torch.float32)


def test_models_are_not_quantized_while_they_are_loaded(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path, FAMILIES["llama"])
    recipe = small_recipe().to_dict()
    config = DuquantConfig(recipe, checksums={RECIPE: recipe_checksum(recipe)}, model_config={})
    with pytest.raises(ValueError, match="calibrated, not quantized while loading"):
        AutoModelForCausalLM.from_pretrained(source, quantization_config=config)
