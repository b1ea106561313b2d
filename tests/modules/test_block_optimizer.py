"""The optimizer of clip factors and its learning rate."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from duquant.modules.clip_optimizer import clip_optimizer, scheduled_rate, set_learning_rate

from duquant.config import LWCConfig, Recipe


@pytest.mark.parametrize("gradient", [1e-3, 1e-7, 1e-11])
def test_small_gradients_move_the_factors_as_far_as_large_ones(gradient: float) -> None:
    """Gradients of LWC are means over many small numbers; AdamW must not take them for nothing."""
    factor = torch.nn.Parameter(torch.zeros(1))
    recipe = Recipe(lwc=LWCConfig(learning_rate=0.01))
    factor.grad = torch.full((1,), gradient)
    clip_optimizer(iter([factor]), recipe).step()
    assert factor.item() == pytest.approx(-0.01, rel=1e-3)  # eps is 1e-4 of the smallest gradient


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [0.2, 0.2, 0.2]), ("cosine", [0.2, 0.1, 0.0])]
)
def test_the_rate_follows_its_schedule(schedule: Any, expected: list[float]) -> None:
    lwc = LWCConfig(learning_rate=0.2, schedule=schedule)
    assert [scheduled_rate(lwc, progress) for progress in (0, 0.5, 1)] == pytest.approx(expected)


def test_every_block_starts_with_the_full_rate() -> None:
    """Two blocks of two epochs with four batches: the clock starts anew, nothing is accumulated."""
    recipe = Recipe(lwc=LWCConfig(epochs=2, learning_rate=1.0, schedule="cosine"))
    optimizer = clip_optimizer(iter([torch.nn.Parameter(torch.zeros(1))]), recipe)
    rates = []
    for epoch in range(4):
        for batch in range(4):
            trainer: Any = SimpleNamespace(
                num_training_batches=4, current_epoch=epoch, optimizers=[optimizer]
            )
            set_learning_rate(trainer, recipe.lwc, batch)
            rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:8] == rates[8:]
    assert rates[0] == 1.0
    assert rates[4] == pytest.approx(0.5)
    assert rates[:8] == sorted(rates[:8], reverse=True)
