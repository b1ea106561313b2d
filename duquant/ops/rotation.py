"""Greedy block rotation: orthogonal matrices, chosen step by step, that flatten outliers.

An activation with a few channels a hundred times larger than the rest wastes almost all of 16
levels on them. Multiplying by an orthogonal matrix ``R`` spreads one large channel over many, and
multiplying the weight by the same matrix leaves the product alone: ``(x R)(W R)ᵀ = x Wᵀ``. A full
matrix is expensive, so ``R`` is block-diagonal with blocks of ``block_size`` channels (DuQuant
section 3.2).

One step of the search finds the largest entry, in channel ``c`` of its block, and multiplies by

    S = B with rows and columns 0 and c exchanged,      B = B₀ · diag(1, Q)

``B₀`` has the constant first *row* ``1/√b``, so channel ``c`` is spread evenly over the block;
``Q`` is a random orthogonal matrix that stirs the other channels. The step creates new maxima, so
the search repeats and keeps the product whose peak was the smallest of all steps.

Two readings of the algorithm exist, and both are here:

* ``authors`` — the released code: one matrix for all blocks, peak = max − min, and the channel that
  is exchanged is the *row* index of the largest entry modulo the block size. The row has nothing to
  do with the outlier's channel, so the exchange is in effect arbitrary.
* ``outlier`` — the paper's Algorithm 1: exchange the outlier's own channel, peak = max |entry|.

Either runs with one matrix ``shared`` by all blocks or with a search ``per_block``. The published
code draws one ``Q`` per search, the paper one per step; here it is one per search.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from duquant.ops.device_search import search_on_device
from duquant.ops.finite import is_finite
from duquant.ops.greedy_search import greedy_search
from duquant.ops.hadamard import hadamard_matrix
from duquant.ops.precision import exact_products

Selector = Literal["authors", "outlier", "hadamard", "random", "none"]
Scope = Literal["shared", "per_block"]
BaseSource = Callable[[int, int], Tensor]
"""Draws ``n`` base matrices of ``b`` channels: ``(n, b) -> tensor of shape (n, b, b)``."""


def block_rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Multiply every block of channels by its matrix: ``y = x · diag(R_1 … R_K)``.

    Args:
        x: shape ``(..., width)``.
        rotation: shape ``(1, b, b)``, one matrix for all blocks, or ``(width / b, b, b)``.

    Returns:
        Shape ``(..., width)``, dtype of ``x``.
    """
    num_matrices, block_size, _ = rotation.shape
    if num_matrices == 1:
        return (x.reshape(-1, block_size) @ rotation[0]).view(x.shape)
    blocks = x.reshape(-1, num_matrices, block_size).transpose(0, 1)
    return torch.bmm(blocks, rotation).transpose(0, 1).reshape(x.shape)


def spreading_matrix(size: int) -> Tensor:
    """``B₀``: orthogonal, first row constant ``1/√size``.

    The other rows are Helmert contrasts (each compares one channel with the mean of those before
    it), in the order that a chain of Givens rotations starting from the last channel leaves them.

    Returns:
        float32 of shape ``(size, size)``, on the CPU.
    """
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float32, device="cpu")
    channels = [size - 1, *range(1, size - 1), 0] if size > 2 else [1, 0]
    matrix = torch.zeros(size, size, dtype=torch.float64, device="cpu")
    matrix[0] = size**-0.5
    for count in range(1, size):
        row = size - 1 if count == 1 else count - 1
        matrix[row, channels[:count]] = (count * (count + 1)) ** -0.5
        matrix[row, channels[count]] = -((count / (count + 1)) ** 0.5)
    return matrix.float()


def random_orthogonal(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Matrices uniform over the orthogonal group, float32 of shape ``(count, size, size)``."""
    shape = (count, size, size)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(normal)
    signs = r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return torch.mul(q, signs).float()


def random_base(generator: torch.Generator) -> BaseSource:
    """Source of base matrices ``B₀ · diag(1, Q)`` with random ``Q``."""

    def draw(count: int, size: int) -> Tensor:
        stirred = torch.eye(size, dtype=torch.float32, device="cpu").repeat(count, 1, 1)
        stirred[:, 1:, 1:] = random_orthogonal(count, size - 1, generator)
        return spreading_matrix(size) @ stirred

    return draw


def find_rotation(
    x: Tensor,
    *,
    block_size: int,
    max_steps: int,
    selector: Selector,
    scope: Scope,
    generator: torch.Generator,
    draw_base: BaseSource | None = None,
) -> Tensor:
    """Choose the block rotation for one calibration tensor.

    Args:
        x: float32, shape ``(tokens, width)``.
        block_size: channels of a block, divides ``width``.
        max_steps: greedy steps at most.
        selector: how a step chooses its channel; ``hadamard`` and ``random`` do not search.
        scope: one matrix for all blocks, or one each.
        generator: source of randomness (CPU).
        draw_base: replaces the random base matrices, for tests against recorded ones.

    Returns:
        float32 of shape ``(1, b, b)`` for ``shared``, ``(width / b, b, b)`` for ``per_block``.

    Raises:
        ValueError: for ``selector="none"``, which has no rotation to find, and for calibration
            values that are not finite.
    """
    num_searches = 1 if scope == "shared" else x.shape[-1] // block_size
    if selector == "hadamard":
        return hadamard_matrix(block_size).repeat(num_searches, 1, 1).to(x.device)
    if selector == "random":
        return random_orthogonal(num_searches, block_size, generator).to(x.device)
    if selector == "none":
        raise ValueError("selector 'none' has no rotation to find")
    if not is_finite(x):
        undefined = x.numel() - int(torch.isfinite(x).sum())
        raise ValueError(
            f"{undefined} of {x.numel()} calibration values of an activation are not finite: "
            f"compute in another precision (--model.dtype) or check the model's weights"
        )
    base = (draw_base or random_base(generator))(num_searches, block_size).to(x.device)
    blocks = x.reshape(-1, num_searches, x.shape[-1] // num_searches).transpose(0, 1)
    rows = blocks.reshape(num_searches, -1, block_size)
    search = greedy_search if x.device.type == "cpu" else search_on_device
    with exact_products():
        return search(rows, base, max_steps, follow_row=selector == "authors")
