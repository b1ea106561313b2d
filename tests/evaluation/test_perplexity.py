"""Perplexity block by block is perplexity: transformers' own loss of each window agrees."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from duquant.evaluation import perplexity
from duquant.evaluation.perplexity import Perplexity, stream_losses, window_losses
from duquant.model.block_forward import run_block
from duquant.model.decoder import Decoder
from tests.tiny_models import FAMILIES, VOCABULARY, token_ids, write_tiny_model

CPU = torch.device("cpu")
LENGTH = 24
MEASURED = ("llama-grouped", "llama-tied", "mistral-sliding", "qwen2-mixed-layers", "granite")


def windows(count: int = 5, *, seed: int = 0) -> Tensor:
    return token_ids(count, LENGTH, seed=seed)


@torch.no_grad()
def transformers_losses(model: Any, ids: Tensor) -> Tensor:
    """One window at a time through the whole model, scored by its own ``labels``."""
    losses = [model(input_ids=window[None], labels=window[None]).loss for window in ids]
    return torch.stack(losses).double()


def load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parametrize("family", MEASURED)
def test_equals_transformers(family: str, tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path, FAMILIES[family])
    decoder, ids = Decoder(str(directory), torch.float32), windows()
    losses = stream_losses(
        decoder, lambda index: [("plain", decoder.load_block(index))], ["plain"], ids, CPU
    )
    metric = Perplexity()
    metric.update(losses["plain"].double())
    expected = math.exp(float(transformers_losses(load(directory), ids).mean()))
    # float32 sums in another order; the mean and its exponential are in float64.
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), FAMILIES["llama-grouped"])


def halve(block: nn.Module) -> nn.Module:
    """A variant that can be told from the original: its MLP does half as much."""
    block.get_submodule("mlp.down_proj").get_parameter("weight").mul_(0.5)
    return block


def test_variants_go_their_own_ways(directory: Path) -> None:
    decoder, ids = Decoder(str(directory), torch.float32), windows()
    losses = stream_losses(
        decoder,
        lambda index: [
            ("plain", decoder.load_block(index)),
            ("halved", halve(decoder.load_block(index))),
        ],
        ["halved", "plain"],
        ids,
        CPU,
    )
    model = load(directory).requires_grad_(False)
    plain = transformers_losses(model, ids)
    for layer in model.model.layers:
        halve(layer)
    halved = transformers_losses(model, ids)
    assert list(losses) == ["halved", "plain"]
    assert (plain - halved).abs().max() > 1e-2, "the variants would not be told apart"
    torch.testing.assert_close(losses["plain"].double(), plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses["halved"].double(), halved, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens_at_once", [1, 2 * LENGTH, 3 * LENGTH + 1])
def test_chunks_change_nothing(
    directory: Path, tokens_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, ids = Decoder(str(directory), torch.float32), windows()

    def measure() -> Tensor:
        return stream_losses(
            decoder, lambda index: [("plain", decoder.load_block(index))], ["plain"], ids, CPU
        )["plain"]

    whole = measure()
    monkeypatch.setattr(perplexity, "TOKENS_AT_ONCE", tokens_at_once)
    # Matrix products of another height may add in another order.
    torch.testing.assert_close(measure(), whole, rtol=1e-5, atol=1e-5)


def test_every_block_is_loaded_once_and_reported(directory: Path) -> None:
    decoder = Decoder(str(directory), torch.float32)
    loaded: list[int] = []
    finished: list[int] = []

    def load_block(index: int) -> list[tuple[str, nn.Module]]:
        assert finished == list(range(index)), "one block after the other"
        loaded.append(index)
        return [("plain", decoder.load_block(index))]

    stream_losses(decoder, load_block, ["plain"], windows(), CPU, on_block=finished.append)
    assert loaded == finished == list(range(decoder.num_blocks))


def test_a_blocks_output_is_kept_on_the_cpu(directory: Path) -> None:
    decoder = Decoder(str(directory), torch.float32)
    context = decoder.contexts(LENGTH, CPU)[0]
    hidden = decoder.embed(windows(), CPU)
    block = decoder.load_block(0)
    output = run_block(block, hidden, context, CPU)
    assert output.device == CPU
    assert torch.equal(output, block(hidden, **context))


# The loss of a window


def test_window_losses_by_hand() -> None:
    logits = torch.randn(3, 7, VOCABULARY, generator=torch.Generator().manual_seed(0))
    ids = token_ids(3, 7)
    for number, loss in enumerate(window_losses(logits, ids)):
        probabilities = logits[number].double().exp()
        probabilities /= probabilities.sum(dim=-1, keepdim=True)
        by_hand = [-math.log(float(probabilities[t, ids[number, t + 1]])) for t in range(6)]
        assert float(loss) == pytest.approx(sum(by_hand) / 6, rel=1e-6)


def test_an_indifferent_model_has_a_perplexity_of_its_vocabulary() -> None:
    metric = Perplexity()
    metric.update(window_losses(torch.zeros(4, 9, VOCABULARY), token_ids(4, 9)).double())
    assert float(metric.compute()) == pytest.approx(VOCABULARY, rel=1e-6)


def test_logits_of_half_precision_are_scored_like_wide_ones() -> None:
    logits = torch.randn(2, 9, VOCABULARY).to(torch.bfloat16)
    losses = window_losses(logits, token_ids(2, 9))
    assert losses.dtype == torch.float64
    assert torch.equal(losses, window_losses(logits.float(), token_ids(2, 9)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 49_152, 152_000])
def test_losses_over_a_large_vocabulary_are_those_of_float64(
    vocabulary: int, dtype: torch.dtype
) -> None:
    generator, tokens = torch.Generator().manual_seed(0), 5
    ids = torch.randint(vocabulary, (2, tokens), generator=generator)
    normal = torch.randn(2, tokens, vocabulary, generator=generator)
    for spread, offset in ((0.0, 0.0), (1.0, 0.0), (3.0, -20.0), (3.0, 5.0), (9.0, 0.0)):
        logits = (normal * spread + offset).to(dtype)
        logits[:, 1, :7] += 12  # one confident prediction among indifferent ones
        scores = logits[:, :-1].double().log_softmax(dim=-1)
        expected = -scores.gather(-1, ids[:, 1:, None])[..., 0]
        for given in (logits, logits.transpose(0, 1).contiguous().transpose(0, 1)):
            for last in (1, 2, tokens - 1):
                losses = window_losses(given, ids, last)
                mean = expected[:, -last:].mean(dim=1)
                torch.testing.assert_close(losses, mean, rtol=0, atol=1e-6)


# The metric


def test_the_metric_is_the_exponential_of_the_mean_over_all_updates() -> None:
    metric = Perplexity()
    metric.update(torch.tensor([1.0, 2.0], dtype=torch.float64))
    metric.update(torch.tensor([6.0], dtype=torch.float64))
    assert float(metric.compute()) == pytest.approx(math.exp(3.0), rel=1e-12)
    assert metric.compute().dtype == torch.float64


def test_the_metric_adds_many_windows_without_losing_digits() -> None:
    """In float32 the sum of 2.3s would drift in the sixth digit."""
    metric = Perplexity(torch.device("cpu"))
    loss = torch.tensor([2.3], dtype=torch.float64)
    for _ in range(5_000):
        metric.update(loss)
    assert float(metric.compute()) == pytest.approx(math.exp(2.3), rel=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_model_shows_in_its_perplexity(bad: float) -> None:
    metric = Perplexity()
    metric.update(torch.tensor([1.0, bad], dtype=torch.float64))
    assert not math.isfinite(float(metric.compute()))


# A model that lies in memory whole, and overlapping windows


def test_a_whole_model_equals_an_independent_loop(directory: Path) -> None:
    model, ids = load(directory), windows()
    scored: list[int] = []
    losses = perplexity.model_losses(model, ids, on_windows=scored.append)
    expected = math.exp(float(transformers_losses(model, ids).mean()))
    assert math.exp(float(losses.double().mean())) == pytest.approx(expected, rel=1e-5)
    assert sum(scored) == len(ids)


@pytest.mark.parametrize("stride", [1, 7, LENGTH - 1, LENGTH])
def test_a_stride_scores_the_last_predictions(directory: Path, stride: int) -> None:
    """Windows in memory, streamed windows, and a loop over single predictions agree."""
    model, ids = load(directory), windows(3)
    decoder = Decoder(str(directory), torch.float32)
    expected = []
    with torch.no_grad():
        for window in ids:
            scores = model(window[None]).logits[0].double().log_softmax(dim=-1)
            last = range(max(1, LENGTH - stride), LENGTH)
            expected.append(-sum(scores[t - 1, window[t]] for t in last) / len(last))
    streamed = stream_losses(
        decoder,
        lambda index: [("plain", decoder.load_block(index))],
        ["plain"],
        ids,
        CPU,
        num_scored=stride,
    )["plain"]
    for losses in (perplexity.model_losses(model, ids, stride), streamed):
        torch.testing.assert_close(losses.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_how_windows_are_laid_stands_in_words() -> None:
    assert perplexity.describe_windows(8, 8).startswith("non-overlapping windows of 8 tokens")
    assert (
        perplexity.describe_windows(8, 2)
        == "windows of 8 tokens every 2, mean loss of their last 2"
    )


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e4])
def test_a_perplexity_that_is_no_number_is_refused(loss: float) -> None:
    metric = Perplexity()
    metric.update(torch.tensor([1.0, loss], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\(quantized, text\) is (nan|inf): the model"):
        metric.finite("quantized, text")


def test_one_that_is_a_number_is_given() -> None:
    metric = Perplexity()
    metric.update(torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert metric.finite("quantized, text") == pytest.approx(math.exp(2.0))
