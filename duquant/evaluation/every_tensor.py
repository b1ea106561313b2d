"""A model's tensors and those stored must be the same, by what transformers says of its loading.

It fills a tensor that is missing with random numbers and leaves out one that it does not know, and
only warns of both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMPLAINTS = {
    "missing_keys": "the weights lack {}, which would be drawn at random",
    "mismatched_keys": "{} has another shape than config.json asks for",
    "unexpected_keys": "the weights hold {}, for which config.json has no place",
}
"""What is wrong with names under a key of transformers' ``loading_info``."""


def require_every_tensor(directory: Path, found: Mapping[str, Any], tied: bool) -> None:
    """Refuse what transformers fills at random or leaves out.

    Args:
        directory: the model's.
        found: transformers' ``loading_info``.
        tied: whether the head is the embeddings.

    Raises:
        ValueError: naming the first such tensor.
    """
    for kind, complaint in COMPLAINTS.items():
        names = sorted(k if isinstance(k, str) else k[0] for k in found.get(kind) or ())
        wrong = [name for name in names if not _is_derived(name, tied)]
        if wrong:
            raise ValueError(
                f"{directory}: {complaint.format(wrong[0])} ({len(wrong)} such tensors): "
                f"fetch or save the model again"
            )


def _is_derived(name: str, tied: bool) -> bool:
    """Whether a tensor is computed or a copy, so that it may be stored or not."""
    return name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")
