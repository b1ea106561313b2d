"""The tokenizer of a model directory, and whether it is the model's own."""

from pathlib import Path
from typing import Any

from duquant.model.checkpoint import first_line

SMALLEST_SHARE = 0.9
"""Models round their vocabulary up (Qwen2.5: 151,665 tokens in 151,936 rows), but never by much."""


def load_tokenizer(directory: Path) -> Any:
    """Read a tokenizer; it gets no length limit, texts are tokenized whole.

    Raises:
        ValueError: if the directory has none that works.
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


def require_matching_vocabulary(tokenizer: Any, vocab_size: int, source: object) -> None:
    """Refuse a tokenizer of another model, which would measure nonsense.

    Args:
        tokenizer: the tokenizer.
        vocab_size: rows of the model's embedding.
        source: what the message calls the tokenizer.

    Raises:
        ValueError: if it gives tokens that the model lacks, or knows far fewer than the model.
    """
    largest, known = max(tokenizer.get_vocab().values()), len(tokenizer)
    if largest >= vocab_size:
        raise ValueError(
            f"the tokenizer of {source} gives tokens up to {largest}, but the model knows "
            f"{vocab_size} tokens: they do not belong together"
        )
    if known < SMALLEST_SHARE * vocab_size:
        raise ValueError(
            f"the tokenizer of {source} knows {known} tokens, but the model {vocab_size}: they do "
            f"not belong together"
        )
