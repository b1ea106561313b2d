"""One block that learns its clip factors, alone under a Trainer."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from duquant.config import LWCConfig, Recipe
from duquant.data.batches import batch_loader
from duquant.data.streams import BlockSamples
from duquant.model.batch import BlockBatch
from duquant.model.channel_ranges import observe_sites
from duquant.model.decoder import Decoder
from duquant.model.site_report import SiteReport
from duquant.model.structure import LINEARS, SITES, linear_shapes, short_name
from duquant.modules.block import QuantBlock
from duquant.nn.clipping import INITIAL_LOGIT
from tests.block_by_block import CPU
from tests.in_process import LIGHTNING_WARNINGS, ROTATION, small_trainer
from tests.tiny_models import FAMILIES, token_ids, write_tiny_model

pytestmark = LIGHTNING_WARNINGS
SAMPLES, TOKENS, BATCH, EPOCHS = 8, 16, 2, 4
CONSTANT = LWCConfig(
    epochs=EPOCHS,
    learning_rate=0.1,
    batch_size=BATCH,
    initialization="constant",
    schedule="constant",
    zero_point_gradient=False,
)
"""The authors' training: far from the optimum at first, so that it shows; every step alike."""
RECIPE = Recipe(rotation=ROTATION, lwc=CONSTANT)
SEARCH = replace(RECIPE, lwc=replace(CONSTANT, initialization="search"))


class Bench:
    """A block's weights, and what it is trained on."""

    def __init__(self, directory: Path) -> None:
        self.decoder = Decoder(str(directory), torch.float32)
        self.context = self.decoder.contexts(TOKENS, CPU)[0]
        self.stream = self.decoder.embed(token_ids(SAMPLES, TOKENS), CPU)
        full_precision = self.decoder.load_block(0)
        with torch.no_grad(), observe_sites(full_precision, means=True) as ranges:
            self.target: Tensor = full_precision(self.stream, **self.context)
        self.ranges = ranges

    def new_block(self, recipe: Recipe = RECIPE) -> QuantBlock:
        return QuantBlock(linear_shapes(self.decoder.meta_block()), recipe)

    def enter(
        self, block: QuantBlock, *, seed: int = 0, samples: Tensor | None = None
    ) -> tuple[Tensor, dict[str, SiteReport]]:
        return block.enter(
            self.decoder.load_block(0),
            self.ranges,
            self.context,
            self.stream.mean(dim=0, keepdim=True),
            lambda: [self.stream if samples is None else samples],
            torch.Generator().manual_seed(seed),
        )

    def entered(self, recipe: Recipe = RECIPE) -> QuantBlock:
        block = self.new_block(recipe)
        self.enter(block)
        return block

    def batches(self) -> list[BlockBatch]:
        return list(batch_loader(BlockSamples(self.stream, self.target), BATCH, CPU))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    directory = tmp_path_factory.mktemp("model")
    return Bench(write_tiny_model(directory, FAMILIES["llama-grouped"]))


def train(block: QuantBlock, batches: Sequence[BlockBatch], *callbacks: Callback) -> Any:
    """Fit the block alone; returns its optimizer."""
    loader: Iterable[BlockBatch] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer = small_trainer(*callbacks, max_epochs=EPOCHS)
    trainer.fit(block, loader)
    return trainer.optimizers[0]


@torch.no_grad()
def mean_loss(block: QuantBlock, batches: Sequence[BlockBatch]) -> float:
    losses = [block.training_step(batch, index) for index, batch in enumerate(batches)]
    return sum(float(loss) for loss in losses) / len(batches)


def assert_same_training(ours: QuantBlock, theirs: QuantBlock, optimizers: Sequence[Any]) -> None:
    """The same factors and the same moments, bit by bit."""
    for (name, first), second in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(first, second), name
        states = [
            optimizer.state[parameter]
            for optimizer, parameter in zip(optimizers, (first, second), strict=True)
        ]
        assert states[0].keys() == states[1].keys()
        for key in states[0]:
            assert torch.equal(states[0][key], states[1][key]), (name, key)


# Training


@pytest.mark.parametrize("group_size", [None, 16])
def test_a_block_trains_alone(bench: Bench, group_size: int | None) -> None:
    recipe = Recipe(rotation=ROTATION, lwc=RECIPE.lwc, group_size=group_size)
    block, batches = bench.entered(recipe), bench.batches()
    before = mean_loss(block, batches)
    train(block, batches)
    # It reaches three quarters; untrained it stays at one.
    assert mean_loss(block, batches) < 0.9 * before
    assert int(block.skipped_steps) == 0
    for high, low in block.clip_factors().values():
        assert ((high > 0) & (high < 1) & (low > 0) & (low < 1)).all()
    assert any((high < 0.97).any() for high, _ in block.clip_factors().values())


