"""The quantized linear beside a plain ``nn.Linear`` that holds its dequantized weight."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from duquant.formats.integer import Integer
from duquant.formats.number_format import split_rows
from duquant.formats.table import build_format
from duquant.nn.activation import ActivationQuantizer
from duquant.nn.clipping import ClipFactors, FixedClip
from duquant.nn.linear import QuantLinear
from duquant.nn.site import SiteTransform
from duquant.ops.affine import fake_quantize
from duquant.rounding.nearest import Nearest
from tests.outliers import outlier_activation, random_weight, seeds

Build = Callable[..., QuantLinear]


def build(
    *,
    out_features: int = 6,
    in_features: int = 16,
    bits: int = 4,
    group_size: int | None = None,
    symmetric: bool = False,
    learned: bool = False,
    with_bias: bool = True,
    seed: int = 0,
) -> QuantLinear:
    weight = random_weight(out_features, in_features, seed)
    rows = weight.numel() // (group_size or in_features)
    clip = ClipFactors(rows) if learned else FixedClip(0.8)
    if isinstance(clip, ClipFactors):
        generator = torch.Generator().manual_seed(seed)
        for logit in clip.parameters():
            logit.data.normal_(1.0, generator=generator)
    return QuantLinear(
        weight,
        torch.linspace(-1, 1, out_features) if with_bias else None,
        clip,
        build_format("integer", bits=bits, symmetric=symmetric, group_size=group_size),
    )


def plain_twin(layer: QuantLinear) -> nn.Linear:
    out_features, in_features = layer.weight.shape
    plain = nn.Linear(in_features, out_features, bias=layer.bias is not None)
    with torch.no_grad():
        plain.weight.copy_(layer.quantized_weight())
        if layer.bias is not None:
            plain.bias.copy_(layer.bias)
    return plain


variants = st.fixed_dictionaries(
    {
        "bits": st.sampled_from([2, 3, 4, 8, 16]),
        "group_size": st.sampled_from([None, 4, 8, 16]),
        "symmetric": st.booleans(),
        "learned": st.booleans(),
        "with_bias": st.booleans(),
        "seed": seeds,
    }
)


@given(variants)
def test_forward_is_a_plain_linear_with_the_dequantized_weight(variant: dict[str, int]) -> None:
    layer = build(**variant)
    x = outlier_activation(5, 16, variant["seed"])
    assert torch.equal(layer(x), plain_twin(layer)(x))


@given(variants)
def test_rounding_changes_no_output_and_takes_the_gradient_away(variant: dict[str, int]) -> None:
    layer = build(**variant)
    x = outlier_activation(5, 16, variant["seed"])
    before = layer(x).detach()
    layer.round(Nearest())
    assert torch.equal(layer(x), before)
    assert not layer(x).requires_grad
    assert (layer.rounded is None) == (variant["bits"] == 16)


def test_every_group_has_its_own_scale() -> None:
    layer = build(group_size=4, learned=True)
    high, low, _ = layer.clip()
    expected = fake_quantize(split_rows(layer.weight, 4), 4, clip_high=high, clip_low=low)
    assert torch.equal(layer.quantized_weight(), expected.view(6, 16))
    layer.round(Nearest())
    assert layer.rounded is not None
    assert layer.rounded.codes.shape == (6, 16)
    assert all(part.shape == (6 * 4, 1) for part in layer.rounded.grid)


def test_smaller_groups_lose_less() -> None:
    errors = []
    for group_size in (None, 8, 2):
        layer = build(group_size=group_size, out_features=64)
        layer.clip = FixedClip(1.0)
        errors.append((layer.quantized_weight() - layer.weight).square().mean().item())
    assert errors[0] > errors[1] > errors[2]


def test_sixteen_bits_leave_the_weight_alone() -> None:
    layer = build(bits=16)
    assert layer.quantized_weight() is layer.weight


def test_only_clip_factors_are_parameters_and_they_learn() -> None:
    layer = build(learned=True, bits=2)
    assert {name for name, _ in layer.named_parameters()} == {"clip.high_logit", "clip.low_logit"}
    layer(outlier_activation(5, 16, 0)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_output_has_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    layer = build()
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    assert layer.weight.dtype == torch.float32
    # bfloat16 keeps eight bits of mantissa of x, of W and of the sum of 16 products.
    torch.testing.assert_close(y.float(), layer(x), rtol=0.03, atol=0.03)


def test_an_own_site_transforms_the_input_first() -> None:
    layer, x = build(), outlier_activation(5, 16, 0)
    site = SiteTransform(16, ActivationQuantizer(Integer(4), 0.9))
    site.divide_online(torch.linspace(0.5, 2, 16))
    expected = layer(site(x))
    layer.site = site
    assert torch.equal(layer(x), expected)
    assert not torch.equal(expected, build()(x))
