"""A site beside its parts: division, transform, quantizer."""

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from duquant.formats.integer import Integer
from duquant.formats.unquantized import Unquantized
from duquant.nn.activation import ActivationQuantizer
from duquant.nn.site import SiteNorm, SiteTransform
from duquant.ops.dual_transform import DualTransform, apply_transform
from duquant.ops.rotation import random_orthogonal
from duquant.transforms.rotate_permute import RotatePermute
from tests.outliers import outlier_activation

WIDTH = 16


def a_transform(seed: int = 0) -> DualTransform:
    generator = torch.Generator().manual_seed(seed)
    rotations = random_orthogonal(8, 4, generator).view(2, 4, 4, 4)
    return DualTransform(rotations, torch.randperm(WIDTH, generator=generator).unsqueeze(0))


@pytest.fixture
def x() -> Tensor:
    return outlier_activation(5, WIDTH, seed=0).view(1, 5, WIDTH)


def test_a_new_site_only_quantizes(x: Tensor) -> None:
    quantizer = ActivationQuantizer(Integer(4), 0.9)
    assert torch.equal(SiteTransform(WIDTH, quantizer)(x), quantizer(x))
    assert torch.equal(SiteTransform(WIDTH, ActivationQuantizer(Unquantized(), 0.9))(x), x)


def test_order_is_divide_transform_quantize(x: Tensor) -> None:
    quantizer, transform = ActivationQuantizer(Integer(4), 0.9), a_transform()
    scale = torch.linspace(0.5, 30, WIDTH)
    site = SiteTransform(WIDTH, quantizer)
    site.transform = RotatePermute(WIDTH, transform)
    site.divide_online(scale)
    assert torch.equal(site.smooth(x), x / scale)
    assert torch.equal(site(x), quantizer(apply_transform(x / scale, transform)))


def test_installing_again_replaces_the_transform(x: Tensor) -> None:
    site = SiteTransform(WIDTH, ActivationQuantizer(Unquantized(), 1.0))
    site.transform = RotatePermute(WIDTH, a_transform(1))
    site.transform = RotatePermute(WIDTH, a_transform(2))
    assert torch.equal(site.transform.permutations, a_transform(2).permutations)
    assert torch.equal(site(x), apply_transform(x, a_transform(2)))


def test_state_holds_all_that_was_searched_and_trains_nothing() -> None:
    site = SiteTransform(WIDTH, ActivationQuantizer(Integer(4), 0.9))
    site.transform = RotatePermute(WIDTH, a_transform())
    site.divide_online(torch.ones(WIDTH))
    assert set(site.state_dict()) == {
        "transform.rotations",
        "transform.permutations",
        "online_scale",
    }
    assert not list(site.parameters())


def test_bfloat16_stays_bfloat16(x: Tensor) -> None:
    site = SiteTransform(WIDTH, ActivationQuantizer(Integer(4), 0.9))
    site.transform = RotatePermute(WIDTH, a_transform())
    site.divide_online(torch.linspace(0.5, 30, WIDTH))
    assert site(x.bfloat16()).dtype == torch.bfloat16


def test_site_behind_a_norm(x: Tensor) -> None:
    norm = nn.RMSNorm(WIDTH)
    site = SiteTransform(WIDTH, ActivationQuantizer(Integer(4), 0.9))
    site.transform = RotatePermute(WIDTH, a_transform())
    assert torch.equal(SiteNorm(norm, site)(x), site(norm(x)))


@pytest.mark.parametrize("at_once", [1, 2 * WIDTH, 3 * WIDTH + 1])
def test_chunks_are_encoded_like_the_whole(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token is alone with its scale; only the way through the cache differs."""
    x = outlier_activation(10, WIDTH, seed=0).view(2, 5, WIDTH)
    site = SiteTransform(WIDTH, ActivationQuantizer(Integer(4), 0.9))
    site.transform = RotatePermute(WIDTH, a_transform())
    site.emits_integers = True
    whole = site(x)
    monkeypatch.setattr("duquant.ops.chunks.FLOATS_AT_ONCE", at_once)
    assert torch.equal(site(x), whole)


def test_an_offloaded_transform_is_applied() -> None:
    """While it does not run it lies on the meta device, so the site must not read it itself."""
    width = 64
    x = outlier_activation(10, width, seed=0)
    site = SiteTransform(width, ActivationQuantizer(Integer(4), 0.9))
    generator = torch.Generator().manual_seed(0)
    rotations = random_orthogonal(2, 32, generator).view(1, 2, 32, 32)
    site.transform = RotatePermute(width, DualTransform(rotations, torch.zeros(0, width).long()))
    site.emits_integers = True
    expected = site(x)
    cpu_offload(site, execution_device=torch.device("cpu"), offload_buffers=True)
    assert site.transform.rotations.is_meta
    assert torch.equal(site(x), expected)
