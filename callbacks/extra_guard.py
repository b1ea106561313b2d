"""The command line without what it needs: a line instead of a traceback, before it is imported."""

from collections.abc import Sequence

from duquant.extras import MissingExtraError, require_extra
from duquant.terminal import complain

CALIBRATE = "calibrate"
EXTRAS = {"evaluate": "evaluate", "mtbench": "evaluate"}
"""Extras of subcommands that need more than the others."""


def leave_without_extra(arguments: Sequence[str]) -> None:
    """Leave with status 2 unless what every subcommand needs is there, and say what this one needs.

    Args:
        arguments: of the command line.
    """
    wanted = EXTRAS.get(arguments[0], CALIBRATE) if arguments else CALIBRATE
    try:
        require_extra(CALIBRATE, "cli.py", wanted)
    except MissingExtraError as error:
        complain(str(error))
        raise SystemExit(2) from None
