"""A model that chats: load it, and let it answer turn after turn.

A quantized model runs with the integers it has and keeps K and V in their few bits
(:class:`duquant.nn.packed_cache.PackedCache`); any other model runs as transformers runs it. Every
question starts from a seed of its own, so an answer does not depend on which questions were
answered before it, and a resumed run gives what an uninterrupted one would have given. As in
FastChat, all but temperature is as the model's ``generation_config.json`` has it.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from duquant.evaluation.mt_bench.chat_template import ChatTemplate, Message
from duquant.evaluation.mt_bench.questions import Question
from duquant.evaluation.quiet import quiet
from duquant.model.checkpoint import find_model_directory, first_line
from duquant.nn.packed_cache import PackedCache
from duquant.user_paths import user_path

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
GREEDY_BELOW = 1e-4
"""Temperatures below this choose the likeliest token."""


def find_chat_model(pretrained: str) -> Path:
    """Directory of a model, given it, a hub id, or a run that quantized one.

    Raises:
        ValueError: if there is none.
    """
    run = user_path(pretrained)
    if not (run / "config.json").is_file() and (run / "model" / "config.json").is_file():
        return run / "model"
    return find_model_directory(pretrained)


def load_model(directory: Path, dtype: Dtype, device: torch.device) -> Any:
    """Load a model for inference.

    Args:
        directory: full precision or quantized.
        dtype: what it computes in; "auto" is what it was stored in.
        device: where it runs.

    Raises:
        ValueError: if it cannot be loaded.
    """
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                directory, dtype=dtype, local_files_only=True, use_safetensors=True
            )
        return model.to(device).eval()
    except Exception as error:
        raise ValueError(f"{directory} cannot be loaded: {first_line(error)}") from error


class ChatModel:
    """Answers questions.

    Args:
        model: a causal language model of transformers.
        template: the chat template of its tokenizer.
        max_new_tokens: tokens an answer may have.
    """

    def __init__(self, model: Any, template: ChatTemplate, max_new_tokens: int) -> None:
        self.model = model
        self.template = template
        self.max_new_tokens = max_new_tokens
        self.context = int(getattr(model.config, "max_position_embeddings", None) or 2**31)
        self.stop_tokens = sorted({*template.stop_tokens(), *_configured_stops(model)})
        self.turns_without_room = 0

    def answer(self, question: Question, seed: int) -> list[str]:
        """Answer every turn of a question.

        Args:
            question: what is asked.
            seed: where sampling starts; the random state of the process stays as it was.

        Returns:
            One text per turn; an empty one where the conversation fills the whole context.
        """
        messages: list[Message] = []
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for turn in question.turns:
                messages.append({"role": "user", "content": turn})
                reply = self._reply(messages, question.temperature)
                messages.append({"role": "assistant", "content": reply})
        return [message["content"] for message in messages if message["role"] == "assistant"]

    @torch.inference_mode()
    def _reply(self, messages: list[Message], temperature: float) -> str:
        prompt = self.template.tokens(messages)
        room = min(self.max_new_tokens, self.context - len(prompt))
        if room < 1:
            self.turns_without_room += 1
            return ""
        tokens = torch.tensor([prompt], device=self.model.device)
        produced = self._generate(tokens, room, temperature)[0, len(prompt) :]
        text: str = self.template.tokenizer.decode(produced, skip_special_tokens=True)
        return text.strip()

    def _generate(self, tokens: Tensor, room: int, temperature: float) -> Tensor:
        sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature}
        if temperature < GREEDY_BELOW:
            sampling = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        stops = self.stop_tokens or None
        produced: Tensor = self.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            past_key_values=_packed_cache(self.model),
            max_new_tokens=room,
            eos_token_id=stops,
            pad_token_id=stops[0] if stops else None,
            **sampling,
        )
        return produced


def _packed_cache(model: Any) -> PackedCache | None:
    """An empty cache of a few bits, or none where K and V are not quantized to bytes."""
    try:
        return PackedCache(model)
    except ValueError:
        return None


def _configured_stops(model: Any) -> list[int]:
    configured = model.generation_config.eos_token_id
    if configured is None:
        return []
    return list(configured) if isinstance(configured, list) else [configured]
