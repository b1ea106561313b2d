"""The product on a second device, and what it asks of it: see :mod:`tests.emulated.device`.

A GPU's costs are counted, not timed. Their ceilings are in :mod:`tests.ceilings`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.assets import REPOSITORY
from tests.benchmarks import gpu_check
from tests.ceilings import (
    KERNELS_OF_A_SEARCH_STEP,
    KERNELS_OF_A_STEP,
    KERNELS_OF_A_TOKEN,
    LAUNCHES_OF_A_BLOCK,
    LAUNCHES_OF_A_CHUNK,
    LAUNCHES_OF_A_COLUMN,
    LAUNCHES_OF_A_STEP,
    LAUNCHES_OF_THE_ORIGINAL,
    MORE_LAUNCHES,
    UPLOADS_OF_A_TURN,
    WAITS_OF_A_BLOCK,
    WAITS_OF_A_SEARCH,
    WAITS_OF_A_TURN,
)
from tests.emulated.scenarios import RECIPES
from tests.forked_process import ForkedProcess
from tests.small_run import one_thread

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no place for devices written in Python",
)
LINES_OF_KERNELS = {
    *("packed_linears_all_bits", "packed_linear_kernel", "scaled_sums_kernel"),
    *("fake_quantization_kernels", "site_kernels"),
}
"""Lines of ``gpu_check`` about kernels that the device lacks; all but the first compare their
definitions on the device with those on the CPU."""


def run(name: str, folder: Path) -> Any:
    """The facts of a scenario, in a process of its own."""
    script = str(REPOSITORY / "tests" / "emulated" / "scenarios.py")
    process = ForkedProcess([script, name, str(folder)], one_thread())
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)


def test_the_device_refuses_and_counts(tmp_path: Path) -> None:
    facts = run("the_device", tmp_path)
    assert all(facts["refused"].values()), facts["refused"]
    for name in ("mixed", "mixed in place", "index"):
        assert "all tensors to be on the same device" in facts["refused"][name]
    assert set(facts["waits"].values()) == {1}, facts["waits"]
    assert set(facts["silent"].values()) == {0}, facts["silent"]
    assert facts["uploads"] == facts["kernels of a product"] == 1
    assert facts["same storage"] == [True, True, False]


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_is_calibrated_exported_loaded_and_writes(name: str, tmp_path: Path) -> None:
    facts = run(name, tmp_path)
    assert facts["same names"]
    assert facts["finite"]
    if name == "nothing_learns":
        assert facts["equal"]
    # A fused optimizer rounds otherwise; few weights lie so near to the middle of two codes.
    assert facts["least share of equal bytes"] > 0.95
    assert facts["exported"]
    assert facts["devices"] == ["emulated:0"]
    assert all(facts["tokens"].values()), facts["tokens"]
    for cache, kernels in facts["kernels per layer and token"].items():
        assert kernels <= KERNELS_OF_A_TOKEN[cache], (cache, kernels)
    assert facts["kernels of the original"] <= LAUNCHES_OF_THE_ORIGINAL
    more = facts["kernels with Triton"] - facts["kernels of the original"]
    assert 0 < more <= MORE_LAUNCHES[name]
    # Only transformers asks, once a token, whether all texts have ended; there are two layers.
    assert set(facts["waits per layer and token"].values()) == {0.5}


def test_a_model_runs_where_there_is_no_float64(tmp_path: Path) -> None:
    """Apple's MPS is such a device; calibration needs float64, and is refused there."""
    facts = run("without_float64", tmp_path)
    assert all(words == "the device has no torch.float64" for words in facts["refused"].values())
    for name, model in facts["models"].items():
        assert model["tokens"] == [True] * 4, name
        assert model["losses"] < 1e-4, "float32 sums in another order"
        assert model["agrees"], name


def test_a_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    facts = run("a_run", tmp_path)
    assert facts["statuses"] == [0, 2, 0]
    assert facts["streams"] == [["emulated"], ["emulated"], ["cpu"]]  # the last: preflight's
    assert facts["equal"]
    assert facts["perplexities"] == ["full_precision", "quantized"]
    assert facts["blocks"] == 2


def test_every_line_of_the_look_at_a_gpu_is_green(tmp_path: Path) -> None:
    lines = run("gpu_checks", tmp_path)
    assert list(lines) == gpu_check.ORDER
    assert not [line for line in lines.values() if not line["ok"]]
    lacking = {name for name, line in lines.items() if "not_applicable" in line}
    assert lacking == LINES_OF_KERNELS


