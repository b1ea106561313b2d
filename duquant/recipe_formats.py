"""Which number format each kind of tensor gets: what a recipe's sections and short options say.

A section names a format and its options. What it leaves open is taken from the recipe's short
options, which speak of integers (``weight_bits``, ``symmetric``, …); Q, K and V follow the
activations.
"""

from dataclasses import asdict, replace
from typing import Any, NamedTuple

from duquant.formats.number_format import NumberFormat
from duquant.formats.table import build_format
from duquant.recipe_parts import FormatConfig

INTEGER = "integer"


class Formats(NamedTuple):
    """The number format of everything that is quantized."""

    weights: NumberFormat
    activations: NumberFormat
    queries: NumberFormat
    keys: NumberFormat
    values: NumberFormat


def resolve_formats(
    weights: FormatConfig,
    activations: FormatConfig,
    attention: tuple[FormatConfig, FormatConfig, FormatConfig],
    *,
    weight_bits: int,
    activation_bits: int,
    attention_bits: tuple[int | None, int | None, int | None],
    symmetric: bool,
    group_size: int | None,
) -> Formats:
    """The formats in force.

    Args:
        weights: section of the weights.
        activations: section of every linear's input.
        attention: sections of Q, K and V.
        weight_bits: bits of integer weights.
        activation_bits: bits of integer activations.
        attention_bits: bits of integer Q, K and V, where they are given.
        symmetric: whether integers are centred on zero.
        group_size: entries of an integer weight that share a scale.

    Raises:
        ValueError: for an unknown format, or an option that it does not have, naming the section.
    """
    short = {"bits": activation_bits, "symmetric": symmetric}
    of_weights = {"bits": weight_bits, "symmetric": symmetric, "group_size": group_size}
    sections = zip(("queries", "keys", "values"), attention, attention_bits, strict=True)
    queries, keys, values = (
        _format(name, _following(config, bits, activations), short)
        for name, config, bits in sections
    )
    return Formats(
        _format("weights", weights, of_weights),
        _format("activations", activations, short),
        queries,
        keys,
        values,
    )


def _format(section: str, config: FormatConfig, short: dict[str, Any]) -> NumberFormat:
    name = config.format or INTEGER
    options = {**(short if name == INTEGER else {}), **config.options()}
    try:
        return build_format(name, **options)
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from error


def _following(config: FormatConfig, bits: int | None, followed: FormatConfig) -> FormatConfig:
    """A section of Q, K or V, what it leaves open taken from that of the activations."""
    if bits is not None:
        config = replace(config, format=config.format or INTEGER, bits=config.bits or bits)
    if config.format in (None, followed.format or INTEGER):
        unset = [name for name, value in asdict(config).items() if value is None]
        config = replace(config, **{name: getattr(followed, name) for name in unset})
    return config