def test_only_clip_factors_are_parameters(bench: Bench) -> None:
    block = bench.entered()
    shapes = linear_shapes(bench.decoder.meta_block())
    expected = {
        f"clips.{short_name(name)}.{side}_logit": (rows, 1)
        for name, (rows, _) in shapes.items()
        for side in ("high", "low")
    }
    assert {n: tuple(p.shape) for n, p in block.named_parameters()} == expected
    assert set(block.state_dict()) == {*expected, "skipped_steps", "has_begun"}, (
        "no weight in a checkpoint"
    )
    assert set(block.clip_factors()) == {short_name(name) for name in LINEARS}


def test_groups_have_factors_of_their_own(bench: Bench) -> None:
    recipe = Recipe(rotation=ROTATION, group_size=16)
    for name, (rows, columns) in linear_shapes(bench.decoder.meta_block()).items():
        high, low = bench.new_block(recipe).clip_factors()[short_name(name)]
        assert high.shape == low.shape == (rows * columns // 16, 1)


@pytest.mark.parametrize("options", [{"lwc": LWCConfig(epochs=0)}, {"weight_bits": 16}])
def test_without_lwc_there_is_nothing_to_learn(bench: Bench, options: dict[str, Any]) -> None:
    block = bench.entered(Recipe(rotation=ROTATION, **options))
    assert not list(block.parameters())
    assert block.clip_factors() == {}


def test_the_loss_is_the_mean_squared_error(bench: Bench) -> None:
    block, batch = bench.entered(), bench.batches()[1]
    loss = block.training_step(batch, 0)
    output = block(batch.quantized_input)
    by_hand = (output - batch.target).double().square().mean()
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-5, atol=0)


def test_the_augmented_loss_adds_a_second_target(bench: Bench) -> None:
    augmented = replace(RECIPE, lwc=replace(CONSTANT, augmented_loss=True))
    batch = bench.batches()[0]
    batch = batch._replace(augmented_target=batch.target + 0.5)
    plain = bench.entered().training_step(batch, 0)
    block = bench.entered(augmented)
    loss = block.training_step(batch, 0)
    second = (block(batch.quantized_input) - batch.augmented_target).square().mean()
    torch.testing.assert_close(loss, plain + second)
    assert second > 0.1


# What is not finite


def poisoned(batch: BlockBatch, part: str, value: float) -> BlockBatch:
    tensor = getattr(batch, part).clone()
    tensor[0, 0, 0] = value
    return batch._replace(**{part: tensor})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["quantized_input", "target"])
def test_a_loss_that_is_not_finite_skips_the_step(bench: Bench, part: str, value: float) -> None:
    block, batch = bench.entered(), bench.batches()[0]
    optimizer = block.configure_optimizers()
    block.training_step(poisoned(batch, part, value), 0).backward()
    block.drop_unusable_step(optimizer)
    assert all(parameter.grad is None for parameter in block.parameters())
    block.training_step(batch, 1).backward()
    block.drop_unusable_step(optimizer)
    assert all(parameter.grad is not None for parameter in block.parameters())
    assert int(block.skipped_steps) == 1


def test_a_loss_that_overflows_skips_the_step_though_its_gradients_are_finite(bench: Bench) -> None:
    block, batch = bench.entered(), bench.batches()[0]
    block.training_step(poisoned(batch, "target", 1e20), 0).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())
    block.drop_unusable_step(block.configure_optimizers())
    assert all(parameter.grad is None for parameter in block.parameters())
    assert int(block.skipped_steps) == 1


def test_a_skipped_step_is_as_if_it_had_not_been(bench: Bench) -> None:
    """Neither factors nor the optimizer's moments notice: Adam does not even decay."""
    batches = bench.batches()
    bad = poisoned(batches[1], "quantized_input", float("nan"))
    with_bad, without = bench.entered(), bench.entered()
    optimizers = [
        train(with_bad, [batches[0], bad, *batches[2:]]),
        train(without, [batches[0], *batches[2:]]),
    ]
    assert int(with_bad.skipped_steps) == EPOCHS
    assert int(without.skipped_steps) == 0
    assert_same_training(with_bad, without, optimizers)


class SpoilGradient(Callback):
    """Makes one gradient of one batch infinite, as an overflow would."""

    def __init__(self, batch: BlockBatch) -> None:
        self.batch = batch
        self.is_bad = False

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: BlockBatch, batch_idx: int
    ) -> None:
        self.is_bad = batch.target is self.batch.target

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self.is_bad:
            next(pl_module.parameters()).grad[0] = float("inf")


def test_gradients_that_are_not_finite_are_dropped(bench: Bench) -> None:
    batches = bench.batches()
    with_bad, without = bench.entered(), bench.entered()
    optimizers = [
        train(with_bad, batches, SpoilGradient(batches[1])),
        train(without, [batches[0], *batches[2:]]),
    ]
    assert int(with_bad.skipped_steps) == EPOCHS
    assert_same_training(with_bad, without, optimizers)


