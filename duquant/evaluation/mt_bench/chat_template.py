"""Chat templates: how a conversation becomes the text a model was trained on.

Most chat tokenizers bring a template, and it is used. Some models are older than that (Vicuna 1.5)
or lost it when they were converted: for them the formats of FastChat are here by name. They are
Jinja templates, as tokenizers store them::

    vicuna_v1.1   <s>SYSTEM USER: q ASSISTANT: a</s>USER: q ASSISTANT:
    llama-2       <s>[INST] q [/INST] a </s><s>[INST] q [/INST]
    llama-3       <|begin_of_text|><|start_header_id|>user<|end_header_id|>⏎⏎q<|eot_id|>…
    mistral       <s>[INST] q [/INST] a</s>[INST] q [/INST]

A text in a wrong format is still answered, only worse, and nothing would tell; so there is no
default for tokenizers without a template.
"""

from dataclasses import dataclass
from typing import Any, Literal

from duquant.plain_text import in_one_line

TemplateName = Literal["tokenizer", "vicuna_v1.1", "llama-2", "llama-3", "mistral"]
Message = dict[str, str]
"""``role`` ("user" or "assistant") and ``content``."""

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
"""What Vicuna was fine-tuned with; part of its format."""


def _conversation(start: str, user: str, assistant: str, end: str = "") -> str:
    said_by_user = "{% if message.role == 'user' %}"
    turn = f"{said_by_user}{user}{{% else %}}{assistant}{{% endif %}}"
    return f"{start}{{% for message in messages %}}{turn}{{% endfor %}}{end}"


TEMPLATES = {
    "vicuna_v1.1": _conversation(
        "{{ bos_token }}" + VICUNA_SYSTEM + " ",
        "USER: {{ message.content }} ASSISTANT:",
        " {{ message.content }}{{ eos_token }}",
    ),
    "llama-2": _conversation(
        "",
        "{{ bos_token }}[INST] {{ message.content }} [/INST]",
        " {{ message.content }} {{ eos_token }}",
    ),
    "llama-3": _conversation(
        "<|begin_of_text|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}",  # Jinja drops a last \\n
    ),
    "mistral": _conversation(
        "{{ bos_token }}",
        "[INST] {{ message.content }} [/INST]",
        " {{ message.content }}{{ eos_token }}",
    ),
}
NEEDED_TOKENS = {
    "llama-3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
"""Tokens without which a template would be spelled out letter by letter."""
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>")
"""Tokens that end an answer without being the tokenizer's end of text."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template that fits a tokenizer.

    Attributes:
        tokenizer: the tokenizer.
        source: the Jinja template.
    """

    tokenizer: Any
    source: str

    def tokens(self, messages: list[Message]) -> list[int]:
        """Token ids of a conversation up to where the assistant speaks next.

        Raises:
            ValueError: if the template does not accept the conversation.
        """
        try:
            encoded = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.source,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
            )
        except Exception as error:
            raise ValueError(f"the chat template fails: {in_one_line(error)}") from error
        return [int(token) for token in encoded["input_ids"]]

    def stop_tokens(self) -> list[int]:
        """Tokens that end an answer: the end of text, and an end of turn the template writes."""
        ends = [token for token in END_OF_TURN if token in self.source]
        tokens = [self.tokenizer.convert_tokens_to_ids(token) for token in ends]
        known = {t for t in tokens if t is not None and t != self.tokenizer.unk_token_id}
        if self.tokenizer.eos_token_id is not None:
            known.add(self.tokenizer.eos_token_id)
        return sorted(known)


def choose_template(tokenizer: Any, name: TemplateName, model: str) -> ChatTemplate:
    """The tokenizer's own template, or one of ours.

    Args:
        tokenizer: the model's tokenizer.
        name: "tokenizer", or a key of :data:`TEMPLATES`.
        model: what to call the model in an error.

    Raises:
        ValueError: if the tokenizer has no template, or lacks tokens that the chosen one needs.
    """
    if name == "tokenizer":
        source = tokenizer.chat_template
        if isinstance(source, dict):
            source = source.get("default")
        if not source:
            raise ValueError(
                f"the tokenizer of {model} has no chat template; choose the format the model was "
                f"trained with: --chat_template {'|'.join(TEMPLATES)}"
            )
        return ChatTemplate(tokenizer, source)
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in NEEDED_TOKENS.get(name, ()) if token not in vocabulary]
    if "eos_token" in TEMPLATES[name] and tokenizer.eos_token is None:
        missing.append("an end of text")
    if missing:
        raise ValueError(
            f"--chat_template {name} does not fit {model}: its tokenizer lacks {missing[0]}"
        )
    return ChatTemplate(tokenizer, TEMPLATES[name])
