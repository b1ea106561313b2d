"""Which tokens are massive, and that they are found wherever the samples are."""

import pytest
import torch
from torch import Tensor

from duquant.model.massive_tokens import TokenPeaks, name_massive_tokens
from duquant.processes import ALONE, Processes

WINDOWS = torch.arange(40).view(4, 10) % 7


def site(seed: int = 0) -> Tensor:
    """A site's input ``(4, 10, 6)`` of ordinary size."""
    return torch.rand(4, 10, 6, generator=torch.Generator().manual_seed(seed)) + 0.5


def planted() -> Tensor:
    """Three massive tokens: one begins a window, and two are the same token of the vocabulary."""
    hidden = site()
    hidden[2, 0, 5] = -100.0  # place 20 is token 6
    hidden[0, 4, 1] = 40.0  # token 4
    hidden[1, 1, 3] = 60.0  # place 11 is token 4
    return hidden


def test_magnitude_place_channel_and_text() -> None:
    (found,) = name_massive_tokens({"mlp_output": TokenPeaks.of(planted())}, WINDOWS, str)
    magnitudes = planted().abs().amax(dim=-1).flatten()
    assert found == {
        "site": "mlp_output",
        "magnitude": 100.0,
        "typical": float(magnitudes.median()),
        "channel": 5,
        "count": 3,
        "at_start": 1,
        "tokens": [
            {"token_id": 6, "text": "6", "magnitude": 100.0, "position": 0},
            {"token_id": 4, "text": "4", "magnitude": 60.0, "position": 1},
        ],
    }


@pytest.mark.parametrize("hidden", [site(), torch.zeros(4, 10, 6)])
def test_a_site_without_massive_tokens_is_left_out(hidden: Tensor) -> None:
    assert name_massive_tokens({"mlp_output": TokenPeaks.of(hidden)}, WINDOWS, str) == []


def test_at_most_three_are_named() -> None:
    hidden = site()
    hidden[1, :6, 2] = torch.arange(6) + 50.0
    (found,) = name_massive_tokens({"mlp_input": TokenPeaks.of(hidden)}, WINDOWS, str)
    assert found["count"] == 6
    assert [token["magnitude"] for token in found["tokens"]] == [55.0, 54.0, 53.0]


@pytest.mark.parametrize("sizes", [[4], [1, 3], [3, 1], [1, 1, 1, 1]])
def test_chunks_are_as_good_as_the_whole(sizes: list[int]) -> None:
    whole = TokenPeaks.of(planted())
    first, *others = (TokenPeaks.of(chunk) for chunk in planted().split(sizes))
    for other in others:
        first = first.join(other)
    assert torch.equal(first.magnitudes, whole.magnitudes)
    assert torch.equal(first.channel, whole.channel)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_process_finds_those_of_all(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TokenPeaks.of(planted())
    shares = [TokenPeaks.of(Processes(rank, count).share(planted())) for rank in range(count)]
    if count > 1:
        gathered = iter([[s.magnitudes for s in shares], [s.channel for s in shares]])
        monkeypatch.setattr(Processes, "gather", lambda *_: next(gathered))
    found = shares[0].of_all(Processes(0, count) if count > 1 else ALONE)
    assert torch.equal(found.magnitudes, whole.magnitudes)
    assert torch.equal(found.channel, whole.channel)
