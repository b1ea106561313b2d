"""A choice that is measured on an accelerator: what it follows, when there is none, what it leaves.

By the emulated device's clock, which the runs move; its linears are 16 inputs wide or a little
more, and the rule prefers integers.
"""

from typing import Any

import pytest

from tests.emulated.test_emulated_device import pytestmark as pytestmark
from tests.emulated.test_emulated_device import run

PACKED, CUDA, REFERENCE = "integer by packed", "integer by cuda", "reference in float32"


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run("choices", tmp_path_factory.mktemp("choices"))


def test_the_measured_times_decide(facts: Any) -> None:
    assert facts["followed"] == {
        "the rule": PACKED,
        "not worth its memory": PACKED,
        "worth its memory": CUDA,
        "a reference not worth its memory": PACKED,
        "a reference worth its memory": REFERENCE,
    }


def test_a_candidate_that_fails_is_left_out_and_nothing_is_kept(facts: Any) -> None:
    expected = {"packed": CUDA, "reference": PACKED, "integers": REFERENCE, "all": REFERENCE}
    assert facts["failing"] == {
        name: {"words": words, "files": 0} for name, words in expected.items()
    }


def test_times_are_kept_for_a_device_and_never_trusted(facts: Any) -> None:
    kept = facts["kept"]
    assert kept["first"]["words"] == kept["again"]["words"] == PACKED
    assert kept["first"]["runs"] > kept["again"]["runs"] == 0
    assert set(kept["names"]) == {"an emulated device"}
    assert kept["damaged"] == {"words": REFERENCE, "runs": kept["first"]["runs"]}
    assert kept["another"] == {"words": PACKED, "runs": kept["first"]["runs"]}
    assert kept["files"] == 2 * len(kept["names"])


def test_nothing_is_measured_where_it_would_disturb(facts: Any) -> None:
    assert len(facts["not measured"]) == 9
    for name, found in facts["not measured"].items():
        assert found == {"runs": 0, "integer": True}, name


def test_what_takes_more_memory_than_is_left_is_not_taken(facts: Any) -> None:
    assert facts["short"] == {
        "enough": REFERENCE,
        "enough, asked again": REFERENCE,
        "short": PACKED,
        "short, asked again": PACKED,
    }


def test_measuring_changes_nothing_and_waits_once_for_a_kind(facts: Any) -> None:
    quiet = facts["quiet"]
    kinds = len(facts["kept"]["names"])
    assert quiet["runs"] > 0
    assert quiet["waits"] == quiet["tensors"] == 0
    assert quiet["synchronized"] == ["emulated:0"] * kinds
    assert quiet["random"]
    assert quiet["equal"]
