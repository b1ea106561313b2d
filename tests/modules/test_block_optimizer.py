"""The optimizer of a block's parameters and its learning rates."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from duquant.modules.block_optimizer import (
    block_optimizer,
    merged_groups,
    scheduled_rate,
    set_learning_rate,
)


@pytest.mark.parametrize("gradient", [1e-3, 1e-7, 1e-11])
def test_small_gradients_move_the_factors_as_far_as_large_ones(gradient: float) -> None:
    """Gradients of LWC are means over many small numbers; AdamW must not take them for nothing."""
    factor = torch.nn.Parameter(torch.zeros(1))
    factor.grad = torch.full((1,), gradient)
    block_optimizer([{"params": [factor], "lr": 0.01}]).step()
    assert factor.item() == pytest.approx(-0.01, rel=1e-3)  # eps is 1e-4 of the smallest gradient


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [0.2, 0.2, 0.2]), ("cosine", [0.2, 0.1, 0.0])]
)
def test_the_rate_follows_its_schedule(schedule: Any, expected: list[float]) -> None:
    rates = [scheduled_rate(schedule, 0.2, progress) for progress in (0, 0.5, 1)]
    assert rates == pytest.approx(expected)


def test_every_block_starts_with_the_full_rate() -> None:
    """Two blocks of two epochs with four batches: the clock starts anew, nothing is accumulated."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1.0, 0.25)]
    optimizer = block_optimizer(groups)
    rates = []
    for epoch in range(4):
        for batch in range(4):
            trainer: Any = SimpleNamespace(
                num_training_batches=4, current_epoch=epoch, optimizers=[optimizer]
            )
            set_learning_rate(trainer, batch, 2, schedule="cosine", rate=1.0)
            rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:8] == rates[8:]
    assert rates[0] == 1.0
    assert rates[4] == pytest.approx(0.5)
    assert rates[:8] == sorted(rates[:8], reverse=True)
    first, second = optimizer.param_groups
    assert second["lr"] == pytest.approx(0.25 * first["lr"]), "every group has a rate of its own"


def test_groups_of_all_blocks_are_joined_in_order() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(4)]
    blocks = [
        [{"params": [parameters[0]], "lr": 0.1}, {"params": [parameters[1]], "lr": 0.2}],
        [{"params": [parameters[2]], "lr": 0.1}, {"params": [parameters[3]], "lr": 0.2}],
    ]
    first, second = merged_groups(blocks)
    assert (first["lr"], second["lr"]) == (0.1, 0.2)
    assert [id(p) for p in first["params"]] == [id(parameters[0]), id(parameters[2])]
    assert [id(p) for p in second["params"]] == [id(parameters[1]), id(parameters[3])]
