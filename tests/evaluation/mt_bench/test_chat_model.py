"""A model answers alike whatever happened before, with a packed cache if it is quantized."""

from pathlib import Path
from typing import Any

import pytest
import torch

from duquant.evaluation.loaded_model import ModelSource, find_device
from duquant.evaluation.mt_bench.chat_model import (
    ChatModel,
    find_chat_model,
)
from duquant.evaluation.mt_bench.chat_template import choose_template
from duquant.evaluation.mt_bench.questions import Question
from duquant.model.tokenizer import load_tokenizer
from duquant.nn.packed_cache import PackedCache
from tests.chat_bench import write_chat_model
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun

pytestmark = LIGHTNING_WARNINGS
DRAWN = Question(1, "writing", ("Hello.", "More."))
GREEDY = Question(2, "math", ("2 + 2?", "3 + 3?"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat") / "tiny")


def chat_with(directory: Path, max_new_tokens: int = 8) -> ChatModel:
    template = choose_template(load_tokenizer(directory), "mistral", "model")
    return ChatModel(
        ModelSource.find(str(directory)).read("float32", {"": "cpu"}), template, max_new_tokens
    )


def test_an_answer_depends_on_its_seed_alone(directory: Path) -> None:
    chat = chat_with(directory)
    state = torch.get_rng_state()
    first = chat.answer(DRAWN, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the random state of the process moved"
    chat.answer(GREEDY, seed=1)
    assert chat.answer(DRAWN, seed=5) == first
    assert chat.answer(DRAWN, seed=6) != first
    assert chat.answer(GREEDY, seed=1) == chat.answer(GREEDY, seed=2)


def test_greedy_answer_is_the_likeliest_token_every_time(directory: Path) -> None:
    chat = chat_with(directory)
    messages = [{"role": "user", "content": GREEDY.turns[0]}]
    tokens = prompt = chat.template.tokens(messages)
    with torch.no_grad():
        for _ in range(8):
            logits = chat.model(torch.tensor([tokens])).logits[0, -1]
            tokens = [*tokens, int(logits.argmax())]
    stop = chat.stop_tokens[0]
    produced = tokens[len(prompt) :]
    produced = produced[: produced.index(stop)] if stop in produced else produced
    tokenizer = chat.template.tokenizer
    assert chat.answer(GREEDY, 0)[0] == tokenizer.decode(produced, skip_special_tokens=True).strip()


def test_second_turn_sees_the_first(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, seen = chat_with(directory), []
    tokens = type(chat.template).tokens

    def spy(self: Any, messages: list[dict[str, str]]) -> list[int]:
        seen.append([dict(message) for message in messages])
        return tokens(self, messages)

    monkeypatch.setattr(type(chat.template), "tokens", spy)
    turns = chat.answer(DRAWN, 0)
    assert [message["content"] for message in seen[1]] == ["Hello.", turns[0], "More."]


def test_a_full_context_leaves_the_turn_empty(tmp_path: Path) -> None:
    chat = chat_with(write_chat_model(tmp_path, max_position_embeddings=40), 200)
    assert chat.answer(Question(1, "math", ("word " * 50, "?")), 0) == ["", ""]
    assert chat.turns_without_room == 2
    chat.answer(GREEDY, 0)  # the answer's length is cut to what is left: nothing raises


def test_quantized_model_answers_from_a_packed_cache(
    finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = find_chat_model(str(finished_run.output))
    assert directory == finished_run.output / "model"
    chat, caches = chat_with(directory), []
    generate = chat.model.generate

    def spy(*args: Any, **options: Any) -> Any:
        caches.append(options["past_key_values"])
        return generate(*args, **options)

    monkeypatch.setattr(chat.model, "generate", spy)
    packed = chat.answer(GREEDY, 0)
    assert [type(cache) for cache in caches] == [PackedCache, PackedCache]
    assert all(cache.num_bytes() > 0 for cache in caches)
    monkeypatch.setattr("duquant.evaluation.mt_bench.chat_model._packed_cache", lambda _: None)
    assert chat.answer(GREEDY, 0) == packed
    assert caches[-1] is None


def test_unusable_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no device nonsense"):
        find_device("nonsense")
    with pytest.raises(ValueError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)
