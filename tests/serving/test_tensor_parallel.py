"""Two processes that share a model give the numbers that one gives."""

from pathlib import Path
from typing import Any

import pytest

from tests.quantized_directory import write_quantized
from tests.serving.served import answers, needs_vllm, served
from tests.tiny_models import token_ids

pytestmark = [needs_vllm, pytest.mark.filterwarnings("default")]
SHARED = {
    "model_type": "qwen2",
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Heads that two can share, with biases; of 32 channels, as vLLM's attention wants them."""
PROMPTS = [row[: 2 + index].tolist() for index, row in enumerate(token_ids(12))]


@pytest.mark.parametrize(
    ("backend", "exact"), [("reference", False), ("integer", False), ("integer", True)]
)
def test_two_processes_give_the_numbers_of_one(
    backend: str, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else a NUMA node for each
    directory = write_quantized(tmp_path, SHARED).path
    with served(directory, backend=backend, exact=exact) as engine:
        expected = answers(engine, PROMPTS)
    options: dict[str, Any] = {
        "tensor_parallel_size": 2,
        "distributed_executor_backend": "mp",
    }
    with served(directory, backend=backend, exact=exact, **options) as engine:
        found = answers(engine, PROMPTS)
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        # every output is one sum, in the same order, wherever it is computed
        assert (one.logprobs - other.logprobs).abs().max() <= 1e-6
