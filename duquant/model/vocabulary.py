"""Whether a tokenizer is the model's own."""

from typing import Any

SMALLEST_SHARE = 0.9
"""Models round their vocabulary up (Qwen2.5: 151,665 tokens in 151,936 rows), but never by much."""


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
