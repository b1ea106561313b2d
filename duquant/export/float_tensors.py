"""What a finished block stores in floating point beside its weights' codes and their scales.

Transforms, subtracted means, biases, norms and the clip factors of activations can still be trained
when the codes have been chosen. Names are those of the block's file and of its modules.
"""

import copy

from torch import nn

from duquant.config import Recipe
from duquant.export.packed_block import BIASES, QUANTIZER, outside_linears, site_path
from duquant.model.smoothing import give_biases
from duquant.model.structure import LINEARS, SITES, linear_shapes
from duquant.model.surgery import take_biases
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.transforms.table import transform_class

Shape = tuple[int, ...]


def float_shapes(block: nn.Module, recipe: Recipe) -> dict[str, Shape]:
    """Shapes of these tensors by name.

    Args:
        block: a decoder block as the model has it, on the meta device.
        recipe: how it is quantized.
    """
    block = copy.deepcopy(block)
    if recipe.smoothing.subtract_mean:
        give_biases(block)
    attention = {f"{BIASES}{o}": tuple(b.shape) for o, b in take_biases(block, recipe).items()}
    biases = {
        f"{name}.bias": tuple(bias.shape)
        for name in LINEARS
        if (bias := getattr(block.get_submodule(name), "bias", None)) is not None
    }
    return {**_norms(block), **attention, **biases, **_sites(block, recipe), **_clips(recipe)}


def _norms(block: nn.Module) -> dict[str, Shape]:
    """The block's own parameters; a norm in front of a site is one module deeper when finished."""
    shapes = {}
    behind = {site.producer for site in SITES if site.follows_norm}
    for name, parameter in outside_linears(block).items():
        parent, _, leaf = name.rpartition(".")
        shapes[f"{parent}.norm.{leaf}" if parent in behind else name] = tuple(parameter.shape)
    return shapes


def _sites(block: nn.Module, recipe: Recipe) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    widths, kind = linear_shapes(block), transform_class(recipe.rotation)
    for site in SITES:
        path, width = site_path(site.name), widths[site.linears[0]][1]
        for part, (shape, dtype) in kind.stored_shapes(width, recipe.rotation).items():
            if dtype.is_floating_point:
                shapes[f"{path}.transform.{part}"] = shape
        if recipe.smoothing.subtract_mean:
            shapes[f"{path}.mean"] = (width,)
    return shapes


def _clips(recipe: Recipe) -> dict[str, Shape]:
    if not recipe.stores_clip_factors:
        return {}
    forms = recipe.formats
    quantizers = {f"{site_path(site.name)}.quantizer": forms.activations for site in SITES}
    quantizers |= {
        f"{QUANTIZER}.query": forms.queries,
        f"{QUANTIZER}.key": forms.keys,
        f"{QUANTIZER}.value": forms.values,
    }
    return {
        f"{name}.clip_ends": (2,)
        for name, form in quantizers.items()
        if form.learns_clip_factors and form.bits < UNQUANTIZED_BITS
    }
