"""How the prompts of tasks are put: as plain text, or as a conversation by a chat template.

lm-eval can wrap every prompt into the chat template of the model's tokenizer, few-shot examples as
turns of the conversation or within one message, and put a system instruction before them. All of
that changes numbers, so it belongs to what decides them, and stands beside them.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from duquant.plain_text import in_one_line

MARKER = "the instruction"


@dataclass(frozen=True)
class Prompting:
    """How prompts are put.

    Args:
        apply_chat_template: by the tokenizer's chat template.
        fewshot_as_multiturn: few-shot examples are turns of the conversation.
        system_instruction: text before everything else.
    """

    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None

    def require(self, tokenizer: Any, name: str) -> None:
        """Check that a tokenizer can do it.

        Args:
            tokenizer: the tokenizer.
            name: what to call the model in an error.

        Raises:
            ValueError: if its chat template is missing, fails, or has no place for an instruction.
        """
        if not self.apply_chat_template:
            return
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {name} has no chat template: leave --apply_chat_template out, "
                f"or give a --tokenizer that has one"
            )
        try:
            render(tokenizer, with_instruction=False)
        except Exception as error:
            raise ValueError(f"the chat template of {name} fails: {in_one_line(error)}") from error
        if self.system_instruction is not None and not takes_instruction(tokenizer):
            raise ValueError(
                f"the chat template of {name} has no place for a system message: leave "
                f"--system_instruction out"
            )

    def settings(self, tokenizer: Any) -> dict[str, Any]:
        """What decides numbers; nothing where prompts are plain text."""
        decisive: dict[str, Any] = {}
        if self.apply_chat_template:
            template = [tokenizer.get_chat_template(), tokenizer.special_tokens_map]
            text = json.dumps(template, sort_keys=True, ensure_ascii=False, default=str)
            decisive["chat_template"] = hashlib.sha256(text.encode()).hexdigest()[:16]
            decisive["fewshot_as_multiturn"] = self.fewshot_as_multiturn
        if self.system_instruction is not None:
            decisive["system_instruction"] = self.system_instruction
        return decisive

    def notes(self, tokenizers: Iterable[Any], tasks: Iterable[Any]) -> list[str]:
        """The same in words, for reports.

        Args:
            tokenizers: of every model.
            tasks: lm-eval's tasks.
        """
        said = []
        if self.apply_chat_template:
            examples = "turns" if self.fewshot_as_multiturn else "one message"
            said.append(
                f"prompts by the tokenizer's chat template, few-shot examples as {examples}"
            )
            described = any(task.config.description for task in tasks)
            if described and not all(takes_instruction(each) for each in tokenizers):
                said.append(
                    "the chat template has no place for a system message: lm-eval leaves the "
                    "descriptions of tasks out"
                )
        if self.system_instruction is not None:
            text = json.dumps(self.system_instruction, ensure_ascii=False)
            said.append(f"system instruction {text}")
        return said


def takes_instruction(tokenizer: Any) -> bool:
    """Whether a chat template shows what a system message says."""
    try:
        return MARKER in render(tokenizer, with_instruction=True)
    except Exception:  # templates refuse by raising whatever they like
        return False


def render(tokenizer: Any, *, with_instruction: bool) -> str:
    """A short conversation in a tokenizer's chat template."""
    instruction = [{"role": "system", "content": MARKER}] if with_instruction else []
    messages = [*instruction, {"role": "user", "content": "a question"}]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text
