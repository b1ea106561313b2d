"""Tensors like those DuQuant is made for: most channels tame, a few a hundred times larger."""

import torch
from hypothesis import strategies as st
from torch import Tensor

seeds = st.integers(0, 2**31 - 1)


def outlier_activation(
    tokens: int, width: int, seed: int, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Normal values; one channel in sixteen is 30 times larger and one entry 300 times."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator, dtype=dtype)
    large = torch.randperm(width, generator=generator)[: max(1, width // 16)]
    x[:, large] *= 30
    x[int(torch.randint(tokens, (), generator=generator)), large[0]] = 300
    return x


def random_weight(out_features: int, in_features: int, seed: int) -> Tensor:
    """A weight whose products with a normal ``x`` are of order one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out_features, in_features, generator=generator) * in_features**-0.5
