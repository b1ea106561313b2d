"""Attention with quantized Q, K and V, beside plain scaled dot product attention."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from duquant.config import Recipe
from duquant.nn import attention
from duquant.nn.attention import BIASES, duquant_attention, register_attention
from duquant.nn.attention_quantizer import ATTENTION_NAME, NO_BIASES, AttentionQuantizer
from duquant.ops.affine import fake_quantize
from duquant.ops.repeatable_attention import can_repeat_flash

HEAD_DIMS = (16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256)


def quantizer(
    head_dim: int, bits: int = 4, *, block_size: int = 128, clip_ratio: float = 0.9
) -> AttentionQuantizer:
    formats = Recipe(activation_bits=bits).formats
    return AttentionQuantizer(head_dim, formats, clip_ratio=clip_ratio, block_size=block_size)


def heads(head_dim: int, seed: int, num_heads: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, num_heads, 5, head_dim, generator=generator)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("block_size", [16, 128])
def test_rotation_leaves_scores_alone_for_every_head_dim(head_dim: int, block_size: int) -> None:
    rotate = quantizer(head_dim, block_size=block_size).rotate
    query, key = heads(head_dim, 0), heads(head_dim, 1)
    rotated = rotate(query) @ rotate(key).mT
    assert rotate(query).shape == query.shape
    # Sums of up to 256 products of float32 numbers of order one.
    torch.testing.assert_close(rotated, query @ key.mT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rotation_spreads_a_channel_over_its_block(head_dim: int) -> None:
    one = torch.zeros(1, 1, 1, head_dim)
    one[..., 0] = 1
    size = min(head_dim & -head_dim, 128)
    rotated = quantizer(head_dim).rotate(one).flatten()
    torch.testing.assert_close(rotated[:size], torch.full((size,), size**-0.5))
    assert rotated[size:].eq(0).all()


@pytest.mark.parametrize("head_dim", [16, 64, 80])
def test_no_token_and_no_head_touches_another(head_dim: int) -> None:
    quantize = quantizer(head_dim)
    before = (heads(head_dim, 0), heads(head_dim, 1), heads(head_dim, 2))
    after = tuple(x.clone() for x in before)
    for x in after:
        x[0, 1, 2] = 100
    others = torch.ones(2, 3, 5, dtype=torch.bool)
    others[0, 1, 2] = False
    for old, new in zip(quantize(*before), quantize(*after), strict=True):
        assert torch.equal(old[others], new[others])
        assert not torch.equal(old[~others], new[~others])


def test_query_and_key_are_rotated_and_clipped_value_is_neither() -> None:
    quantize = quantizer(32, bits=3)
    query, key, value = quantize(heads(32, 0), heads(32, 1), heads(32, 2))
    clip = {"clip_high": 0.9, "clip_low": 0.9}
    assert torch.equal(query, fake_quantize(quantize.rotate(heads(32, 0)), 3, **clip))
    assert torch.equal(key, fake_quantize(quantize.rotate(heads(32, 1)), 3, **clip))
    assert torch.equal(value, fake_quantize(heads(32, 2), 3))


def test_bits_are_chosen_one_by_one() -> None:
    formats = Recipe(query_bits=16, key_bits=2, value_bits=16).formats
    quantize = AttentionQuantizer(16, formats, clip_ratio=1.0, block_size=16)
    query, key, value = quantize(heads(16, 0), heads(16, 1), heads(16, 2))
    assert torch.equal(query, quantize.rotate(heads(16, 0)))
    assert all(token.unique().numel() <= 4 for token in key.flatten(0, -2))
    assert torch.equal(value, heads(16, 2))


@pytest.mark.parametrize("symmetric", [False, True])
def test_symmetric_reaches_all_three(symmetric: bool) -> None:
    formats = Recipe(symmetric=symmetric).formats
    quantize = AttentionQuantizer(16, formats, clip_ratio=1.0, block_size=16)
    x = heads(16, 0)
    expected = fake_quantize(x, 4, symmetric=symmetric)
    assert torch.equal(quantize.value(x), expected)
    assert torch.equal(quantize.key(x), expected)
    assert torch.equal(quantize.query(x), expected)


def test_bfloat16_stays_bfloat16() -> None:
    for x in quantizer(32)(*(heads(32, seed).bfloat16() for seed in range(3))):
        assert x.dtype == torch.bfloat16


class Attention(nn.Module):
    """What transformers' attention functions need to know of their module."""

    is_causal = True

    def __init__(self, num_key_value_groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = num_key_value_groups
        self.config = SimpleNamespace()


def test_a_module_without_quantizer_is_passed_through() -> None:
    query, key, value = heads(16, 0), heads(16, 1), heads(16, 2)
    output, weights = duquant_attention(Attention(1), query, key, value, None)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert weights is None
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_quantizer_sees_key_value_heads_before_they_are_repeated() -> None:
    module = Attention(2)
    module.attention_quantizer = quantizer(16)
    query, key, value = heads(16, 0, num_heads=4), heads(16, 1, 2), heads(16, 2, 2)
    arrives = {BIASES: (NO_BIASES, False)}  # as the hook in front of a decoder's module says
    output, _ = duquant_attention(module, query, key, value, None, **arrives)
    q, k, v = module.attention_quantizer(query, key, value)
    repeated = [x.repeat_interleave(2, dim=1) for x in (k, v)]
    expected = F.scaled_dot_product_attention(q, *repeated, is_causal=True)
    # Another kernel may add in another order.
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_name_is_registered_for_attention_and_for_masks() -> None:
    """With the first alone transformers builds no mask and the model sees the future."""
    register_attention()
    register_attention()
    assert AttentionInterface()[ATTENTION_NAME] is duquant_attention
    assert ATTENTION_NAME in AttentionMaskInterface()


class Names(TorchDispatchMode):
    """Keeps which operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += func.__name__
        return func(*args, **(kwargs or {}))


def trained(**more: Any) -> tuple[list[Tensor], str]:
    """Attention as it is trained on a GPU: output and gradients, and names of its operations."""
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(2, count, 5, 16, generator=generator) for count in (6, 2, 2)]
    operands = [x.requires_grad_() for x in heads]
    module = nn.Module()
    module.num_key_value_groups = 3  # type: ignore[assignment]
    given = {"mask": None, "dropout": 0.0, "scaling": 0.25, "position_ids": None, **more}
    with Names() as names:
        output, _ = attention._repeatable(sdpa_attention_forward, module, *operands, **given)
        return [output, *torch.autograd.grad(output.square().sum(), operands)], names.seen


def test_training_on_a_gpu_takes_flash_attention_where_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run on the processor, whose FlashAttention stands in for CUDA's."""
    plain, names = trained()
    assert "flash" not in names
    monkeypatch.setattr("torch.backends.cuda.can_use_flash_attention", lambda params: True)
    monkeypatch.setattr(attention, "can_repeat_flash", on_a_gpu)
    found, names = trained()
    assert "flash" in names
    assert "bmm" not in names
    for mine, others in zip(found, plain, strict=True):
        torch.testing.assert_close(mine, others)
    bias = torch.zeros(1, 6, 5, 5)
    for more in ({"mask": bias}, {"position_bias": bias}, {"dropout": 0.1}):
        assert "flash" not in trained(**more)[1], more


def on_a_gpu(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> bool:
    """What is answered for such tensors on CUDA."""
    with FakeTensorMode():
        fake = [torch.empty(x.shape, device="cuda") for x in (query, key, value)]
        mask, dropout = others
        return can_repeat_flash(*fake, None if mask is None else fake[0], dropout)
