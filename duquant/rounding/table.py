"""Every way of rounding a weight by the name that recipes use."""

from typing import Any

from duquant.registry import build_row
from duquant.rounding.gptq import GPTQ
from duquant.rounding.nearest import Nearest
from duquant.rounding.weight_rounding import WeightRounding

ROUNDINGS: dict[str, type[WeightRounding]] = {kind.name: kind for kind in (Nearest, GPTQ)}


def build_rounding(name: str, **options: Any) -> WeightRounding:
    """The rounding ``name`` with its options, the fields of its dataclass.

    Raises:
        ValueError: for a name that does not exist, an option that the rounding lacks, or a value
            that it refuses.

    Example:
        >>> build_rounding("gptq", damping=0.05).damping
        0.05
    """
    return build_row("rounding", ROUNDINGS, name, options)
