"""The emulated device's clock, and marks that hold its time."""


class Clock:
    """The device's, which only tests move.

    Attributes:
        now: milliseconds.
    """

    now = 0.0


class TimedMark:
    """What an event of a GPU says about time.

    Args:
        enable_timing: whether it says anything.
    """

    is_reached = False

    def __init__(self, enable_timing: bool = False) -> None:
        self._is_timed, self._time = enable_timing, 0.0

    def reach(self) -> bool:
        """The device is there."""
        self.is_reached, self._time = True, Clock.now
        return True

    def elapsed_time(self, end: "TimedMark") -> float:
        """Milliseconds until another mark."""
        for mark in (self, end):
            assert mark._is_timed
            assert mark.is_reached
        return end._time - self._time
