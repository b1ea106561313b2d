"""The decoder that is never whole: what has memory, what is rebuilt, what a context holds."""

from pathlib import Path

import pytest
import torch
from torch import nn

from duquant.model.decoder import Decoder
from duquant.ops.precision import product_settings
from tests.block_by_block import CPU, run_blocks
from tests.tiny_models import FAMILIES, tiny_model, token_ids, write_tiny_model


@pytest.fixture
def decoder(tmp_path: Path) -> Decoder:
    return Decoder(str(write_tiny_model(tmp_path, FAMILIES["llama-grouped"])), torch.float32)


def test_blocks_of_the_skeleton_hold_no_memory(decoder: Decoder) -> None:
    run_blocks(decoder, token_ids())
    for index in range(decoder.num_blocks):
        assert all(tensor.is_meta for tensor in decoder.meta_block(index).state_dict().values())


def test_a_loaded_block_is_the_callers_own(decoder: Decoder) -> None:
    first, second = decoder.load_block(0), decoder.load_block(0)
    expected = tiny_model(FAMILIES["llama-grouped"]).model.layers[0].state_dict()
    first.get_submodule("mlp.up_proj").get_parameter("weight").zero_()
    assert all(torch.equal(tensor, expected[n]) for n, tensor in second.state_dict().items())
    assert not any(parameter.requires_grad for parameter in second.parameters())
    assert not second.training


def test_sizes_are_the_configurations(decoder: Decoder) -> None:
    assert decoder.num_blocks == 2
    assert decoder.max_positions == 64
    assert decoder.dtype == torch.float32


@pytest.mark.parametrize("tokens", [1, 5, 24])
def test_a_context_fits_every_batch_of_its_length(decoder: Decoder, tokens: int) -> None:
    input_ids = token_ids(3, tokens)
    together = run_blocks(decoder, input_ids)
    alone = torch.cat([run_blocks(decoder, one) for one in input_ids.split(1)])
    # Matrices of another height: float32 sums may be cut elsewhere.
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert len(decoder.contexts(tokens, CPU)) == 2


def test_blocks_keep_no_cache_and_outside_runs_leave_the_skeleton_whole(decoder: Decoder) -> None:
    blocks = list(decoder.skeleton.model.layers)
    for context in decoder.contexts(8, CPU):
        assert context["past_key_values"] is None
        assert context["use_cache"] is False
    assert list(decoder.skeleton.model.layers) == blocks


def test_angles_of_positions_are_exact_whatever_products_are_allowed(decoder: Decoder) -> None:
    expected = decoder.contexts(8, CPU)[0]["position_embeddings"]
    seen = []
    decoder.skeleton.model.rotary_emb.register_forward_pre_hook(
        lambda *_: seen.extend(product_settings())
    )
    torch.set_float32_matmul_precision("medium")
    try:
        found = decoder.contexts(8, CPU)[0]["position_embeddings"]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["ieee", "ieee"]
    assert all(map(torch.equal, found, expected))


def test_a_failed_outside_run_leaves_the_skeleton_whole(decoder: Decoder) -> None:
    blocks = list(decoder.skeleton.model.layers)
    with pytest.raises(IndexError):
        decoder.embed(torch.tensor([[10_000]]), CPU)
    assert list(decoder.skeleton.model.layers) == blocks


def test_embeddings_are_looked_up_and_nothing_else_runs(decoder: Decoder) -> None:
    input_ids = token_ids()
    table = decoder.outside_tensor("model.embed_tokens.weight")
    assert torch.equal(decoder.embed(input_ids, CPU), nn.functional.embedding(input_ids, table))
    assert not decoder.embed(input_ids, CPU).requires_grad


def test_logits_are_norm_and_head(decoder: Decoder) -> None:
    hidden = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    model = tiny_model(FAMILIES["llama-grouped"])
    with torch.no_grad():
        assert torch.equal(decoder.logits(hidden), model.lm_head(model.model.norm(hidden)))


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    decoder = Decoder(str(write_tiny_model(tmp_path, FAMILIES["llama-tied"])), torch.float32)
    assert set(decoder.outside_shapes()) == {"model.embed_tokens.weight", "model.norm.weight"}
    decoder.logits(torch.zeros(1, 1, 64))
    assert torch.equal(
        decoder.skeleton.lm_head.weight, decoder.outside_tensor("model.embed_tokens.weight")
    )
