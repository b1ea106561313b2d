"""Invertible blocks: exact without quantization, whatever they were trained to."""

import pytest
import torch
from torch import nn

from duquant.recipe_parts import RotationConfig
from duquant.transforms.affine_permute import AffinePermute

WIDTH = 48
OPTIONS = RotationConfig(block_size=16, max_steps=4, transform="affine_permute")


def found(times: int = 1, scope: str = "shared") -> AffinePermute:
    generator = torch.Generator().manual_seed(0)
    options = RotationConfig(
        block_size=16,
        max_steps=4,
        permutation_times=times,
        scope=scope,  # type: ignore[arg-type]
    )
    x = torch.randn(20, WIDTH, generator=generator)
    return AffinePermute.search(x, options, generator)


def trained(transform: AffinePermute, by: float = 0.3) -> AffinePermute:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        shift = torch.randn(transform.rotations.shape, generator=generator)
        transform.rotations += by * shift / 4
    return transform


@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.parametrize("scope", ["shared", "per_block"])
def test_products_stay(times: int, scope: str) -> None:
    transform = trained(found(times, scope))
    x, weight = torch.randn(7, WIDTH), torch.randn(5, WIDTH)
    with torch.no_grad():
        changed = transform(x) @ transform.on_weight(weight).t()
        torch.testing.assert_close(changed, x @ weight.t(), rtol=1e-3, atol=1e-3)
        back = transform.off_weight(transform.on_weight(weight))
    torch.testing.assert_close(back, weight, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(transform(x), x, atol=0.1)


def test_it_begins_orthogonal_with_a_matrix_for_every_block() -> None:
    transform = found()
    assert transform.learns
    assert transform.rotations.shape == (2, 3, 16, 16)
    assert transform.condition() == pytest.approx(1, abs=1e-4)
    assert trained(transform).condition() > 1.1
    shapes = AffinePermute.learned_shapes(WIDTH, OPTIONS)
    assert shapes == {"rotations": (2, 3, 16, 16)}


def test_what_is_stored_computes_the_same() -> None:
    transform = trained(found())
    stored = {name: tensor.detach() for name, tensor in transform.store().items()}
    shapes = AffinePermute.stored_shapes(WIDTH, OPTIONS)
    assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == shapes
    again, x = AffinePermute.restore(WIDTH, stored), torch.randn(3, WIDTH)
    assert not again.learns
    assert torch.equal(again(x), transform(x).detach())


def test_gradients_reach_the_blocks_through_inputs_and_weights() -> None:
    transform = found()
    x, weight = torch.randn(6, WIDTH), torch.randn(4, WIDTH)
    (transform(x).square().sum() + transform.on_weight(weight).square().sum()).backward()
    gradient = transform.rotations.grad
    assert gradient is not None
    assert gradient.abs().amin() > 0
    # Against a difference quotient in float64.
    index, step = (1, 2, 3, 4), 1e-6
    wide = AffinePermute(WIDTH, transform.matrices)
    values = []
    for sign in (1, -1):
        moved = transform.rotations.detach().double().clone()
        moved[index] += sign * step
        wide.rotations = moved
        values.append(
            wide(x.double()).square().sum() + wide.on_weight(weight.double()).square().sum()
        )
    slope = float(values[0] - values[1]) / (2 * step)
    assert float(gradient[index]) == pytest.approx(slope, rel=1e-2, abs=1e-2)


def test_settling_ends_the_training() -> None:
    transform, x = trained(found()), torch.randn(3, WIDTH)
    before = transform(x).detach()
    transform.settle()
    assert not transform.learns
    assert torch.equal(transform(x), before)
    assert not isinstance(transform.rotations, nn.Parameter)
