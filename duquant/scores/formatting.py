"""Numbers with their standard errors, as text."""

from duquant.scores.statistics import Difference, Metric

LARGE = 10_000
"""From here on three digits say enough."""


def format_metric(metric: Metric) -> str:
    """``45.20 ± 1.31``, shares in percent."""
    return format_value(metric.value, metric.stderr, is_share=metric.is_share)


def format_value(value: float, stderr: float | None, *, is_share: bool) -> str:
    """A number with its error, shares in percent."""
    factor = 100 if is_share else 1
    return _number(value * factor) + _error(stderr, factor)


def format_difference(apart: Difference, is_share: bool) -> tuple[str, str]:
    """The difference with its error, and whether it exceeds it."""
    exceeds = {True: "yes", False: "no", None: "?"}[apart.exceeds_stderr]
    sign = "+" if apart.value >= 0 else ""
    return sign + format_value(apart.value, apart.stderr, is_share=is_share), exceeds


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < LARGE else f"{value:.3g}"


def _error(stderr: float | None, factor: int) -> str:
    return "" if stderr is None else f" ± {_number(stderr * factor)}"
