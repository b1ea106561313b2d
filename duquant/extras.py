"""What is installed beside the core: extras, and what to say where one is missing.

``pip install duquant`` brings what a model needs to be loaded and run. Calibration and evaluation
need more, which ``pyproject.toml`` lists as extras.
"""

from importlib.util import find_spec

EXTRAS = {
    "calibrate": (
        "lightning", "torchmetrics", "datasets", "tensorboard", "jsonargparse", "docstring_parser",
        "matplotlib", "PIL", "psutil", "rich", "jinja2", "requests",
    ),
    "evaluate": ("lm_eval", "tenacity", "accelerate"),
}  # fmt: skip
"""Modules that an extra adds, by its name."""


class MissingExtraError(ImportError):
    """Something was asked for that an extra installs, which is not installed."""


def require_extra(extra: str, wanted_by: str, install: str | None = None) -> None:
    """Check that what an extra installs is there; nothing is imported.

    Args:
        extra: a key of :data:`EXTRAS`.
        wanted_by: what needs it, for the message.
        install: the extra to name, if it is a larger one that includes this one.

    Raises:
        MissingExtraError: naming a missing module and the command that installs the extra.
    """
    missing = [module for module in EXTRAS[extra] if find_spec(module) is None]
    if missing:
        command = f'pip install "duquant[{install or extra}]"'
        raise MissingExtraError(
            f"{wanted_by} needs {missing[0]}, which is not installed: {command}"
        )
