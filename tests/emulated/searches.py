"""Scenarios that count what rotation searches ask of the emulated device."""

from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from duquant.ops.device_search import STEPS_AT_ONCE
from duquant.ops.rotation import find_rotation
from duquant.recipe_parts import RotationConfig
from duquant.transforms.table import transform_class
from tests.emulated.counts import counting
from tests.emulated.scenarios import DEVICE, Facts, scenario


def seeded(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def _values() -> Tensor:
    """Tokens ``(96, 64)`` with outliers."""
    x = torch.randn(96, 64, generator=seeded(1))
    x[:, [3, 40]] *= 20
    return x


def _searched(x: Tensor, steps: int, selector: str, scope: str) -> Facts:
    """What a search asks of the device, and whether it finds what the CPU's does."""
    found, totals = [], {}
    for place in ("cpu", DEVICE):
        there = x.to(place)
        with counting() as counts:
            rotation = find_rotation(
                there, block_size=16, max_steps=steps, selector=selector, scope=scope,
                generator=seeded(2),
            )  # fmt: skip
        totals = counts.totals()
        found.append(rotation.cpu())
    return {"equal": torch.equal(*found), **totals}


@scenario
def searches(folder: Path) -> Facts:
    """Of every kind, with and without rows that are equal; and where transforms begin to learn."""
    facts: Facts = {}
    for selector, scope in product(
        ("outlier", "authors", "hadamard", "random"), ("shared", "per_block")
    ):
        few, many = (
            _searched(_values(), count, selector, scope)
            for count in (STEPS_AT_ONCE // 2, STEPS_AT_ONCE)
        )
        per_step = 2 * (many["kernels"] - few["kernels"]) / STEPS_AT_ONCE
        facts[f"{selector} {scope}"] = {**many, "kernels of a step": per_step}
    alike = _values()
    alike[20:60] = 3 * alike[20]
    facts["equal rows"] = _searched(alike, STEPS_AT_ONCE, "authors", "per_block")
    facts["four times as long"] = _searched(_values(), 4 * STEPS_AT_ONCE, "outlier", "shared")
    facts["learned"] = _learned()
    return facts


def _learned() -> Facts:
    """A transform that will learn: two searches and what lies between them."""
    options = RotationConfig(block_size=16, max_steps=STEPS_AT_ONCE, transform="affine_permute")
    kind, found, totals = transform_class(options), [], {}
    for place in ("cpu", DEVICE):
        x = _values().to(place)
        with counting() as counts:
            transform = kind.search(x, options, seeded(2))
        totals = counts.totals()
        found.append({name: part.cpu() for name, part in transform.state_dict().items()})
    here, there = found
    return {"equal": all(torch.equal(here[name], there[name]) for name in here), **totals}
