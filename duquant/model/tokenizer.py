"""The tokenizer of a model directory, and whether it is the model's own."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from duquant.plain_text import in_one_line

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
        reason = in_one_line(error) if files else "there is no tokenizer.json"
        raise ValueError(
            f"{directory} has no usable tokenizer ({reason}): copy the files of the model's own "
            f"tokenizer there"
        ) from error
    tokenizer.model_max_length = 2**62
    return tokenizer


def require_matching_vocabulary(tokenizer: Any, vocab_size: int, source: object) -> None:
    """Refuse a tokenizer of another model, which would measure nonsense.

    A token that was added to the tokenizer and has no row of the embeddings (the [PAD] of many
    fine-tuned models) is no sign of that; :func:`require_known_tokens` refuses texts that reach it.

    Args:
        tokenizer: the tokenizer.
        vocab_size: rows of the model's embedding.
        source: what the message calls the tokenizer.

    Raises:
        ValueError: if it gives tokens that the model lacks, or knows far fewer than the model.
    """
    known, added = len(tokenizer), set(tokenizer.added_tokens_decoder)
    largest = max((i for i in tokenizer.get_vocab().values() if i not in added), default=-1)
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


def require_known_tokens(tokens: Iterable[int], vocab_size: int, tokenizer: Any) -> None:
    """Refuse a text that reaches a token without a row of the embeddings.

    Args:
        tokens: token ids of the text.
        vocab_size: rows of the model's embedding.
        tokenizer: what gave them.

    Raises:
        ValueError: naming the token.
    """
    token = max(tokens, default=-1)
    if token >= vocab_size:
        raise ValueError(
            f"the tokenizer gave token {token} ({tokenizer.convert_ids_to_tokens(token)!r}), but "
            f"the model knows {vocab_size} tokens: take it out of the text, or give the model's "
            f"own tokenizer"
        )


def pad_with_known_token(tokenizer: Any, vocab_size: int) -> None:
    """Let a tokenizer pad by a token that the model knows; padding is masked, so any will do."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is not None and pad >= vocab_size:
        known = end if end is not None and end < vocab_size else 0
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(known)
