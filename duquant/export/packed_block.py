"""One quantized block as tensors: packed weights, grids, transforms; and back.

Names follow the block's modules, so a file reads like a state dict:

    self_attn.q_proj.packed        uint8, integers at their true width (see duquant.ops.packing)
    self_attn.q_proj.scale         float32, one per output channel and group
    self_attn.q_proj.zero          int16, likewise
    input_layernorm.site.rotations float32 (a rounded rotation is not orthogonal)
    input_layernorm.site.permutations  int32
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
from duquant.model.structure import (
    ATTENTION,
    LINEARS,
    SITES,
    linear_shapes,
    require_decoder_block,
)
from duquant.model.surgery import QuantizedBlock, install_modules, take_biases
from duquant.nn.activation import ActivationQuantizer
from duquant.nn.attention import AttentionQuantizer
from duquant.nn.clipping import FixedClip
from duquant.nn.linear import QuantLinear
from duquant.nn.packed_linear import PackedLinear
from duquant.nn.site import SiteTransform
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.ops.dual_transform import DualTransform
from duquant.ops.finite import require_finite
from duquant.ops.packing import pack, packed_width

BIASES = f"{ATTENTION}.attention_quantizer.biases."
GRID_BYTES = torch.float32.itemsize + torch.int16.itemsize
"""A scale and a zero."""


@torch.no_grad()
def pack_block(quantized: QuantizedBlock) -> dict[str, Tensor]:
    """Everything a finished block needs to run again; call before :meth:`QuantizedBlock.freeze`.

    Raises:
        ValueError: if a weight is not finite, naming the linear.
    """
    tensors: dict[str, Tensor] = _outside_linears(quantized.layer)
    dtype = next(iter(tensors.values())).dtype
    for name, linear in quantized.linears.items():
        if linear.bits >= UNQUANTIZED_BITS:
            tensors[f"{name}.weight"] = linear.weight.to(dtype)
        else:
            q, grid = linear.integers()
            require_finite(q, f"integers of {name}", dtype)
            out_features = linear.weight.shape[0]
            tensors[f"{name}.packed"] = pack(q.reshape(out_features, -1), linear.bits)
            tensors[f"{name}.scale"] = grid.scale.view(out_features, -1)
            tensors[f"{name}.zero"] = grid.zero.view(out_features, -1).to(torch.int16)
        if linear.bias is not None:
            tensors[f"{name}.bias"] = linear.bias
    quantizer = quantized.layer.get_submodule(f"{ATTENTION}.attention_quantizer")
    assert isinstance(quantizer, AttentionQuantizer)
    if quantizer.biases is not None:
        tensors |= {f"{BIASES}{name}": bias for name, bias in quantizer.biases.named_buffers()}
    for site in SITES:
        transform = quantized.sites[site.name]
        prefix = _site_path(site.name)
        tensors[f"{prefix}.rotations"] = transform.rotations.float()
        tensors[f"{prefix}.permutations"] = transform.permutations.to(torch.int32)
        tensors[f"{prefix}.online_scale"] = transform.online_scale
    return {name: tensor.detach().cpu() for name, tensor in tensors.items() if tensor.numel()}


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
    rest = dict(tensors)
    shapes = linear_shapes(block)
    sites = {
        site.name: _read_site(rest, site.name, shapes[site.linears[0]][1], recipe) for site in SITES
    }
    biases = _read_biases(rest, block, recipe, dtype)
    linears = {name: _read_linear(rest, name, block, recipe, dtype) for name in LINEARS}
    for name, expected in _outside_linears(block).items():
        parent, _, leaf = name.rpartition(".")
        stored = f"{parent}.norm.{leaf}" if _is_site_norm(parent) else name
        parameter = nn.Parameter(_take(rest, stored, expected.shape).to(dtype), requires_grad=False)
        setattr(block.get_submodule(parent), leaf, parameter)
    if rest:
        raise ValueError(f"the stored block has a tensor that does not belong to it: {min(rest)}")
    install_modules(block, recipe, sites, linears, biases)
    return block


def packed_bytes(block: nn.Module, recipe: Recipe) -> int:
    """Bytes that :func:`pack_block` takes at most, from the shapes of a block without weights."""
    norms = list(_outside_linears(block).values())
    item = norms[0].dtype.itemsize
    size = sum(tensor.numel() for tensor in norms) * item
    for name, (rows, columns) in linear_shapes(block).items():
        if recipe.weight_bits >= UNQUANTIZED_BITS:
            size += rows * columns * item
        else:
            grids = rows * columns // (recipe.group_size or columns)
            size += rows * packed_width(columns, recipe.weight_bits) + grids * GRID_BYTES
        size += rows * item if getattr(block.get_submodule(name), "bias", None) is not None else 0
    rotation = recipe.rotation
    for site in SITES:
        width = linear_shapes(block)[site.linears[0]][1]
        size += width * torch.float32.itemsize  # a scale that is divided online
        if rotation.selector != "none":
            matrices = 1 if rotation.scope == "shared" else width // rotation.block_size
            rotations = (rotation.permutation_times + 1) * matrices * rotation.block_size**2
            size += rotations * torch.float32.itemsize
            size += rotation.permutation_times * width * torch.int32.itemsize
    return size


def _outside_linears(block: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter
        for name, parameter in block.named_parameters()
        if not any(name.startswith(f"{linear}.") for linear in LINEARS)
    }


def _site_path(name: str) -> str:
    site = next(site for site in SITES if site.name == name)
    return f"{site.producer if site.follows_norm else site.linears[0]}.site"


def _is_site_norm(module: str) -> bool:
    return any(site.follows_norm and site.producer == module for site in SITES)


def _read_site(tensors: dict[str, Tensor], name: str, width: int, recipe: Recipe) -> SiteTransform:
    quantizer = ActivationQuantizer(
        recipe.activation_bits, recipe.clipping.activation_ratio, symmetric=recipe.symmetric
    )
    site = SiteTransform(width, quantizer)
    prefix, rotation = _site_path(name), recipe.rotation
    if rotation.selector != "none":
        times, size = rotation.permutation_times, rotation.block_size
        matrices = 1 if rotation.scope == "shared" else width // size
        rotations = _take(tensors, f"{prefix}.rotations", (times + 1, matrices, size, size))
        permutations = site.permutations
        if times:
            permutations = _take(tensors, f"{prefix}.permutations", (times, width))
        site.install(DualTransform(rotations, permutations))
    if f"{prefix}.online_scale" in tensors:
        site.divide_online(_take(tensors, f"{prefix}.online_scale", (width,)))
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
    if recipe.weight_bits >= UNQUANTIZED_BITS:
        weight = _take(tensors, f"{name}.weight", (out_features, in_features)).to(dtype)
        return QuantLinear(weight, bias, FixedClip(1.0), bits=recipe.weight_bits)
    groups = in_features // (recipe.group_size or in_features)
    return PackedLinear(
        _take(
            tensors, f"{name}.packed", (out_features, packed_width(in_features, recipe.weight_bits))
        ),
        _take(tensors, f"{name}.scale", (out_features, groups)),
        _take(tensors, f"{name}.zero", (out_features, groups)),
        bias,
        bits=recipe.weight_bits,
        in_features=in_features,
        activation_bits=recipe.activation_bits,
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
