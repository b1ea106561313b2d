"""Smoothing: move part of an activation's channel magnitudes into the weights.

For each input channel ``j`` of a site (SmoothQuant's rule; DuQuant section 3.2)

    s_j = max|X_j|**alpha / max|W_j|**(1 - alpha)        x -> x / s        W -> W * s

so ``x Wᵀ`` does not change while channels that are large on all tokens shrink. The division costs
nothing at run time where it folds into the module that produced ``x``.

A *dead* channel tells the formula nothing, and a scale far from its neighbours' would make it the
only one that 16 levels describe. If calibration never excited it, text that does would meet
``x / 1e-2``: it counts as excited like the median channel. If the one weight that is looked at does
not read it, others may: they are asked then. What no weight reads harms nobody.

Grouped-query attention is the exception: the attention output has one channel per *query* head, its
producer ``v_proj`` one per *key-value* head. One scale per key-value channel, shared by the query
heads that read it, folds; a scale per query channel has to be divided online.
"""

import torch
from torch import Tensor

SMALLEST_MAGNITUDE = 1e-5
SMALLEST_SCALE = 1e-2
SMALLEST_SHARE = 1e-2
"""A column of the first weight is dead below this share of what the site's other weights have
there; trained models that we have looked at have 0.04 and more."""


def smoothing_scale(activation_peak: Tensor, weight_peak: Tensor, alpha: float) -> Tensor:
    """Scale of every input channel.

    Args:
        activation_peak: ``max|X_j|`` over calibration tokens, shape ``(width,)``; below 1e-5 the
            median of the other channels stands for it.
        weight_peak: ``max|W_j|`` over output channels, shape ``(width,)``.
        alpha: share of the difficulty moved into the weights, 0 to 1.

    Returns:
        Positive float32 scales of shape ``(width,)``.
    """
    activation = _fill_dead(activation_peak.float()).clamp(min=SMALLEST_MAGNITUDE)
    weight = weight_peak.float().clamp(min=SMALLEST_MAGNITUDE)
    scale = (activation.pow(alpha) / weight.pow(1 - alpha)).clamp(min=SMALLEST_MAGNITUDE)
    return scale.clamp(min=SMALLEST_SCALE)


def _fill_dead(activation: Tensor) -> Tensor:
    dead = activation < SMALLEST_MAGNITUDE
    if dead.all():
        return torch.ones_like(activation)
    return torch.where(dead, activation[~dead].median(), activation)


def weight_peak(weights: list[Tensor]) -> Tensor:
    """Largest magnitude per input channel over weights ``(out, width)`` that share an input."""
    return torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)


def first_weight_peak(weights: list[Tensor]) -> Tensor:
    """Largest magnitude per input channel of the first weight, or of all where it is dead there."""
    first, largest = weight_peak(weights[:1]).float(), weight_peak(weights).float()
    dead = first < (SMALLEST_SHARE * largest).clamp(min=SMALLEST_MAGNITUDE)
    return torch.where(dead, largest, first)


def share_within_groups(peak: Tensor, *, num_groups: int, head_dim: int) -> Tensor:
    """Largest value over the query heads that read one key-value channel.

    Args:
        peak: one value per query channel, shape ``(num_heads * head_dim,)``.
        num_groups: number of key-value heads.
        head_dim: channels of a head.

    Returns:
        One value per key-value channel, shape ``(num_groups * head_dim,)``.
    """
    return peak.view(num_groups, -1, head_dim).amax(dim=1).flatten()


def repeat_for_heads(scale: Tensor, *, num_heads: int, head_dim: int) -> Tensor:
    """Spread one value per key-value channel over the query heads that read it.

    Args:
        scale: shape ``(num_key_value_heads * head_dim,)``.
        num_heads: number of query heads.
        head_dim: channels of a head.

    Returns:
        Shape ``(num_heads * head_dim,)``.
    """
    heads = scale.view(-1, head_dim)
    return heads.repeat_interleave(num_heads // heads.shape[0], dim=0).flatten()
