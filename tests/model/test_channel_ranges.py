"""Data that is not finite is named where it begins, and hides no other reason to stop."""

import pytest
import torch

from duquant.model.channel_ranges import observe_sites
from tests.model.test_surgery import Bench


@pytest.fixture
def spoilt() -> Bench:
    """A block whose MLP computes infinities."""
    bench = Bench("llama")
    bench.weight("mlp.up_proj").data[0] = torch.inf
    return bench


def test_the_site_is_named(spoilt: Bench) -> None:
    with pytest.raises(ValueError, match="channels of mlp_output are not finite"):
        spoilt.ranges()


def stop(bench: Bench, reason: BaseException) -> None:
    with observe_sites(bench.block):
        bench.run()
        raise reason


def test_a_refused_output_is_explained_by_its_site(spoilt: Bench) -> None:
    with pytest.raises(ValueError, match="channels of mlp_output are not finite"):
        stop(spoilt, ValueError("values of the block's output are not finite"))


def test_a_refusal_without_a_site_stays() -> None:
    with pytest.raises(ValueError, match="the output alone"):
        stop(Bench("llama"), ValueError("the output alone"))


def test_an_interrupt_is_an_interrupt(spoilt: Bench) -> None:
    with pytest.raises(KeyboardInterrupt):
        stop(spoilt, KeyboardInterrupt())
