"""Streams that lie on the host, on the emulated device: the same bits, and no copy waited for.

Copies are as late there as marks allow, or in random orders (:mod:`tests.emulated.queues`). That a
GPU keeps its marks, and what time that saves, only a GPU can show.
"""

from pathlib import Path

import pytest
import torch

from tests.emulated.test_emulated_device import run

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no place for devices written in Python",
)
MARKS = {"nothing learns": 7, "augmented": 25, "everything": 21}
"""Waits of a block for a buffer that was filled an item before: three chunks, six batches, a file.

Before, each chunk and each part of a batch was a copy that the host waited for.
"""


def test_copies_are_right_in_any_order(tmp_path: Path) -> None:
    facts = run("copies_in_any_order", tmp_path)
    assert facts["product"] == facts["orders"]
    assert len(facts["mistakes"]) == 6
    assert all(right < 0.9 * facts["orders"] for right in facts["mistakes"].values()), facts


def test_streams_on_the_host_give_the_same_bits_without_more_waits(tmp_path: Path) -> None:
    facts = run("streams_on_the_host", tmp_path)
    for name, most in MARKS.items():
        device, host = (facts[name]["of a block"][place] for place in ("device", "host"))
        assert facts[name]["equal"], name
        assert host["waits"] <= device["waits"]
        assert host["uploads"] <= device["uploads"] + 2, "of the block's error: inputs and targets"
        assert 0 < host["marks"] <= most
        assert device["marks"] == 1, "the block's file"


def test_no_step_waits_for_streams_on_the_host(tmp_path: Path) -> None:
    for recipe, epochs in run("steps_from_the_host", tmp_path).items():
        learning = [epoch for epoch in epochs if epoch["steps"] == 4]
        assert len(learning) > 1
        for epoch in learning:
            assert epoch["waits"] == 0, (recipe, epoch["waited_at"])
            assert 0 < epoch["marks"] <= epoch["steps"]
        assert learning[-1]["uploads"] == 0, recipe


def test_streams_of_the_device_are_written_beside_what_it_computes(tmp_path: Path) -> None:
    facts = run("streams_to_files", tmp_path)
    assert facts["equal"]
    assert facts["waits"] == 0
    assert facts["marks"] == 4, "pieces of two streams"
