"""A block that was packed and unpacked computes exactly what it computed before."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from duquant.config import LWCConfig, Recipe, RotationConfig, SmoothingConfig
from duquant.export.packed_block import pack_block, unpack_block
from duquant.export.packed_size import packed_bytes
from duquant.model.decoder import Decoder
from duquant.model.structure import LINEARS, linear_shapes
from duquant.model.surgery import QuantizedBlock
from duquant.ops.packing import packed_width
from tests.block_by_block import CPU, quantize_decoder, small_recipe
from tests.tiny_models import FAMILIES, token_ids, write_tiny_model

IDS = token_ids(2, 20)
PLAIN = small_recipe()
NO_LWC = LWCConfig(epochs=0)
RECIPES: dict[str, Recipe] = {
    **{f"W{bits}A4": replace(PLAIN, weight_bits=bits) for bits in (2, 3, 4, 5, 8, 12, 15)},
    "W16A4": replace(PLAIN, weight_bits=16),
    "W4A16": replace(PLAIN, activation_bits=16),
    "W16A16": small_recipe(16),
    "W3A8 in groups": replace(PLAIN, weight_bits=3, activation_bits=8, group_size=16),
    "W5A5 symmetric": replace(small_recipe(5), symmetric=True),
    "W4A4 symmetric in groups": replace(PLAIN, symmetric=True, group_size=32),
    "divided online": small_recipe(attention_output="query_channel"),
    "no rotation": replace(PLAIN, rotation=RotationConfig(selector="none")),
    "no permutation": replace(
        PLAIN, rotation=RotationConfig(block_size=16, max_steps=8, permutation_times=0)
    ),
    "two permutations": replace(
        PLAIN, rotation=RotationConfig(block_size=16, max_steps=8, permutation_times=2)
    ),
    "shared rotation": replace(
        PLAIN, rotation=RotationConfig(block_size=16, max_steps=8, scope="shared")
    ),
    "no smoothing": replace(PLAIN, smoothing=SmoothingConfig(enabled=False)),
    "attention alone": replace(small_recipe(16), query_bits=4, key_bits=3, value_bits=5),
}
FAMILIES_TO_STORE = (
    "llama-tied", "llama-biases", "llama-head-24", "mistral-sliding", "qwen2", "qwen3", "gemma"
)  # fmt: skip


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    directory = write_tiny_model(tmp_path_factory.mktemp("model"), FAMILIES["llama-grouped"])
    return Decoder(str(directory), torch.float32)


def fresh_block(decoder: Decoder, index: int = 0) -> nn.Module:
    """The block as it comes from the configuration: no weights."""
    return Decoder(str(decoder.directory), decoder.dtype).meta_block(index)


@torch.no_grad()
def outputs(decoder: Decoder, block: nn.Module, index: int) -> Tensor:
    hidden = decoder.embed(IDS, CPU)
    output: Tensor = block(hidden, **decoder.contexts(IDS.shape[1], CPU)[index])
    return output


def assert_survives_packing(decoder: Decoder, recipe: Recipe) -> None:
    for index, quantized in enumerate(quantize_decoder(decoder, recipe, IDS)):
        tensors = pack_block(quantized)
        again = unpack_block(fresh_block(decoder, index), tensors, recipe, decoder.dtype)
        expected = outputs(decoder, quantized.layer, index)
        assert expected.isfinite().all()
        assert torch.equal(outputs(decoder, again, index), expected)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_survives_exactly(recipe: str, decoder: Decoder) -> None:
    assert_survives_packing(decoder, RECIPES[recipe])


@pytest.mark.parametrize("family", FAMILIES_TO_STORE)
def test_every_family_survives_exactly(family: str, tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path, FAMILIES[family])
    recipe = small_recipe(block_size=8 if family == "llama-head-24" else 16)
    assert_survives_packing(Decoder(str(directory), torch.float32), recipe)


@pytest.mark.parametrize("recipe", ["W4A4", "W16A4", "W16A16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_survives_exactly(decoder: Decoder, dtype: torch.dtype, recipe: str) -> None:
    assert_survives_packing(Decoder(str(decoder.directory), dtype), RECIPES[recipe])


EXACT = ("packed", "scale", "zero", "rotations", "permutations", "online_scale")
"""What quantization brought along, in dtypes of its own."""
MOVED = {
    f"self_attn.{operand[0]}_proj.bias": f"self_attn.attention_quantizer.biases.{operand}"
    for operand in ("query", "key", "value")
}
"""Biases that attention adds."""


@pytest.mark.parametrize("family", ["llama-biases", "qwen2", "qwen3", "gemma"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recipe", ["W4A4", "W16A4", "divided online"])
def test_what_is_not_quantized_keeps_the_models_dtype(
    family: str, dtype: torch.dtype, recipe: str, tmp_path: Path
) -> None:
    """Norms with the smoothing in them, biases, weights of 16 bits: stored, and read again."""
    directory = write_tiny_model(tmp_path, FAMILIES[family])
    half = Decoder(str(directory), dtype)
    tensors = pack_block(quantized_block(half, RECIPES[recipe]))
    plain = {name: t for name, t in tensors.items() if not name.endswith(EXACT)}
    named = [name for name, _ in half.meta_block().named_parameters() if name.endswith("bias")]
    biases = [MOVED.get(name, name) for name in named]
    weights = [f"{name}.weight" for name in LINEARS] if recipe == "W16A4" else []
    assert plain.keys() >= {*biases, *weights, "post_attention_layernorm.norm.weight"}
    assert {tensor.dtype for tensor in plain.values()} == {dtype}
    again = unpack_block(fresh_block(half), tensors, RECIPES[recipe], dtype)
    read = again.state_dict()
    assert {name: tensor.dtype for name, tensor in read.items() if name in plain} == dict.fromkeys(
        plain, dtype
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_size_is_known_beforehand(decoder: Decoder, recipe: str) -> None:
    stored = sum(
        tensor.nbytes for tensor in pack_block(quantized_block(decoder, RECIPES[recipe])).values()
    )
    estimated = packed_bytes(decoder.meta_block(), RECIPES[recipe])
    online_scales = 4 * (3 * 64 + 96)  # float32 for every site: whether one is needed shows later
    assert stored <= estimated <= stored + online_scales


def quantized_block(decoder: Decoder, recipe: Recipe = PLAIN) -> QuantizedBlock:
    return quantize_decoder(decoder, recipe, IDS)[0]


def test_packing_does_not_change_the_block(decoder: Decoder) -> None:
    quantized = quantized_block(decoder)
    before = outputs(decoder, quantized.layer, 0)
    pack_block(quantized)
    assert torch.equal(outputs(decoder, quantized.layer, 0), before)


def test_the_names_are_those_of_the_modules(decoder: Decoder) -> None:
    tensors = pack_block(quantized_block(decoder))
    linears = {f"{name}.{part}" for name in LINEARS for part in ("packed", "scale", "zero")}
    sites = {
        f"{place}.site.transform.{part}"
        for place in ("input_layernorm", "self_attn.o_proj", "post_attention_layernorm",
                      "mlp.down_proj")
        for part in ("rotations", "permutations")
    }  # fmt: skip
    norms = {"input_layernorm.norm.weight", "post_attention_layernorm.norm.weight"}
    assert set(tensors) == linears | sites | norms


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 12])
def test_integers_are_stored_at_their_true_width(decoder: Decoder, bits: int) -> None:
    tensors = pack_block(quantized_block(decoder, replace(PLAIN, weight_bits=bits)))
    for name, (rows, columns) in linear_shapes(decoder.meta_block()).items():
        packed = tensors[f"{name}.packed"]
        assert packed.dtype == torch.uint8
        assert packed.shape == (rows, -(-columns * bits // 8))
        assert tensors[f"{name}.scale"].shape == (rows, 1)
        assert tensors[f"{name}.scale"].dtype == torch.float32
        assert tensors[f"{name}.zero"].dtype == torch.int16


def test_the_authors_online_scale_is_stored(decoder: Decoder) -> None:
    tensors = pack_block(quantized_block(decoder, RECIPES["divided online"]))
    scale = tensors["self_attn.o_proj.site.online_scale"]
    assert scale.shape == (64,)
    assert scale.unique().numel() > 32, "a scale per query channel"


def test_packed_linears_of_llama_2_7b_take_less_than_a_third_of_bf16() -> None:
    """4 bits of 16, and a scale and a zero per output channel: 0.25 and a little."""
    hidden, intermediate = 4096, 11008
    shapes = [(hidden, hidden)] * 4 + [(intermediate, hidden)] * 2 + [(hidden, intermediate)]
    scale_and_zero = torch.float32.itemsize + torch.int16.itemsize
    packed = sum(rows * (packed_width(columns, 4) + scale_and_zero) for rows, columns in shapes)
    bf16 = sum(rows * columns * torch.bfloat16.itemsize for rows, columns in shapes)
    assert packed <= 0.30 * bf16


def test_the_bytes_of_a_packed_linear_are_those_computed_from_its_shape(decoder: Decoder) -> None:
    """So the sum above is what a file of that width would hold."""
    tensors = pack_block(quantized_block(decoder))
    for name, (rows, columns) in linear_shapes(decoder.meta_block()).items():
        stored = sum(tensors[f"{name}.{part}"].nbytes for part in ("packed", "scale", "zero"))
        assert stored == rows * (packed_width(columns, 4) + 6)


# Refusals


@pytest.mark.parametrize(
    "missing",
    ["self_attn.q_proj.packed", "mlp.down_proj.scale", "mlp.up_proj.zero",
     "input_layernorm.norm.weight"],
)  # fmt: skip
def test_a_missing_tensor_is_named(decoder: Decoder, missing: str) -> None:
    tensors = pack_block(quantized_block(decoder))
    del tensors[missing]
    with pytest.raises(ValueError, match=f"lacks {missing}"):
        unpack_block(fresh_block(decoder), tensors, PLAIN, decoder.dtype)


@pytest.mark.parametrize("site", ["input_layernorm.site", "mlp.down_proj.site"])
@pytest.mark.parametrize("part", ["rotations", "permutations"])
def test_a_missing_transform_is_named(decoder: Decoder, site: str, part: str) -> None:
    """Without it the block would run, and compute nonsense."""
    tensors = pack_block(quantized_block(decoder))
    del tensors[f"{site}.transform.{part}"]
    with pytest.raises(ValueError, match=f"lacks {site}.transform.{part}"):
        unpack_block(fresh_block(decoder), tensors, PLAIN, decoder.dtype)


def test_a_missing_bias_is_named(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path, FAMILIES["llama-biases"])
    decoder = Decoder(str(directory), torch.float32)
    tensors = pack_block(quantized_block(decoder))
    del tensors["self_attn.o_proj.bias"]
    with pytest.raises(ValueError, match=r"lacks self_attn\.o_proj\.bias"):
        unpack_block(fresh_block(decoder), tensors, PLAIN, decoder.dtype)


def test_a_tensor_that_is_left_over_is_named(decoder: Decoder) -> None:
    tensors = pack_block(quantized_block(decoder))
    tensors["mlp.router.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"does not belong to it: mlp\.router\.weight"):
        unpack_block(fresh_block(decoder), tensors, PLAIN, decoder.dtype)


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAIN, weight_bits=16),
        replace(PLAIN, group_size=16),
        replace(PLAIN, weight_bits=8),
        replace(PLAIN, weight_bits=3),
    ],
    ids=["16 bits", "groups", "8 bits", "3 bits"],
)
def test_a_block_of_another_recipe_is_refused(decoder: Decoder, other: Recipe) -> None:
    tensors = pack_block(quantized_block(decoder))
    with pytest.raises(ValueError, match="_proj"):
        unpack_block(fresh_block(decoder), tensors, other, decoder.dtype)
