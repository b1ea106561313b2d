"""Conversations are written as the models were trained on them."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from duquant.evaluation.mt_bench.chat_template import (
    TEMPLATES,
    VICUNA_SYSTEM,
    ChatTemplate,
    choose_template,
)
from duquant.quickstart import MODEL_DIRECTORY

CONVERSATION = [
    {"role": "user", "content": "Q1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "Q2"},
]
LLAMA_3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
EXPECTED = {
    "vicuna_v1.1": f"<s>{VICUNA_SYSTEM} USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:",
    "llama-2": "<s>[INST] Q1 [/INST] A1 </s><s>[INST] Q2 [/INST]",
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "<s>[INST] Q1 [/INST] A1</s>[INST] Q2 [/INST]",
}
"""FastChat's prompts for this conversation, with the beginning its tokenizers add."""


@pytest.fixture
def tokenizer() -> Any:
    loaded = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    loaded.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    return loaded


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversation_as_fastchat_writes_it(name: Any, tokenizer: Any) -> None:
    tokenizer.add_tokens(LLAMA_3, special_tokens=True)
    template = choose_template(tokenizer, name, "model")
    assert tokenizer.decode(template.tokens(CONVERSATION)) == EXPECTED[name]


def test_tokenizers_own_template_comes_first(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    template = choose_template(tokenizer, "tokenizer", "model")
    assert tokenizer.decode(template.tokens(CONVERSATION)) == "<Q1><A1><Q2>"


def test_no_template_names_the_remedy(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"of model has no chat template.*vicuna_v1\.1\|llama-2"):
        choose_template(tokenizer, "tokenizer", "model")


def test_template_of_another_tokenizer(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"llama-3 does not fit model.*begin_of_text"):
        choose_template(tokenizer, "llama-3", "model")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"mistral does not fit model.*end of text"):
        choose_template(tokenizer, "mistral", "model")


def test_answers_end_at_the_end_of_a_turn(tokenizer: Any) -> None:
    tokenizer.add_tokens(LLAMA_3, special_tokens=True)
    end, turn = tokenizer.convert_tokens_to_ids(["</s>", "<|eot_id|>"])
    assert choose_template(tokenizer, "vicuna_v1.1", "model").stop_tokens() == [end]
    assert choose_template(tokenizer, "llama-3", "model").stop_tokens() == sorted([end, turn])


def test_a_template_that_fails_says_why(tokenizer: Any) -> None:
    template = ChatTemplate(tokenizer, "{{ raise_exception('no assistants, please') }}")
    with pytest.raises(ValueError, match="the chat template fails: no assistants"):
        template.tokens(CONVERSATION)