def test_no_step_waits_for_the_device(tmp_path: Path) -> None:
    for recipe, epochs in run("steps", tmp_path).items():
        turn = "distillation" if recipe == "distillation" else "block"
        learning = [epoch for epoch in epochs if epoch["turn"] == turn]
        assert len(learning) == 3
        for epoch in learning:
            assert epoch["steps"] == 4
            assert epoch["waits"] == 0, epoch["waited_at"]
            assert epoch["uploads"] <= UPLOADS_OF_A_TURN[turn]
            assert epoch["unordered"] == {}, "a run that is repeated would end with other bits"
        assert learning[-1]["uploads"] == 0
        _, kernels, with_triton = [epoch["kernels"] / epoch["steps"] for epoch in learning]
        assert kernels <= KERNELS_OF_A_STEP[recipe], (recipe, kernels)
        assert with_triton <= LAUNCHES_OF_A_STEP[recipe], (recipe, with_triton)


def test_a_block_asks_no_more_where_nothing_learns(tmp_path: Path) -> None:
    facts = run("blocks", tmp_path)
    assert 0 < facts["nearest"]["kernels of a block"] <= LAUNCHES_OF_A_BLOCK, facts
    for rounding, asked in facts.items():
        assert 0 < asked["kernels of a chunk"] <= LAUNCHES_OF_A_CHUNK[rounding], asked
        assert asked["waits of a block"] <= WAITS_OF_A_BLOCK[rounding], asked


def test_gptq_launches_no_more_for_a_column(tmp_path: Path) -> None:
    assert 0 < run("columns", tmp_path)["kernels of a column"] <= LAUNCHES_OF_A_COLUMN


def test_no_step_of_a_rotation_search_waits_for_the_device(tmp_path: Path) -> None:
    facts = run("searches", tmp_path)
    assert all(each["equal"] for each in facts.values()), "as on the CPU"
    for selector, kernels in KERNELS_OF_A_SEARCH_STEP.items():
        for scope in ("shared", "per_block"):
            search = facts[f"{selector} {scope}"]
            assert search["waits"] == WAITS_OF_A_SEARCH[selector], search["waited_at"]
            assert search["uploads"] == 1, "the base or the matrix"
            assert search["kernels of a step"] == kernels
    once = facts["outlier shared"]["waits"]
    assert facts["equal rows"]["waits"] == once + 1, "it goes back"
    assert facts["four times as long"]["waits"] == once + 3
    assert facts["learned"]["waits"] == 2 * once


def test_a_pass_over_more_chunks_waits_no_more(tmp_path: Path) -> None:
    few, many = run("chunks", tmp_path)["waits"]
    assert many - few == 4, "embeddings are copied to the host, once a run"


def test_a_block_is_entered_and_finished_with_few_waits(tmp_path: Path) -> None:
    """As many in a block of any width and with any number of training steps."""
    for recipe, parts in run("turns", tmp_path).items():
        for part, (once, of_a_chunk) in WAITS_OF_A_TURN[recipe].items():
            found = parts[part]
            assert 0 < found["waits"] <= once, (recipe, part, found)
            assert found["more of a chunk"] <= of_a_chunk, (recipe, part, found)


def test_what_a_gpu_may_add_in_any_order_is_known(tmp_path: Path) -> None:
    facts = run("orders", tmp_path)
    assert all(facts["any order"].values()), facts["any order"]
    assert not any(facts["one order"].values()), facts["one order"]


def test_a_planted_sum_in_any_order_is_found(tmp_path: Path) -> None:
    (*_, epoch) = run("a_step_that_adds_in_any_order", tmp_path)["LWC"]
    ((place, count),) = epoch["unordered"].items()
    assert place.endswith("aten::index_add")
    assert count == epoch["steps"]


def test_a_planted_item_is_found(tmp_path: Path) -> None:
    (*_, epoch) = run("a_step_that_waits", tmp_path)["LWC"]
    assert epoch["waits"] == epoch["steps"]
    (place,) = epoch["waited_at"]
    assert "steps.py" in place


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    facts = run("a_step_that_is_not_finite", tmp_path)
    assert facts["skipped"] == [1, 0]
    assert facts["tensors"] > 14, "clip factors and their moments"
    assert facts["equal"]
