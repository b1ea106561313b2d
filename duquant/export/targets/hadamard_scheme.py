"""Hadamard rotations of every site, as compressed-tensors describes transforms.

A linear of ours reads ``x H``, ``H`` block-diagonal, and its weight holds ``W H`` already. In the
words of compressed-tensors that is one scheme of type ``hadamard``, with ``head_dim`` for the size
of a block, applied to every linear's ``input``. Both build the matrix by Sylvester's construction,
so none is stored. Its ``weight_input`` is left out: that would transform weights when they load.

A searched or random rotation could be stored there for every site, permutations and invertible
blocks could not; only Hadamard matrices are written.

What runs it: vLLM applies the scheme by its kernel for CUDA (hadacore), in the model's dtype; read
in its source, not run, and its build for processors has no such kernel. transformers 5 ignores
``transform_config``, so whoever loads there applies it (:data:`APPLY`).
"""

from typing import Any

import torch
from torch import nn

from duquant.config import Recipe
from duquant.model.execution import transform_of
from duquant.model.structure import SITES
from duquant.ops.hadamard import hadamard_matrix
from duquant.transforms.identity import Identity
from duquant.transforms.rotate_permute import RotatePermute
from duquant.transforms.table import transform_class

APPLY = """\
Where `config.json` has a `transform_config`, inputs of linears are rotated. vLLM does so on CUDA.
transformers ignores it, and the model says nonsense there, unless these lines follow its loading:

```python
import json
from compressed_tensors.transform import TransformConfig, apply_transform_config

stored = json.load(open("path/to/this/directory/config.json"))["quantization_config"]
apply_transform_config(model, TransformConfig(**stored["transform_config"]))
```"""


def transform_problem(recipe: Recipe) -> str:
    """Why a recipe's transform cannot be written, if it cannot."""
    rotation = recipe.rotation
    kind = transform_class(rotation)
    if kind is Identity:
        return ""
    if kind is not RotatePermute:
        return f"rotation.transform is {rotation.transform!r}, which compressed-tensors cannot say"
    if rotation.selector != "hadamard":
        return (
            f"rotation.selector is {rotation.selector!r}: only 'hadamard' and 'none' can be written"
        )
    if rotation.permutation_times:
        return (
            f"rotation.permutation_times is {rotation.permutation_times}: compressed-tensors knows "
            f"no permutation (0)"
        )
    return ""


def hadamard_scheme(recipe: Recipe) -> dict[str, Any]:
    """The ``transform_config``; empty without a transform."""
    if transform_class(recipe.rotation) is Identity:
        return {}
    linears = [linear.rpartition(".")[2] for site in SITES for linear in site.linears]
    scheme = {
        "type": "hadamard",
        "apply": [{"targets": [f"re:.*{name}$" for name in linears], "location": "input"}],
        "head_dim": recipe.rotation.block_size,
        "precision": "torch.float32",
    }
    return {"config_groups": {"hadamard": scheme}}


def require_hadamard(block: nn.Module) -> None:
    """Check that the sites of a block rotate as the scheme says.

    Raises:
        ValueError: naming the site.
    """
    for site in SITES:
        transform = transform_of(block, site).transform
        if isinstance(transform, RotatePermute):
            (matrices,) = transform.rotations
            expected = hadamard_matrix(matrices.shape[-1]).expand_as(matrices)
            if not torch.equal(matrices, expected):
                raise ValueError(f"{site.name} is rotated by another matrix than Hadamard's")
