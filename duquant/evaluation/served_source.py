"""A model that is evaluated where it is served, behind an OpenAI-compatible endpoint.

Tokens are made here, so the tokenizer must be the model's own. It is read from the directory that
the server loaded the model from, where that is on this machine, or from ``--tokenizer``. The same
directory tells which model it is: results are kept under its weights. Of a server elsewhere only
the model's name is known, and results are kept under that.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from duquant.evaluation.loaded_model import ModelSource
from duquant.evaluation.mt_bench.credentials import key_from_environment
from duquant.evaluation.mt_bench.endpoint import ChatEndpoint
from duquant.evaluation.mt_bench.request_policy import RequestPolicy
from duquant.evaluation.mt_bench.served_model import ServedModel, find_served_model
from duquant.model.checkpoint import find_model_directory
from duquant.model.tokenizer import load_tokenizer
from duquant.plain_text import plain

LIMITS = RequestPolicy(timeout=1800.0, max_bytes=2**28, temperature=None, max_tokens=None)
"""Log-probabilities of long prompts take a while, and are long themselves."""
OPTIONS = (
    "--served_model, and whether the server gives log-probabilities of prompts (echo with "
    "logprobs), as vllm serve does"
)
"""What to check where a request is refused."""


@dataclass(frozen=True)
class ServedSource:
    """A served model with its tokenizer.

    Attributes:
        endpoint: the server, asked for this model.
        model: what the server says of it.
        tokenizer: its tokenizer.
        local: its directory, if that is on this machine.
    """

    endpoint: ChatEndpoint
    model: ServedModel
    tokenizer: Any
    local: ModelSource | None = None

    @classmethod
    def find(
        cls, url: str, served_model: str | None = None, tokenizer: str | None = None
    ) -> "ServedSource":
        """Ask a server for its model, and look for the tokenizer.

        Args:
            url: base address of the server.
            served_model: the model's name there; by default the only one.
            tokenizer: directory or hub id of the tokenizer.

        Raises:
            ValueError: if the server cannot be reached or serves no such model, or there is no
                tokenizer.
        """
        client = ChatEndpoint(url, "", key_from_environment("none"), LIMITS, options=OPTIONS)
        model = find_served_model(client, served_model)
        client = replace(client, model=model.name)
        if (Path(model.root) / "config.json").is_file():
            local = ModelSource.find(model.root, tokenizer)
            return cls(client, model, local.tokenizer, local)
        if tokenizer is None:
            raise ValueError(
                f"the tokenizer of {plain(model.name)} is not on this machine: give --tokenizer, "
                f"the model's directory or hub id"
            )
        return cls(client, model, load_tokenizer(find_model_directory(tokenizer)))

    @property
    def name(self) -> str:
        """What the server calls it."""
        return self.model.name

    @property
    def recipe(self) -> dict[str, Any] | None:
        """Recipe of a quantized model, where it is known."""
        return None if self.local is None else self.local.recipe

    @property
    def vocab_size(self) -> int:
        """Tokens that the model knows."""
        return len(self.tokenizer) if self.local is None else self.local.vocab_size

    @property
    def label(self) -> str:
        """For tables: what it is, if that is known, and that it is served."""
        return "served" if self.local is None else f"{self.local.label}, served"

    @property
    def max_length(self) -> int:
        """Tokens of a prompt: a server generates at least one more, and needs the room for it."""
        if self.model.max_length is not None:
            return self.model.max_length - 1
        return 2047 if self.local is None else self.local.max_length - 1

    def description(self) -> dict[str, Any]:
        """What decides its numbers, for fingerprints."""
        if self.local is not None:
            return {**self.local.description(), "kind": self.label}
        return {"served": self.name, "vocabulary": len(self.tokenizer), "kind": self.label}
