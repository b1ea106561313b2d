"""The recipe: every choice that decides what numbers a quantized model holds.

The dataclasses are frozen and check themselves when built, so a recipe that exists is a recipe that
makes sense on its own. What depends on the model (does ``block_size`` divide its widths?) is
checked where the model is known, in :mod:`duquant.model.structure`.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.recipe_parts import ClippingConfig, LWCConfig, RotationConfig, SmoothingConfig

__all__ = [
    "ClippingConfig",
    "LWCConfig",
    "Recipe",
    "RotationConfig",
    "SmoothingConfig",
    "round_to_nearest",
]

WEIGHT_RATIO_WITHOUT_LWC = 0.8
ALPHA_WITH_LWC = 0.5
ALPHA_WITHOUT_LWC = 0.6


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

    No smoothing, no block rotation, no clipping, no learning; Q and K keep their Hadamard, and
    biases of Q, K and V stay out of the quantization.
    """
    return replace(
        recipe,
        smoothing=SmoothingConfig(enabled=False),
        rotation=RotationConfig(selector="none", block_size=recipe.rotation.block_size),
        clipping=ClippingConfig(weight_ratio=1.0, activation_ratio=1.0),
        lwc=LWCConfig(epochs=0),
    )
