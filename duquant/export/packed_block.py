"""One quantized block as tensors: packed weights, grids, transforms; and back.

Names follow the block's modules, so a file reads like a state dict:

    self_attn.q_proj.packed        uint8, codes at their true width (see duquant.ops.packing)
    self_attn.q_proj.scale         and whatever else the weights' number format stores
    input_layernorm.site.transform.rotations  and whatever else the transform stores
    input_layernorm.norm.weight    the model's dtype, smoothing folded in
    self_attn.attention_quantizer.biases.key   the bias of k_proj, which attention adds (see
                                   duquant.nn.attention_bias); up to format version 2 and where K
                                   is not quantized it is self_attn.k_proj.bias; likewise of Q, V

Weights of 16 bits are stored as ``weight`` in the model's dtype. Reading builds the block without
the original weights: what is on disk is all that a quantized block is.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from duquant.config import Recipe
from duquant.model.smoothing import give_biases
from duquant.model.structure import (
    ATTENTION,
    LINEARS,
    SITES,
    linear_shapes,
    require_decoder_block,
)
from duquant.model.surgery import (
    QuantizedBlock,
    input_quantizer,
    install_modules,
    take_biases,
)
from duquant.nn.activation import ActivationQuantizer
from duquant.nn.attention_quantizer import AttentionQuantizer
from duquant.nn.clipping import FixedClip
from duquant.nn.linear import QuantLinear
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.site import SiteTransform
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.ops.packing import require_width
from duquant.transforms.table import transform_class

QUANTIZER = f"{ATTENTION}.attention_quantizer"
BIASES = f"{QUANTIZER}.biases."
OLD_SITE_NAMES = {
    ".site.rotations": ".site.transform.rotations",
    ".site.permutations": ".site.transform.permutations",
}
"""What format version 2 called some tensors, and their names today."""


@torch.no_grad()
def pack_block(quantized: QuantizedBlock) -> dict[str, Tensor]:
    """Everything a finished block needs to run again, where it lies, partly its own tensors.

    Its weights are rounded already.
    """
    tensors: dict[str, Tensor] = outside_linears(quantized.layer)
    dtype = next(iter(tensors.values())).dtype
    for name, linear in quantized.linears.items():
        if linear.is_quantized:
            assert linear.rounded is not None, "round the weights before they are packed"
            require_width(linear.rounded.codes, linear.form.bits)
            stored = linear.form.store(linear.rounded.codes, linear.rounded.grid)
            tensors |= {f"{name}.{part}": tensor for part, tensor in stored.items()}
        else:
            tensors[f"{name}.weight"] = linear.weight.to(dtype)
        if linear.bias is not None:
            tensors[f"{name}.bias"] = linear.bias
    quantizer = quantized.layer.get_submodule(QUANTIZER)
    assert isinstance(quantizer, AttentionQuantizer)
    if quantizer.biases is not None:
        tensors |= {f"{BIASES}{name}": bias for name, bias in quantizer.biases.named_buffers()}
    for site in SITES:
        module, prefix = quantized.sites[site.name], site_path(site.name)
        stored = module.transform.store()
        tensors |= {f"{prefix}.transform.{part}": tensor for part, tensor in stored.items()}
        tensors |= {f"{prefix}.online_scale": module.online_scale, f"{prefix}.mean": module.mean}
    for name, module in quantized.layer.named_modules():
        if isinstance(module, ActivationQuantizer):
            tensors |= {f"{name}.peak": module.peak, f"{name}.clip_ends": module.clip_ends}
    return {name: tensor.detach() for name, tensor in tensors.items() if tensor.numel()}


def unpack_block(
    block: nn.Module, tensors: Mapping[str, Tensor], recipe: Recipe, dtype: torch.dtype
) -> nn.Module:
    """Turn a decoder block into the quantized block that was stored.

    Args:
        block: a fresh block of the model, on the meta device; changed in place.
        tensors: what :func:`pack_block` returned; on the meta device they give a block that waits
            for its tensors.
        recipe: the recipe the block was quantized with.
        dtype: of everything that is not quantized, and of the block's outputs.

    Returns:
        ``block``.

    Raises:
        ValueError: if a tensor is missing, of another shape, or left over, naming it.
    """
    require_decoder_block(block, "the stored model")
    if recipe.smoothing.subtract_mean:
        give_biases(block)
    rest = {current_name(name): tensor for name, tensor in tensors.items()}
    shapes = linear_shapes(block)
    sites = {
        site.name: _read_site(rest, site.name, shapes[site.linears[0]][1], recipe) for site in SITES
    }
    biases = _read_biases(rest, block, recipe, dtype)
    linears = {name: _read_linear(rest, name, block, recipe, dtype) for name in LINEARS}
    for name, expected in outside_linears(block).items():
        parent, _, leaf = name.rpartition(".")
        stored = f"{parent}.norm.{leaf}" if _is_site_norm(parent) else name
        parameter = nn.Parameter(_take(rest, stored, expected.shape).to(dtype), requires_grad=False)
        setattr(block.get_submodule(parent), leaf, parameter)
    install_modules(block, recipe, sites, linears, biases)
    for name, quantizer in block.named_modules():
        if isinstance(quantizer, ActivationQuantizer):
            if quantizer.form.needs_peak:
                quantizer.hold_peak(_take(rest, f"{name}.peak", (1,)))
            if f"{name}.clip_ends" in rest:
                quantizer.hold_clip_ends(_take(rest, f"{name}.clip_ends", (2,)))
    if rest:
        raise ValueError(f"the stored block has a tensor that does not belong to it: {min(rest)}")
    return block


def current_name(stored: str) -> str:
    """The name of a stored tensor as it is today."""
    for old, new in OLD_SITE_NAMES.items():
        if stored.endswith(old):
            return stored.removesuffix(old) + new
    return stored


def outside_linears(block: nn.Module) -> dict[str, Tensor]:
    """A decoder block's own parameters but those of its linears, by name."""
    return {
        name: parameter
        for name, parameter in block.named_parameters()
        if not any(name.startswith(f"{linear}.") for linear in LINEARS)
    }


