"""The recipe: every choice that decides what numbers a quantized model holds.

The dataclasses are frozen and check themselves when built, so a recipe that exists is a recipe that
makes sense on its own. What depends on the model (does ``block_size`` divide its widths?) is
checked where the model is known, in :mod:`duquant.model.structure`.
"""

from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from duquant.formats.number_format import NumberFormat
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.recipe_formats import Formats, resolve_formats
from duquant.recipe_learning import DistillationConfig, LWCConfig, TrainingConfig
from duquant.recipe_parts import (
    ClippingConfig,
    FormatConfig,
    RotationConfig,
    RoundingConfig,
    SmoothingConfig,
)
from duquant.rounding.table import build_rounding
from duquant.rounding.weight_rounding import WeightRounding

__all__ = [
    "ClippingConfig",
    "DistillationConfig",
    "FormatConfig",
    "Formats",
    "LWCConfig",
    "Recipe",
    "RotationConfig",
    "RoundingConfig",
    "SmoothingConfig",
    "TrainingConfig",
]

WEIGHT_RATIO_WITHOUT_LWC = 0.8
ALPHA_WITH_LWC = 0.5
ALPHA_WITHOUT_LWC = 0.6
NOTHING_IS_TRAINED = "nothing is trained: set lwc.epochs to at least 1, with integer weights"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a quantized model's numbers, apart from the model and the data.

    Bits, symmetry and groups of integers have short options; ``weights`` to ``values`` say more,
    and go before them.

    Args:
        weight_bits: bits of the weights, 2 to 16; 16 leaves them alone.
        activation_bits: bits of every linear's input, likewise.
        query_bits: bits of Q inside attention (default: ``activation_bits``).
        key_bits: bits of K inside attention (default: ``activation_bits``).
        value_bits: bits of V inside attention (default: ``activation_bits``).
        symmetric: centre every range of integers on zero.
        group_size: consecutive inputs of an output channel that share a scale (default: all).
        weights: number format of the weights.
        activations: number format of every linear's input.
        queries: number format of Q inside attention (default: that of the activations).
        keys: number format of K inside attention (default: that of the activations).
        values: number format of V inside attention (default: that of the activations).
        smoothing: channel scaling before the rotation.
        rotation: greedy block rotation and zigzag permutation.
        clipping: clip factors that are not learned.
        lwc: learned clip factors.
        training: what is learned beside them, and on what.
        rounding: how weights are rounded.
        distillation: training of the whole model, behind all of that.
    """

    weight_bits: int = 4
    activation_bits: int = 4
    query_bits: int | None = None
    key_bits: int | None = None
    value_bits: int | None = None
    symmetric: bool = False
    group_size: int | None = None
    weights: FormatConfig = field(default_factory=FormatConfig)
    activations: FormatConfig = field(default_factory=FormatConfig)
    queries: FormatConfig = field(default_factory=FormatConfig)
    keys: FormatConfig = field(default_factory=FormatConfig)
    values: FormatConfig = field(default_factory=FormatConfig)
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)
    rotation: RotationConfig = field(default_factory=RotationConfig)
    clipping: ClippingConfig = field(default_factory=ClippingConfig)
    lwc: LWCConfig = field(default_factory=LWCConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    rounding: RoundingConfig = field(default_factory=RoundingConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)

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
        _ = self.formats, self.weight_rounding  # check their options
        if self.training.activation_clips and not self.has_lwc:
            raise ValueError(f"training.activation_clips is true, but {NOTHING_IS_TRAINED}")
        if self.lwc.epochs and self.clipping.weight_ratio is not None:
            raise ValueError(
                f"clipping.weight_ratio is {self.clipping.weight_ratio} while LWC learns the clip "
                f"factors for {self.lwc.epochs} epochs; set lwc.epochs to 0 or weight_ratio to null"
            )

    @property
    def formats(self) -> Formats:
        """The number formats in force.

        Raises:
            ValueError: for an unknown format, or an option that it does not have.
        """
        return resolve_formats(
            self.weights,
            self.activations,
            (self.queries, self.keys, self.values),
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            attention_bits=(self.query_bits, self.key_bits, self.value_bits),
            symmetric=self.symmetric,
            group_size=self.group_size,
        )

    @property
    def has_lwc(self) -> bool:
        """Whether clip factors are learned: LWC is on, and the weights' scales can learn."""
        return self.lwc.epochs > 0 and self.formats.weights.learns_clip_factors

    @property
    def searches_clips(self) -> bool:
        """Whether LWC is on for weights whose scales cannot learn: their ratios are searched.

        Not where rounding reads the Gram matrix itself: it does better with the formats' scales.
        """
        weights = self.formats.weights
        is_learnable = weights.bits >= UNQUANTIZED_BITS or weights.learns_clip_factors
        return self.lwc.epochs > 0 and not is_learnable and not self.weight_rounding.needs_gram

    @property
    def weight_rounding(self) -> WeightRounding:
        """How weights are rounded.

        Raises:
            ValueError: for an unknown method, or an option that it does not have.
        """
        try:
            return build_rounding(self.rounding.method, **self.rounding.options())
        except ValueError as error:
            raise ValueError(f"rounding: {error}") from error

    @property
    def needs_grams(self) -> bool:
        """Whether a block's Gram matrices are collected: a search or the rounding reads them."""
        starts = self.has_lwc and self.lwc.initialization == "search"
        return starts or self.searches_clips or self.weight_rounding.needs_gram

    @property
    def needs_quantized_stream(self) -> bool:
        """Whether anything learns from what the quantized model sees, or is calibrated on it."""
        peaks = any(form.needs_peak for form in self.formats[1:])
        searches = self.clipping.activations == "search"
        return self.has_lwc or self.needs_grams or peaks or searches

    @property
    def stores_clip_factors(self) -> bool:
        """Whether every quantizer of activations has clip factors of its own."""
        return self.clipping.activations == "search" or (
            self.has_lwc and self.training.activation_clips
        )

    @property
    def alpha(self) -> float:
        """Smoothing strength in force."""
        if self.smoothing.alpha is not None:
            return self.smoothing.alpha
        return ALPHA_WITH_LWC if self.has_lwc else ALPHA_WITHOUT_LWC

    @property
    def weight_ratio(self) -> float:
        """Fixed clip factor of the weights in force where LWC is off."""
        if not self.formats.weights.learns_clip_factors:
            return 1.0
        ratio = self.clipping.weight_ratio
        return WEIGHT_RATIO_WITHOUT_LWC if ratio is None else ratio

    def activation_ratio(self, activations: NumberFormat) -> float:
        """Clip factor in force of activations in a format: ratios are of integers alone."""
        return self.clipping.activation_ratio if activations.learns_clip_factors else 1.0

    @property
    def attention_bits(self) -> tuple[int, int, int]:
        """Bits of Q, K and V in force."""
        formats = self.formats
        return formats.queries.bits, formats.keys.bits, formats.values.bits

    @property
    def bits_in_words(self) -> str:
        """``W4A4``, with the names of formats that are no integers: ``W4-mxfp4 A4-mxfp4``."""
        weights, activations = self.formats.weights, self.formats.activations
        plain = {"integer", "unquantized"}
        if {weights.name, activations.name} <= plain:
            return f"W{weights.bits}A{activations.bits}"
        words = [
            f"{letter}{form.bits}" + ("" if form.name in plain else f"-{form.name}")
            for letter, form in (("W", weights), ("A", activations))
        ]
        return " ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON and for comparison."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Undo :meth:`to_dict`.

        Raises:
            ValueError: for a key that is no field, naming it.
        """
        try:
            parts = {key: kind(**values[key]) for key, kind in PARTS.items() if key in values}
            return cls(**{**values, **parts})
        except TypeError as error:
            raise ValueError(f"not a recipe: {error}") from error


PARTS: dict[str, Any] = {
    option.name: option.default_factory
    for option in fields(Recipe)
    if option.default_factory is not MISSING
}
"""The recipe's sections and their classes."""
