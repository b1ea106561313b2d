"""What a block may learn on the side of its activations, beside the weights' clip factors.

* two **clip factors** of every site's tokens, and of Q, K and V: how much of a token's range is
  kept at its upper and at its lower end (FlatQuant learns the same two);
* the **transforms** of the sites, if the recipe's transform is one that learns.

Both are parameters from the start, of all blocks, so that one optimizer and one checkpoint lineage
hold them. What they act on is borrowed for the time of a block's training
(:class:`~duquant.model.surgery.QuantizedBlock`), and gets their last values as constants.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from duquant.config import Recipe
from duquant.formats.number_format import NumberFormat
from duquant.model.structure import SITES
from duquant.model.surgery import QuantizedBlock, activation_quantizers
from duquant.nn.clipping import ClipFactors
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.transforms.table import transform_class
from duquant.transforms.transform import Transform

LARGEST_RATIO = 0.98
"""Where a factor starts that was 1: the sigmoid of its logit has a gradient there."""


class ActivationSide(nn.Module):
    """Clip factors of activations, and transforms of sites.

    Args:
        widths: channels of every site, by name.
        recipe: says which of them are learned.
    """

    def __init__(self, widths: Mapping[str, int], recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.clips = nn.ModuleDict(_new_clips(recipe))
        self.transforms = nn.ModuleDict(_new_transforms(widths, recipe))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """An optimizer's groups: ``params`` and ``lr``."""
        groups = [
            {"params": list(self.clips.parameters()), "lr": self.recipe.lwc.learning_rate},
            {"params": list(self.transforms.parameters()), "lr": self.recipe.training.rate},
        ]
        return [group for group in groups if group["params"]]

    @torch.no_grad()
    def attach(self, quantized: QuantizedBlock, *, begins: bool) -> None:
        """Let a block compute with what is learned here.

        Args:
            quantized: block whose transforms have been searched.
            begins: start from what the search found; else from the values that are held.
        """
        for name, quantizer in activation_quantizers(quantized).items():
            if name in self.clips:
                factors = _clip_factors(self.clips[name])
                if begins and quantizer.clip_ends.numel():
                    factors.start_at(quantizer.clip_ends[:1, None].clamp(max=LARGEST_RATIO))
                quantizer.factors = factors
        for name, transform in self._transforms_of(quantized).items():
            own = dict(self.transforms[name].named_parameters())
            if begins:
                for part, found in transform.named_parameters():
                    own[part].copy_(found)
            transform.learn(own)

    def settle(self, quantized: QuantizedBlock) -> dict[str, float]:
        """End the training: the block keeps what was learned as constants.

        Returns:
            Largest condition number of every transform that was trained, by site.
        """
        for quantizer in activation_quantizers(quantized).values():
            if quantizer.factors is not None:
                high, low, _ = quantizer.factors()
                quantizer.hold_clip_ends(torch.cat([high.detach(), low.detach()]).flatten())
        transforms = self._transforms_of(quantized)
        for transform in transforms.values():
            transform.settle()
        return {name: transform.condition() for name, transform in transforms.items()}

    def _transforms_of(self, quantized: QuantizedBlock) -> dict[str, Transform]:
        return {name: quantized.sites[name].transform for name in self.transforms}


def _new_clips(recipe: Recipe) -> dict[str, ClipFactors]:
    if not (recipe.has_lwc and recipe.training.activation_clips):
        return {}
    formats, ratio = recipe.formats, recipe.clipping.activation_ratio
    starts: dict[str, tuple[NumberFormat, float]] = {
        **{site.name: (formats.activations, ratio) for site in SITES},
        "query": (formats.queries, ratio),
        "key": (formats.keys, ratio),
        "value": (formats.values, 1.0),
    }
    return {
        name: ClipFactors(
            1,
            moves_zero_point=recipe.lwc.zero_point_gradient,
            start=_logit(min(start, LARGEST_RATIO)),
        )
        for name, (form, start) in starts.items()
        if form.learns_clip_factors and form.bits < UNQUANTIZED_BITS
    }


def _new_transforms(widths: Mapping[str, int], recipe: Recipe) -> dict[str, nn.ParameterDict]:
    """Room for what is learned; its values are those of the search."""
    if not recipe.has_lwc:
        return {}
    kind, options = transform_class(recipe.rotation), recipe.rotation
    shapes = {name: kind.learned_shapes(width, options) for name, width in widths.items()}
    return {
        name: nn.ParameterDict(
            {
                n: nn.Parameter(torch.zeros(s, dtype=torch.float32, device="cpu"))
                for n, s in parts.items()
            }
        )
        for name, parts in shapes.items()
        if parts
    }


def _clip_factors(module: nn.Module) -> ClipFactors:
    assert isinstance(module, ClipFactors)
    return module


def _logit(ratio: float) -> float:
    return math.log(ratio / (1 - ratio))