def test_finite_gradients_stay(bench: Bench) -> None:
    block = bench.entered()
    block.training_step(bench.batches()[0], 0).backward()
    block.drop_unusable_step(block.configure_optimizers())
    assert all(parameter.grad is not None for parameter in block.parameters())
    assert int(block.skipped_steps) == 0


# Entering


def test_one_generator_enters_one_way(bench: Bench) -> None:
    blocks = [bench.new_block() for _ in range(3)]
    outcomes = [
        bench.enter(block, seed=seed) for block, seed in zip(blocks, (0, 0, 1), strict=True)
    ]
    (first, reports), (again, reports_again), (other, _) = outcomes
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert list(reports) == [site.name for site in SITES]
    for name, report in reports.items():
        for stage, magnitudes in report.magnitudes.items():
            assert torch.equal(magnitudes, reports_again[name].magnitudes[stage])
    ours, theirs = (b.quantized.linears for b in blocks[:2] if b.quantized is not None)
    for name in LINEARS:
        assert torch.equal(ours[name].weight, theirs[name].weight)


def test_entering_a_trained_block_again_repeats_the_rotations_and_keeps_the_factors(
    bench: Bench,
) -> None:
    """What a resumed run does: rotations were searched with initial factors, so they are again."""
    fresh, trained = bench.new_block(), bench.new_block()
    expected, _ = bench.enter(fresh)
    bench.enter(trained)
    train(trained, bench.batches())
    factors = {name: parameter.clone() for name, parameter in trained.named_parameters()}
    calibration_mean, _ = bench.enter(trained)
    assert torch.equal(calibration_mean, expected)
    assert fresh.quantized is not None
    assert trained.quantized is not None
    for name, linear in trained.quantized.linears.items():
        assert torch.equal(linear.weight, fresh.quantized.linears[name].weight)
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, factors[name])
        assert not torch.equal(parameter, fresh.get_parameter(name)), "training moved it"
        assert parameter.requires_grad


def test_the_zero_point_gradient_is_an_option(bench: Bench) -> None:
    """The same loss, another gradient for every linear."""
    gradients = []
    for option in (False, True):
        lwc = replace(CONSTANT, zero_point_gradient=option)
        block = bench.entered(replace(RECIPE, weight_bits=3, lwc=lwc))
        loss = block.training_step(bench.batches()[0], 0)
        loss.backward()
        gradients.append((loss.detach(), [parameter.grad for parameter in block.parameters()]))
    (plain_loss, plain), (loss, with_zero_point) = gradients
    assert torch.equal(plain_loss, loss)
    for first, second in zip(plain, with_zero_point, strict=True):
        assert first is not None
        assert second is not None
        assert not torch.equal(first, second)


# Where the factors start


@pytest.mark.parametrize("options", [{}, {"group_size": 16}, {"symmetric": True}])
def test_searched_factors_start_nearer_to_the_target(bench: Bench, options: dict[str, Any]) -> None:
    # What is left of the error is the weights', and large enough for clipping to matter.
    options = {**options, "activation_bits": 16, "weight_bits": 3}
    losses = {
        recipe.lwc.initialization: mean_loss(bench.entered(recipe), bench.batches())
        for recipe in (replace(RECIPE, **options), replace(SEARCH, **options))
    }
    assert losses["search"] < 0.8 * losses["constant"]


def test_the_statistic_stream_does_not_depend_on_where_factors_start(bench: Bench) -> None:
    outputs = [bench.enter(bench.new_block(recipe))[0] for recipe in (RECIPE, SEARCH)]
    assert torch.equal(*outputs)


def test_a_search_that_was_interrupted_by_nothing_is_not_repeated(bench: Bench) -> None:
    """A restored block keeps its factors; a new one finds the same ones again."""
    first, restored, again = (bench.new_block(SEARCH) for _ in range(3))
    bench.enter(first)
    train(first, bench.batches())
    restored.load_state_dict(first.state_dict())
    bench.enter(restored)
    for ours, theirs in zip(first.parameters(), restored.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    bench.enter(again)
    expected = bench.entered(SEARCH)
    for ours, theirs in zip(again.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, torch.full_like(ours, INITIAL_LOGIT))


def test_a_sample_that_overflows_does_not_decide_where_factors_start(bench: Bench) -> None:
    stream = bench.stream.clone()
    stream[3, 0, 0] = float("inf")
    block = bench.new_block(SEARCH)
    bench.enter(block, samples=stream)
    assert all(torch.isfinite(parameter).all() for parameter in block.parameters())


def test_released_blocks_keep_their_factors_only(bench: Bench) -> None:
    block = bench.entered()
    block.release()
    assert block.quantized is None
    assert block.context == {}
    assert len(list(block.parameters())) == 2 * len(LINEARS)
    with pytest.raises(AssertionError, match="enter a block first"):
        block(bench.stream)
