"""The command line without what it needs: a line instead of a traceback, before it is imported."""

from duquant.extras import MissingExtraError, require_extra
from duquant.terminal import complain


def leave_without(extra: str, wanted_by: str) -> None:
    """Leave with status 2 unless what an extra installs is there.

    Args:
        extra: the extra's name.
        wanted_by: what needs it, for the message.
    """
    try:
        require_extra(extra, wanted_by)
    except MissingExtraError as error:
        complain(str(error))
        raise SystemExit(2) from None
