"""The exact mode gives the numbers of transformers at every token, read and written.

What is left lies behind the last block, some 1e-6: the head's products and the logarithm of a sum.
No rounding to 4 bits is turned over anywhere, so there is a bound for every token and none for a
share of them. transformers reads a prompt whole, or in chunks of the same size, and then token by
token through its cache, and so does vLLM here.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from duquant.export.hugging_face import set_execution
from tests.quantized_directory import write_quantized
from tests.serving.served import QWEN2, SERVED, Answer, answers, needs_vllm, served
from tests.serving.test_vllm import recipe_of
from tests.tiny_models import SLIDING_WINDOW, token_ids

pytestmark = [needs_vllm, pytest.mark.filterwarnings("default")]
SMALL_HEADS: Mapping[str, Any] = {"model_type": "llama", "head_dim": 16}
"""vLLM's own attention on processors takes none of 16 channels."""
EXACT: Mapping[str, Mapping[str, Any]] = {**SERVED, "qwen2": QWEN2, "small-heads": SMALL_HEADS}
BOUND = 1e-5
"""Of a difference of log-probabilities; 1.5e-6 was found."""
NUM_TOKENS = 8
PROMPTS = [token_ids(1, length, seed=length)[0].tolist() for length in (2, 3, 7, 8, 9, 24, 40)]
"""Shorter and longer than the window of a model that has one."""


@torch.no_grad()
def in_transformers(
    directory: Path, prompts: Sequence[Sequence[int]], backend: str, chunk: int = 64
) -> list[Answer]:
    """Greedy answers through the cache, prompts taken in by ``chunk`` tokens at a time."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    set_execution(model, backend)  # type: ignore[arg-type]
    found = []
    for prompt in prompts:
        ids, logprobs, cache = list(prompt), [], None
        for start in range(0, len(prompt), chunk):
            part = torch.tensor([prompt[start : start + chunk]], device="cpu")
            output = model(part, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logprobs.append(output.logits[0].log_softmax(-1))
        for _ in range(NUM_TOKENS - 1):
            ids.append(int(logprobs[-1][-1].argmax()))
            output = model(
                torch.tensor([ids[-1:]], device="cpu"), past_key_values=cache, use_cache=True
            )
            logprobs.append(output.logits[0].log_softmax(-1))
        ids.append(int(logprobs[-1][-1].argmax()))
        rows = torch.cat(logprobs)
        following = torch.tensor(ids[1:], device="cpu").unsqueeze(1)
        found.append(Answer(ids, rows.gather(1, following)[:, 0], len(prompt)))
    return found


def require_same(found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    """Tokens are equal, and every log-probability within the bound."""
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        apart = (one.logprobs - other.logprobs[-len(one.logprobs) :]).abs()
        assert apart.max() <= BOUND


def each_alone(engine: Any, prompts: Sequence[Sequence[int]], *, scored: bool) -> list[Answer]:
    """Answers to one prompt after the other."""
    return [answers(engine, [prompt], NUM_TOKENS, scored=scored)[0] for prompt in prompts]


@pytest.mark.parametrize(
    ("family", "backend"),
    [
        *((family, "reference") for family in EXACT),
        ("qwen2", "integer"),
        ("small-heads", "integer"),
    ],
)
def test_every_token_of_every_family(family: str, backend: str, tmp_path: Path) -> None:
    directory = write_quantized(tmp_path, EXACT[family], recipe_of(family)).path
    with served(directory, backend=backend, exact=True) as engine:
        found = each_alone(engine, PROMPTS, scored=True)
    require_same(found, in_transformers(directory, PROMPTS, backend))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for tests of the engine, with a window of 8 tokens."""
    options = {**SERVED["mistral-sliding"], "sliding_window": SLIDING_WINDOW}
    return write_quantized(tmp_path_factory.mktemp("exact"), options).path


@pytest.fixture(scope="module")
def engine(directory: Path) -> Iterator[Any]:
    """It takes 16 tokens at a time and keeps prefixes."""
    options = {"max_num_batched_tokens": 16, "enable_prefix_caching": True}
    with served(directory, exact=True, **options) as engine:
        yield engine


def test_a_prompt_in_chunks_is_one_in_chunks_in_transformers(engine: Any, directory: Path) -> None:
    expected = in_transformers(directory, PROMPTS, "reference", chunk=16)
    require_same(each_alone(engine, PROMPTS, scored=True), expected)


def test_a_cached_prefix_gives_what_a_new_one_gives(engine: Any) -> None:
    prompts = token_ids(2, 40, seed=5).tolist()  # more than one block of the cache
    first, again = (each_alone(engine, prompts, scored=False) for _ in range(2))
    require_same(again, first)


def test_small_heads_are_served_without_the_exact_mode(tmp_path: Path) -> None:
    directory = write_quantized(tmp_path, SMALL_HEADS).path
    with served(directory) as engine:
        found = each_alone(engine, PROMPTS[:4], scored=True)
    for one, other in zip(found, in_transformers(directory, PROMPTS[:4], "reference"), strict=True):
        # norms are vLLM's, and their last bits may turn a rounding over
        assert (one.logprobs - other.logprobs).abs().median() <= BOUND
