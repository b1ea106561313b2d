"""The parts of a recipe: number formats, smoothing, rotation, fixed clipping, rounding.

Frozen dataclasses that check themselves when built; :class:`duquant.config.Recipe` joins them. What
is learned is in :mod:`duquant.recipe_learning`.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin

from duquant.ops.rotation import Scope, Selector


@dataclass(frozen=True)
class FormatConfig:
    """Which numbers stand for one kind of tensor; what is unset follows the recipe's short options.

    Args:
        format: ``integer``, ``mxfp4``, ``nvfp4`` or ``unquantized`` (default: ``integer``; for Q, K
            and V that of the activations).
        bits: bits of an integer.
        symmetric: centre every range of integers on zero.
        group_size: consecutive entries that share a scale (default: the format's own; for integers
            all of a token or of an output channel).
    """

    format: str | None = None
    bits: int | None = None
    symmetric: bool | None = None
    group_size: int | None = None

    def options(self) -> dict[str, Any]:
        """The options that are set, without the format's name."""
        return _given(self, "format")


@dataclass(frozen=True)
class RoundingConfig:
    """How the values of a weight are rounded to those of its format.

    Args:
        method: ``nearest``, or ``gptq``: every column's rounding error is made up for by the
            columns that are not rounded yet (Frantar et al. 2022).
        damping: of GPTQ: share of the mean squared input that is added to every input's, so that
            what the calibration never saw stays determined (default: 0.01).
        order: of GPTQ: columns in their ``natural`` order, or by the ``diagonal`` of the Gram
            matrix, the largest first (default: GPTQ's own).
    """

    method: str = "nearest"
    damping: float | None = None
    order: str | None = None

    def options(self) -> dict[str, Any]:
        """The options that are set, without the method's name."""
        return _given(self, "method")


@dataclass(frozen=True)
class SmoothingConfig:
    """Move part of the activations' channel magnitudes into the weights before rotating.

    Args:
        enabled: smooth at all.
        alpha: share of the difficulty moved into the weights, 0 to 1 (default: 0.5 with LWC, 0.6
            without).
        weights: which weight maxima enter the scale: those of the site's ``first`` linear (q for
            q/k/v, up for gate/up, as the authors' code) or of ``all`` of them.
        attention_output: with grouped-query attention, one scale per ``key_value_channel`` (folds
            into v_proj, free at run time) or per ``query_channel`` (divided online, as the
            authors' code).
        subtract_mean: subtract every channel's mean before the transform; the linears that read the
            site get its product with their weights as a bias, in full precision.
    """

    enabled: bool = True
    alpha: float | None = None
    weights: Literal["first", "all"] = "first"
    attention_output: Literal["key_value_channel", "query_channel"] = "key_value_channel"
    subtract_mean: bool = False

    def __post_init__(self) -> None:
        """Check the numbers and the choices."""
        require_choices("smoothing", self)
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"smoothing.alpha is {self.alpha}; it must lie between 0 and 1")


@dataclass(frozen=True)
class RotationConfig:
    """The dual transformation of every site: greedy block rotation and zigzag permutation.

    Args:
        block_size: channels of a rotation block, at least 2; divides every linear's input width.
        max_steps: greedy steps of each rotation search, at least 1.
        permutation_times: how often rotation and permutation are repeated before the last
            rotation; 0 means one rotation and no permutation.
        selector: how a step chooses the channel it spreads: ``outlier`` (the paper's Algorithm 1),
            ``authors`` (their released code), or no search at all: ``hadamard``, ``random``,
            ``none`` (no transformation).
        scope: one rotation ``shared`` by all blocks of a site (the authors' code) or a search
            ``per_block`` (the paper).
        transform: what a site goes through: ``rotate_permute``, the dual transformation, or
            ``affine_permute``, the same form with a matrix of its own for every block, which is
            trained (needs LWC).
        rotate_values: multiply the V of every head by a Hadamard matrix, which is folded into
            v_proj and o_proj and costs nothing at run time.
    """

    block_size: int = 128
    max_steps: int = 256
    permutation_times: int = 1
    selector: Selector = "outlier"
    scope: Scope = "shared"
    transform: str = "rotate_permute"
    rotate_values: bool = False

    def __post_init__(self) -> None:
        """Check the numbers and the choices."""
        require_choices("rotation", self)
        if self.block_size < 2:
            raise ValueError(f"rotation.block_size is {self.block_size}; it must be at least 2")
        if self.max_steps < 1:
            raise ValueError(f"rotation.max_steps is {self.max_steps}; it must be at least 1")
        if self.permutation_times < 0:
            raise ValueError(
                f"rotation.permutation_times is {self.permutation_times}; it must be 0 or more"
            )
        if self.selector == "hadamard" and self.block_size & (self.block_size - 1):
            raise ValueError(
                f"rotation.block_size is {self.block_size}; the hadamard selector needs a power "
                f"of two"
            )


@dataclass(frozen=True)
class ClippingConfig:
    """Clip factors that are not learned: shrink every row's range before choosing its scale.

    Args:
        weight_ratio: factor on the weights' range, above 0 and at most 1 (default: 0.8 without
            LWC; with LWC the factors are learned and this must stay unset).
        activation_ratio: factor on every token's range, above 0 and at most 1.
        activations: factors of tokens are ``fixed`` at ``activation_ratio``, or every site, Q, K
            and V ``search`` the one that costs their outputs least on the calibration.
    """

    weight_ratio: float | None = None
    activation_ratio: float = 0.9
    activations: Literal["fixed", "search"] = "fixed"

    def __post_init__(self) -> None:
        """Check the numbers and the choice."""
        require_choices("clipping", self)
        for name in ("weight_ratio", "activation_ratio"):
            ratio = getattr(self, name)
            if ratio is not None and not 0 < ratio <= 1:
                raise ValueError(f"clipping.{name} is {ratio}; it must be above 0 and at most 1")


def _given(config: Any, besides: str) -> dict[str, Any]:
    """The options of a section that are set, but one."""
    values = {option.name: getattr(config, option.name) for option in fields(config)}
    return {n: value for n, value in values.items() if value is not None and n != besides}


def require_choices(section: str, config: Any) -> None:
    """Raise ``ValueError`` for an option whose value is none of its choices."""
    for option in fields(config):
        value, choices = getattr(config, option.name), get_args(option.type)
        if get_origin(option.type) is Literal and value not in choices:
            raise ValueError(
                f"{section}.{option.name} is {value!r}; it must be one of {', '.join(choices)}"
            )
