"""Two processes that share a calibration: what they exchange, and that they agree."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.block_events import BlockRecord
from callbacks.block_progression import BlockProgression
from callbacks.data_parallel import BlockParallel, require_even_shares
from callbacks.trainer_options import require_supported
from tests.in_process import (
    LIGHTNING_WARNINGS,
    LWC,
    NO_LWC,
    small_data,
    small_language_model,
    small_trainer,
    write_text,
)
from tests.process_pair import (
    EXACT_ACTIVATIONS,
    calibrate_learning_all,
    calibrate_with_nan,
    calibrate_without_lwc,
    perplexities,
    run_pair,
)
from tests.small_run import stored_tensors, write_small_model

pytestmark = LIGHTNING_WARNINGS
BLOCKS = 2
EPOCHS = EXACT_ACTIVATIONS["lwc"].epochs
Found = dict[str, Any]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("source"), blocks=BLOCKS)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def pair_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pair") / "run"


@pytest.fixture(scope="module")
def pair(source: Path, text: Path, pair_output: Path) -> list[Found]:
    return run_pair(source, text, pair_output)


# What is exchanged


def test_every_process_gets_the_same_numbers(pair: list[Found]) -> None:
    nan = float("nan")
    for rank, found in enumerate(pair):
        for reduction, expected in {
            "sum": [3.0, -1.0, nan],
            "mean": [1.5, -0.5, nan],
            "max": [2.0, 0.0, nan],
            "untouched": [1.0 + rank, -rank, nan if rank else 0.0],
        }.items():
            assert torch.equal(
                found[reduction].nan_to_num(77), torch.tensor(expected).nan_to_num(77)
            )


def test_a_disagreement_is_an_error_everywhere(pair: list[Found]) -> None:
    for found in pair:
        assert found["complaint"] == "process 1 of 2 differs from process 0: look for the reason"


# What is not a number on one


def test_a_nan_on_one_process_skips_the_step_on_all(
    pair: list[Found], pair_output: Path, source: Path, text: Path, tmp_path: Path
) -> None:
    """And the skipped step is as if it had not been, exactly as in one process."""
    alone = calibrate_with_nan(source, text, tmp_path)
    first, second = pair
    assert first["skipped_steps"] == second["skipped_steps"] == [0, EPOCHS]
    assert [int(block.skipped_steps) for block in alone.blocks] == [0, EPOCHS]  # type: ignore[arg-type]
    for ours, theirs in zip(first["factors"], second["factors"], strict=True):
        assert torch.equal(ours, theirs), "processes never part"
    # A gradient is added up in another order; Adam divides it by its own size, so a factor that
    # hardly matters may move otherwise. No integer of the model notices.
    expected = stored_tensors(tmp_path)
    for name, tensor in stored_tensors(pair_output).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    losses = [record.lwc_losses for record in BlockRecord.load_all(tmp_path, BLOCKS)]
    assert all(math.isfinite(loss) for curve in losses for loss in curve)
    torch.testing.assert_close(
        torch.tensor(first["losses"]), torch.tensor(losses), rtol=1e-5, atol=0
    )


def test_trained_transforms_stay_the_same_on_all(
    pair: list[Found], pair_output: Path, source: Path, text: Path, tmp_path: Path
) -> None:
    first, second = (found["learned"] for found in pair)
    assert len(first) > 2 * 8 * BLOCKS
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))
    calibrate_learning_all(source, text, tmp_path)
    together, alone = (
        BlockRecord.load_all(output, BLOCKS) for output in (pair_output / "learned", tmp_path)
    )
    for one, other in zip(together, alone, strict=True):
        # Gradients are added up in another order, which turns roundings, and training passes it on.
        assert one.lwc_losses == pytest.approx(other.lwc_losses, rel=0.2)
        assert one.lwc_losses[-1] < one.lwc_losses[0]


# Searching alone


def test_without_lwc_every_bit_is_that_of_one_process(
    pair: list[Found], pair_output: Path, source: Path, text: Path, tmp_path: Path
) -> None:
    calibrate_without_lwc(source, text, tmp_path)
    expected, tensors = stored_tensors(tmp_path), stored_tensors(pair_output / "without_lwc")
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name
    alone, together = (
        BlockRecord.load_all(output, BLOCKS) for output in (tmp_path, pair_output / "without_lwc")
    )
    for one, two in zip(alone, together, strict=True):
        assert one.relative_error == pytest.approx(two.relative_error, rel=1e-5)
        assert one.complaint == two.complaint != "", "both processes looked for the culprit"


# Measuring


@pytest.mark.parametrize("windows", [1, 3])
def test_perplexities_are_of_all_windows_once(
    pair: list[Found], pair_output: Path, source: Path, text: Path, windows: int
) -> None:
    """Also where there are fewer windows than processes, and where shares differ."""
    expected = perplexities(source, text, pair_output, windows)
    for found in pair:
        # float32 losses of windows that passed through the model in other company
        assert found[f"perplexity {windows}"] == pytest.approx(expected, rel=1e-6)


# What is refused


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_samples": 7}, r"data\.num_samples is 7; it must be a multiple of 2, the number of"),
        ({"batch_size": 1}, r"model\.lwc\.batch_size is 1; it must be a multiple of 2, the number"),
    ],
)
def test_uneven_shares_are_refused(
    source: Path, text: Path, tmp_path: Path, options: dict[str, int], complaint: str
) -> None:
    data, trainer = (
        small_data(source, text, **options),
        small_trainer(strategy=BlockParallel(), devices=2),
    )
    with pytest.raises(ValueError, match=complaint):
        require_even_shares(trainer, small_language_model(source, tmp_path, lwc=LWC), data)
    require_even_shares(small_trainer(), small_language_model(source, tmp_path, lwc=LWC), data)


def test_without_lwc_there_is_no_batch_to_share(source: Path, text: Path, tmp_path: Path) -> None:
    model = small_language_model(source, tmp_path, lwc=NO_LWC)
    trainer = small_trainer(strategy=BlockParallel(), devices=2)
    require_even_shares(trainer, model, small_data(source, text, batch_size=1))


@pytest.mark.parametrize("strategy", ["auto", "ddp_spawn", "ddp_find_unused_parameters_false"])
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_other_strategies_are_refused(strategy: str, stage: str) -> None:
    trainer = small_trainer(BlockProgression(), strategy=strategy, devices=2)
    with pytest.raises(ValueError, match=r"trainer\.strategy must be ddp with 2 processes"):
        require_supported(trainer, stage)
