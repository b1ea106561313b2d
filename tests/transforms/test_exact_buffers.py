"""Some buffers follow their module to its device but not to its dtype."""

import pytest
import torch
from torch import nn

from duquant.config import Recipe
from duquant.formats.integer import Integer
from duquant.nn.activation import ActivationQuantizer
from duquant.nn.attention_quantizer import AttentionQuantizer
from duquant.nn.site import SiteTransform
from duquant.ops.dual_transform import DualTransform
from duquant.transforms.exact_buffers import ExactBuffers
from duquant.transforms.rotate_permute import RotatePermute


class Scaled(ExactBuffers):
    EXACT = ("scale", "absent")

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([1 / 3]))
        self.register_buffer("ordinary", torch.tensor([1 / 3]))
        self.register_buffer("absent", None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_named_buffers_are_not_cast_and_others_are(dtype: torch.dtype) -> None:
    outer = nn.Sequential(Scaled()).to(dtype)
    assert outer[0].scale.dtype == torch.float32
    assert torch.equal(outer[0].scale, torch.tensor([1 / 3]))
    assert outer[0].ordinary.dtype == dtype


def test_named_buffers_are_moved() -> None:
    module = Scaled().to("meta", torch.bfloat16)
    assert module.scale.is_meta
    assert module.scale.dtype == torch.float32
    assert module.ordinary.is_meta


def test_a_rotation_stays_orthogonal_when_its_model_is_cast() -> None:
    site = SiteTransform(16, ActivationQuantizer(Integer(4)))
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    none = torch.zeros(0, 16, dtype=torch.int64)
    site.transform = RotatePermute(16, DualTransform(rotation.view(1, 1, 16, 16), none))
    site.divide_online(torch.full((16,), 1 / 3))
    site.to(torch.bfloat16)
    assert torch.equal(site.transform.rotations, rotation.view(1, 1, 16, 16))
    assert torch.equal(site.online_scale, torch.full((16,), 1 / 3))


def test_the_rotation_of_heads_stays_orthogonal_when_its_model_is_cast() -> None:
    """1/√32 has no bfloat16: cast, the rotation would change every score."""
    heads = AttentionQuantizer(32, Recipe().formats, clip_ratio=1.0, block_size=32)
    before = heads.hadamard.clone()
    assert torch.equal(heads.to(torch.bfloat16).hadamard, before)
