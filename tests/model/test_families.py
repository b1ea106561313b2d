"""Every family, block by block, beside the model as transformers runs it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from duquant.model.decoder import Decoder
from tests.block_by_block import quantize_decoder, run_blocks, small_recipe
from tests.tiny_models import FAMILIES, REFUSED, token_ids, write_tiny_model

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    written: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in written:
            path = tmp_path_factory.mktemp(family)
            written[family] = write_tiny_model(path, {**FAMILIES, **REFUSED}[family])
        return written[family]

    return find


def original_logits(path: Path, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        return model(input_ids).logits  # type: ignore[no-any-return]


@every_family
def test_block_by_block_is_the_model(family: str, directory: Callable[[str], Path]) -> None:
    decoder, input_ids = Decoder(str(directory(family)), torch.float32), token_ids()
    logits = run_blocks(decoder, input_ids)
    # The same kernels in the same order.
    torch.testing.assert_close(logits, original_logits(directory(family), input_ids))
    # Eager attention is another implementation: float32 sums in another order, logits up to 10.
    eager = original_logits(directory(family), input_ids, attn_implementation="eager")
    torch.testing.assert_close(logits, eager, rtol=1e-4, atol=1e-4)


@every_family
def test_no_token_sees_the_future(family: str, directory: Callable[[str], Path]) -> None:
    decoder, input_ids = Decoder(str(directory(family)), torch.float32), token_ids()
    changed = input_ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 90 + 3
    blocks = [block.layer for block in quantize_decoder(decoder, small_recipe(), token_ids(seed=1))]
    for replaced in (None, blocks):
        before = run_blocks(decoder, input_ids, replaced)
        after = run_blocks(decoder, changed, replaced)
        assert torch.equal(before[:, :-1], after[:, :-1])
        assert not torch.equal(before[:, -1], after[:, -1])


@pytest.mark.parametrize("family", ["mistral-sliding", "qwen2-mixed-layers"])
def test_the_window_matters(family: str, directory: Callable[[str], Path]) -> None:
    """Otherwise the tests of these families would prove nothing about their masks."""
    input_ids = token_ids()
    logits = original_logits(directory(family), input_ids)
    wide = original_logits(directory(family), input_ids, sliding_window=64)
    assert torch.allclose(logits[:, :4], wide[:, :4], atol=1e-4)
    assert (logits - wide).abs().max() > 1e-2


def test_mixed_layers_are_mixed(directory: Callable[[str], Path]) -> None:
    decoder = Decoder(str(directory("qwen2-mixed-layers")), torch.float32)
    assert decoder.config.layer_types == ["full_attention", *["sliding_attention"] * 2]


@every_family
@pytest.mark.parametrize("attention_output", ["key_value_channel", "query_channel"])
def test_transforms_alone_leave_the_logits(
    family: str, attention_output: str, directory: Callable[[str], Path]
) -> None:
    """Smoothing, rotations and permutations everywhere, but 16 bits: nothing may change."""
    decoder, input_ids = Decoder(str(directory(family)), torch.float32), token_ids()
    recipe = small_recipe(16, attention_output=attention_output)
    blocks = quantize_decoder(decoder, recipe, token_ids(seed=1))
    logits = run_blocks(decoder, input_ids, [block.layer for block in blocks])
    for block in blocks:
        assert all(site.transform.rotations.numel() for site in block.sites.values())
        assert all((scale - 1).abs().max() > 0.1 for scale in block.scales.values())
    # Scales and three rotations per site in float32, on norm outputs up to 50: five digits remain.
    expected = original_logits(directory(family), input_ids)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@every_family
def test_four_bits_run_and_a_seed_decides_every_number(
    family: str, directory: Callable[[str], Path]
) -> None:
    decoder, input_ids = Decoder(str(directory(family)), torch.float32), token_ids()
    first, second, other = (
        quantize_decoder(decoder, small_recipe(), input_ids, seed=seed) for seed in (3, 3, 4)
    )
    logits = run_blocks(decoder, input_ids, [block.layer for block in first])
    assert logits.isfinite().all()
    assert not torch.allclose(logits, run_blocks(decoder, input_ids))
    for one, two in zip(first, second, strict=True):
        state, again = one.layer.state_dict(), two.layer.state_dict()
        assert state.keys() == again.keys()
        assert all(torch.equal(state[name], again[name]) for name in state)
    rotations, others = (run[0].sites["mlp_input"].transform.rotations for run in (first, other))
    assert not torch.equal(rotations, others)


@pytest.mark.parametrize("family", ["llama-grouped", "qwen2", "gemma"])
def test_bfloat16_stays_bfloat16(family: str, directory: Callable[[str], Path]) -> None:
    decoder, input_ids = Decoder(str(directory(family)), torch.bfloat16), token_ids()
    blocks = quantize_decoder(decoder, small_recipe(16), token_ids(seed=1))
    plain = run_blocks(decoder, input_ids)
    transformed = run_blocks(decoder, input_ids, [block.layer for block in blocks])
    assert plain.dtype == transformed.dtype == torch.bfloat16
    exact = original_logits(directory(family), input_ids)
    # Eight bits of mantissa: the plain model is off by some percent. Scales and three rotations per
    # site are as many roundings again, so they may double that error, not more.
    plain_error, error = ((x.float() - exact).square().mean() for x in (plain, transformed))
    assert error.sqrt() < 2 * plain_error.sqrt()


@pytest.mark.parametrize(
    ("family", "named"),
    [
        ("gemma2", ["pre_feedforward_layernorm", "post_feedforward_layernorm"]),
        ("phi3", ["self_attn.qkv_proj", "mlp.gate_up_proj", "self_attn.q_proj"]),
        ("mixtral", ["mlp.gate", "mlp.experts", "mlp.up_proj"]),
        ("olmo", ["input_layernorm.weight", "post_attention_layernorm.weight"]),
        ("olmo2", ["input_layernorm", "post_feedforward_layernorm"]),
        ("stablelm", ["dropout"]),
        ("cohere", ["post_attention_layernorm"]),
        ("gpt2", ["model.layers"]),
    ],
)
def test_other_blocks_are_refused_by_the_names_of_their_modules(
    family: str, named: list[str], directory: Callable[[str], Path]
) -> None:
    with pytest.raises(ValueError, match=family) as error:
        Decoder(str(directory(family)), torch.float32)
    for module in named:
        assert module in str(error.value)


def test_every_refused_family_is_tested() -> None:
    marks = test_other_blocks_are_refused_by_the_names_of_their_modules.pytestmark
    assert {family for family, _ in marks[0].args[1]} == set(REFUSED)