def site_path(name: str) -> str:
    """Name of a site's module in its block."""
    site = next(site for site in SITES if site.name == name)
    return f"{site.producer if site.follows_norm else site.linears[0]}.site"


def _is_site_norm(module: str) -> bool:
    return any(site.follows_norm and site.producer == module for site in SITES)


def _read_site(tensors: dict[str, Tensor], name: str, width: int, recipe: Recipe) -> SiteTransform:
    site, prefix = SiteTransform(width, input_quantizer(recipe)), site_path(name)
    kind = transform_class(recipe.rotation)
    stored = {
        part: _take(tensors, f"{prefix}.transform.{part}", shape)
        for part, (shape, _) in kind.stored_shapes(width, recipe.rotation).items()
    }
    site.transform = kind.restore(width, stored)
    if f"{prefix}.online_scale" in tensors:
        site.divide_online(_take(tensors, f"{prefix}.online_scale", (width,)))
    if recipe.smoothing.subtract_mean:
        site.subtract(_take(tensors, f"{prefix}.mean", (width,)))
    return site


def _read_biases(
    tensors: dict[str, Tensor], block: nn.Module, recipe: Recipe, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Biases that attention adds, if the block was stored with any; ``block``'s linears lose them.

    A block of format version 2 has all of its biases in its linears.
    """
    if not any(name.startswith(BIASES) for name in tensors):
        return {}
    return {
        operand: _take(tensors, f"{BIASES}{operand}", bias.shape).to(dtype)
        for operand, bias in take_biases(block, recipe).items()
    }


def _read_linear(
    tensors: dict[str, Tensor], name: str, block: nn.Module, recipe: Recipe, dtype: torch.dtype
) -> QuantLinear | PackedLinear:
    out_features, in_features = linear_shapes(block)[name]
    has_bias = getattr(block.get_submodule(name), "bias", None) is not None
    bias = _take(tensors, f"{name}.bias", (out_features,)).to(dtype) if has_bias else None
    form = recipe.formats.weights
    if form.bits >= UNQUANTIZED_BITS:
        weight = _take(tensors, f"{name}.weight", (out_features, in_features)).to(dtype)
        return QuantLinear(weight, bias, FixedClip(1.0), form)
    stored = {
        part: _take(tensors, f"{name}.{part}", shape)
        for part, (shape, _) in form.stored_shapes(out_features, in_features).items()
    }
    return PackedLinear(
        stored,
        bias,
        form,
        activations=recipe.formats.activations,
        in_features=in_features,
        dtype=dtype,
    )


def _take(tensors: dict[str, Tensor], name: str, shape: Sequence[int]) -> Tensor:
    if name not in tensors:
        raise ValueError(f"the stored block lacks {name}")
    tensor = tensors.pop(name)
    if tensor.shape != torch.Size(shape):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; this model and recipe make it {tuple(shape)}"
        )
    return tensor
