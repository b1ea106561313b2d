"""What the stored tensors of a quantized model may hold, checked before any kernel sees them.

The number format of the weights and the transform give rules for their own tensors; scales that a
site divides by are positive, and everything else is finite.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from duquant.config import Recipe
from duquant.model.checkpoint import open_safetensors
from duquant.ops.value_rules import FINITE, FINITE_FLOAT32, POSITIVE_FLOAT32, ValueRule
from duquant.transforms.table import transform_class


def require_sensible_files(files: Iterable[Path], recipe: Recipe) -> None:
    """Check every tensor of these files, which are mapped one after the other, not copied.

    Raises:
        ValueError: naming file and tensor, and saying what its values must be.
    """
    for file in files:
        with open_safetensors(file) as opened:
            for name in opened.keys():  # noqa: SIM118
                require_sense({name: opened.get_tensor(name)}, file, recipe)


def require_sense(tensors: Mapping[str, Tensor], file: Path, recipe: Recipe) -> None:
    """Check tensors of a file by the last part of their names.

    Raises:
        ValueError: as :func:`require_sensible_files`.
    """
    rules = rules_of(recipe)
    for name, tensor in tensors.items():
        rule = rules.get(name.rpartition(".")[2], FINITE)
        if tensor.dtype not in rule.dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in rule.dtypes)
            stored = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{file}: {name} is stored as {stored}; it must be {names}")
        if tensor.numel() and not rule.holds(tensor):
            raise ValueError(
                f"{file}: {name} holds values that cannot be; they must be {rule.wanted}"
            )


def rules_of(recipe: Recipe) -> dict[str, ValueRule]:
    """By the last part of a tensor's name, what it must be; any other must be finite."""
    return {
        "online_scale": POSITIVE_FLOAT32,
        "mean": FINITE_FLOAT32,
        "clip_ends": POSITIVE_FLOAT32,
        **recipe.formats.weights.stored_rules,
        **transform_class(recipe.rotation).stored_rules,
    }
