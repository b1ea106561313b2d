"""Every number format by the name that recipes use.

| name | numbers | a group shares | its entries | bits per entry |
|---|---|---|---|---|
| ``integer`` | integers | float32 scale, int16 zero | a row, or chosen | bits + 48 / entries |
| ``mxfp4`` | E2M1 | E8M0 scale, a power of two | 32 | 4.25 |
| ``nvfp4`` | E2M1 | E4M3 scale; a float32 for the tensor | 16 | 4.5 |
| ``unquantized`` | as they are | | | 16 |

A new format is a frozen dataclass in a file of its own that does what
:class:`duquant.formats.number_format.NumberFormat` says, and a row here.
"""

from duquant.formats.integer import Integer
from duquant.formats.mxfp4 import MXFP4
from duquant.formats.number_format import NumberFormat
from duquant.formats.nvfp4 import NVFP4
from duquant.formats.unquantized import Unquantized
from duquant.ops.affine import UNQUANTIZED_BITS
from duquant.registry import build_row

FORMATS: dict[str, type[NumberFormat]] = {
    kind.name: kind for kind in (Integer, MXFP4, NVFP4, Unquantized)
}


def build_format(name: str, **options: int | bool | None) -> NumberFormat:
    """The format ``name`` with its options, the fields of its dataclass.

    Integers of 16 bits are the format ``unquantized``, whatever their other options.

    Raises:
        ValueError: for a name that does not exist, an option that the format lacks, or a value that
            it refuses.

    Example:
        >>> build_format("integer", bits=6, symmetric=True)
        Integer(bits=6, symmetric=True, group_size=None)
        >>> build_format("integer", bits=16)
        Unquantized()
    """
    if name == Integer.name and options.get("bits") == UNQUANTIZED_BITS:
        build_row("number format", FORMATS, name, {**options, "bits": Integer.bits})
        return Unquantized()
    return build_row("number format", FORMATS, name, options)
