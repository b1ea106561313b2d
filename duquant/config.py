"""The recipe: every choice that decides what numbers a quantized model holds.

The dataclasses are frozen and check themselves when built, so a recipe that exists is a recipe that
makes sense on its own. What depends on the model (does ``block_size`` divide its widths?) is
checked where the model is known, in :mod:`duquant.model.structure`.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin

from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.ops.rotation import Scope, Selector

WEIGHT_RATIO_WITHOUT_LWC = 0.8
ALPHA_WITH_LWC = 0.5
ALPHA_WITHOUT_LWC = 0.6


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
    """

    enabled: bool = True
    alpha: float | None = None
    weights: Literal["first", "all"] = "first"
    attention_output: Literal["key_value_channel", "query_channel"] = "key_value_channel"

    def __post_init__(self) -> None:
        """Check the numbers and the choices."""
        _require_choices("smoothing", self)
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
    """

    block_size: int = 128
    max_steps: int = 256
    permutation_times: int = 1
    selector: Selector = "outlier"
    scope: Scope = "shared"

    def __post_init__(self) -> None:
        """Check the numbers and the choices."""
        _require_choices("rotation", self)
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
    """Fixed clip factors: shrink every row's range before choosing its scale.

    Args:
        weight_ratio: factor on the weights' range, above 0 and at most 1 (default: 0.8 without
            LWC; with LWC the factors are learned and this must stay unset).
        activation_ratio: factor on every token's range, above 0 and at most 1.
    """

    weight_ratio: float | None = None
    activation_ratio: float = 0.9

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("weight_ratio", "activation_ratio"):
            ratio = getattr(self, name)
            if ratio is not None and not 0 < ratio <= 1:
                raise ValueError(f"clipping.{name} is {ratio}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class LWCConfig:
    """Learnable weight clipping: train each output channel's clip factors, block by block.

    The defaults were measured against the authors' training (20 epochs, rate 0.01, batch 1,
    constant start and rate, no zero-point gradient), which these options also describe.

    Args:
        epochs: passes over the calibration samples per block; 0 turns LWC off.
        learning_rate: AdamW's first rate for the factors' logits.
        batch_size: calibration samples per step.
        augmented_loss: also match the full-precision block's output on the quantized stream.
        initialization: where the factors start: ``search`` takes for every row the ratio that costs
            its linear's output least, ``constant`` takes sigmoid(4) (the authors' code).
        schedule: the learning rate falls to 0 over a block's steps along a ``cosine``, or stays
            ``constant`` (the authors' code).
        zero_point_gradient: learn through the zero points as well; off in the authors' code.
    """

    epochs: int = 8
    learning_rate: float = 0.5
    batch_size: int = 4
    augmented_loss: bool = False
    initialization: Literal["search", "constant"] = "search"
    schedule: Literal["cosine", "constant"] = "cosine"
    zero_point_gradient: bool = True

    def __post_init__(self) -> None:
        """Check the numbers and the choices."""
        _require_choices("lwc", self)
        if self.epochs < 0:
            raise ValueError(f"lwc.epochs is {self.epochs}; it must be 0 (no LWC) or more")
        if not self.learning_rate > 0:
            raise ValueError(f"lwc.learning_rate is {self.learning_rate}; it must be above 0")
        if self.batch_size < 1:
            raise ValueError(f"lwc.batch_size is {self.batch_size}; it must be at least 1")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a quantized model's numbers, apart from the model and the data.

    Args:
        weight_bits: bits of the weights, 2 to 16; 16 leaves them alone.
        activation_bits: bits of every linear's input, likewise.
        query_bits: bits of Q inside attention (default: ``activation_bits``).
        key_bits: bits of K inside attention (default: ``activation_bits``).
        value_bits: bits of V inside attention (default: ``activation_bits``).
        symmetric: centre every range on zero.
        group_size: consecutive inputs of an output channel that share a scale (default: all).
        smoothing: channel scaling before the rotation.
        rotation: the dual transformation.
        clipping: fixed clip factors.
        lwc: learned clip factors.
    """

    weight_bits: int = 4
    activation_bits: int = 4
    query_bits: int | None = None
    key_bits: int | None = None
    value_bits: int | None = None
    symmetric: bool = False
    group_size: int | None = None
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)
    rotation: RotationConfig = field(default_factory=RotationConfig)
    clipping: ClippingConfig = field(default_factory=ClippingConfig)
    lwc: LWCConfig = field(default_factory=LWCConfig)

    def __post_init__(self) -> None:
        """Check the numbers and the combinations."""
        for name in ("weight_bits", "activation_bits", "query_bits", "key_bits", "value_bits"):
            bits = getattr(self, name)
            if bits is not None and not 2 <= bits <= UNQUANTIZED_BITS:
                raise ValueError(
                    f"{name} is {bits}; it must be 2 to {UNQUANTIZED_BITS} "
                    f"({UNQUANTIZED_BITS} means unquantized)"
                )
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}; it must be at least 1")
        if self.lwc.epochs and self.clipping.weight_ratio is not None:
            raise ValueError(
                f"clipping.weight_ratio is {self.clipping.weight_ratio} while LWC learns the clip "
                f"factors for {self.lwc.epochs} epochs; set lwc.epochs to 0 or weight_ratio to null"
            )

    @property
    def has_lwc(self) -> bool:
        """Whether clip factors are learned: LWC is on and there are quantized weights."""
        return self.lwc.epochs > 0 and self.weight_bits < UNQUANTIZED_BITS

    @property
    def alpha(self) -> float:
        """Smoothing strength in force."""
        if self.smoothing.alpha is not None:
            return self.smoothing.alpha
        return ALPHA_WITH_LWC if self.has_lwc else ALPHA_WITHOUT_LWC

    @property
    def weight_ratio(self) -> float:
        """Fixed clip factor of the weights in force where LWC is off."""
        ratio = self.clipping.weight_ratio
        return WEIGHT_RATIO_WITHOUT_LWC if ratio is None else ratio

    @property
    def attention_bits(self) -> tuple[int, int, int]:
        """Bits of Q, K and V in force."""
        given = (self.query_bits, self.key_bits, self.value_bits)
        query, key, value = (self.activation_bits if bits is None else bits for bits in given)
        return query, key, value

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON and for comparison."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Undo :meth:`to_dict`.

        Raises:
            ValueError: for a key that is no field, naming it.
        """
        nested = {
            "smoothing": SmoothingConfig,
            "rotation": RotationConfig,
            "clipping": ClippingConfig,
            "lwc": LWCConfig,
        }
        try:
            parts = {key: kind(**values[key]) for key, kind in nested.items() if key in values}
            return cls(**{**values, **parts})
        except TypeError as error:
            raise ValueError(f"not a recipe: {error}") from error


def round_to_nearest(recipe: Recipe) -> Recipe:
    """The baseline beside a recipe: the same bits and groups, nothing else.

    No smoothing, no block rotation, no clipping, no learning; Q and K keep their Hadamard.
    """
    return replace(
        recipe,
        smoothing=SmoothingConfig(enabled=False),
        rotation=RotationConfig(selector="none", block_size=recipe.rotation.block_size),
        clipping=ClippingConfig(weight_ratio=1.0, activation_ratio=1.0),
        lwc=LWCConfig(epochs=0),
    )


def _require_choices(section: str, config: Any) -> None:
    for option in fields(config):
        value, choices = getattr(config, option.name), get_args(option.type)
        if get_origin(option.type) is Literal and value not in choices:
            raise ValueError(
                f"{section}.{option.name} is {value!r}; it must be one of {', '.join(choices)}"
            )
