"""A model's own tokenizer, without its limit on length: whole texts are tokenized at once."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from duquant.model.checkpoint import first_line


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a model directory.

    Raises:
        ValueError: if the directory has none that works, with the reason.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:
        files = [*directory.glob("tokenizer.*"), *directory.glob("vocab.*")]
        reason = first_line(error) if files else "there is no tokenizer.json"
        raise ValueError(
            f"{directory} has no usable tokenizer ({reason}): copy the files of the model's own "
            f"tokenizer there"
        ) from error
    tokenizer.model_max_length = 2**62
    return tokenizer


def tokenize(tokenizer: Any, text: str, *, add_special_tokens: bool) -> Tensor:
    """Token ids of a whole text, shape ``(n,)``."""
    return torch.tensor(tokenizer(text, add_special_tokens=add_special_tokens).input_ids)
