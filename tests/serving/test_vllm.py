"""vLLM serves a model directory: its numbers are those of transformers, whatever shares a batch.

float32 sums come in another order there, so results differ by rounding, a few millionths; and where
that moves a value across the border between two of the 16 levels, by what one level makes, from
that token to the end of its sequence. The latter is rare, so sequences are short, and counted.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from duquant.config import ClippingConfig, FormatConfig, Recipe
from tests.quantized_directory import fitting_recipe, write_quantized
from tests.serving.served import (
    QWEN2,
    SERVED,
    Answer,
    answers,
    logprobs_in_transformers,
    needs_vllm,
    served,
)
from tests.tiny_models import token_ids

pytestmark = [needs_vllm, pytest.mark.filterwarnings("default")]
ROUNDING = 5e-5
"""What another order of float32 sums makes of a log-probability, at most."""
UNMOVED = 0.75
"""Share of sequences that have the same levels throughout."""
PROMPTS = [row[: 2 + index].tolist() for index, row in enumerate(token_ids(12))]
"""From 2 to 13 tokens."""


def recipe_of(family: str) -> Recipe:
    """Each family with something more that a recipe can ask for."""
    recipe = fitting_recipe({})
    smoothing, rotation, mxfp4 = recipe.smoothing, recipe.rotation, FormatConfig(format="mxfp4")
    changes: dict[str, Any] = {
        "llama-tied": {"rotation": replace(rotation, rotate_values=True)},
        "llama-biases": {
            "smoothing": replace(smoothing, subtract_mean=True, attention_output="query_channel"),
            "clipping": ClippingConfig(activations="search"),
        },
        "mistral-sliding": {"weights": mxfp4, "activations": mxfp4},
        "qwen3": {"weight_bits": 16},
    }
    return replace(recipe, **changes.get(family, {}))


def require_same(found: list[Answer], directory: Path, backend: str = "reference") -> None:
    """Log-probabilities are those of transformers, and every answer is the likeliest there."""
    expected = logprobs_in_transformers(directory, [answer.ids for answer in found], backend)
    same = 0
    for answer, (logprobs, likeliest) in zip(found, expected, strict=True):
        is_equal = (answer.logprobs - logprobs).abs().max() <= ROUNDING
        lacking = (likeliest - logprobs)[answer.num_prompt - 1 :]
        same += bool(is_equal and lacking.max() <= 2 * ROUNDING)
    assert same >= UNMOVED * len(found)


@pytest.mark.parametrize("family", SERVED)
def test_every_family_gives_the_numbers_of_transformers(family: str, tmp_path: Path) -> None:
    directory = write_quantized(tmp_path, SERVED[family], recipe_of(family)).path
    with served(directory) as engine:
        require_same(answers(engine, PROMPTS), directory)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for all tests of the engine."""
    return write_quantized(tmp_path_factory.mktemp("served"), QWEN2).path


@pytest.fixture(scope="module")
def engine(directory: Path) -> Iterator[Any]:
    """It multiplies integers, takes 16 tokens at a time and keeps prefixes."""
    options = {"max_num_batched_tokens": 16, "enable_prefix_caching": True}
    with served(directory, backend="integer", **options) as engine:
        yield engine


@pytest.fixture(scope="module")
def alone(engine: Any) -> list[Answer]:
    """Every prompt by itself, as the first that the engine sees."""
    return [answers(engine, [prompt])[0] for prompt in PROMPTS]


def test_integers_give_the_numbers_of_transformers(alone: list[Answer], directory: Path) -> None:
    require_same(alone, directory, "integer")


def test_a_batch_gives_what_each_gives_alone(engine: Any, alone: list[Answer]) -> None:
    require_equal(answers(engine, PROMPTS), alone)


def test_a_cached_prefix_gives_what_a_new_one_gives(engine: Any, directory: Path) -> None:
    prompts = token_ids(4, 40, seed=5).tolist()  # more than one block of the cache
    first, again = (answers(engine, prompts, scored=False) for _ in range(2))
    require_equal(again, first)


def require_equal(found: list[Answer], expected: list[Answer]) -> None:
    """Tokens are equal, and log-probabilities within rounding."""
    same = sum(
        one.ids == other.ids and bool((one.logprobs - other.logprobs).abs().max() <= ROUNDING)
        for one, other in zip(found, expected, strict=True)
    )
    assert same >= UNMOVED * len(found)
