"""Clip factors of a block's weights: made for a recipe, and put back to their start for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from duquant.config import Recipe
from duquant.nn.clipping import ClipFactors, FixedClip


def new_clip(shape: tuple[int, int], recipe: Recipe) -> ClipFactors | FixedClip:
    """Clip factors of a weight ``(out, in)``: learned with LWC, else one ratio."""
    if not recipe.has_lwc:
        return FixedClip(recipe.weight_ratio)
    out_features, in_features = shape
    groups = in_features // (recipe.formats.weights.group_size or in_features)
    return ClipFactors(out_features * groups, moves_zero_point=recipe.lwc.zero_point_gradient)


@contextmanager
def initial_clips(clips: nn.ModuleDict) -> Iterator[None]:
    """Put learned factors at their start meanwhile, whatever they have learned already."""
    trained = {name: p.detach().clone() for name, p in clips.named_parameters()}
    for clip in clips.values():
        if isinstance(clip, ClipFactors):
            clip.start_anew()
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in clips.named_parameters():
                parameter.copy_(trained[name])
