"""The Python language reference as evaluation text, read from the running interpreter.

Perplexity needs text, and text usually means a download. CPython carries its own: `help("for")`
prints from `pydoc_data.topics`, one dictionary of about eighty chapters of the language reference
(some 450 kB). It is in every CPython, needs no network, and is English prose of one subject, so a
model of one million parameters can learn it well enough for quantization damage to show.

Two things to know when comparing numbers:

* The wording varies a little between CPython versions: topics are corrected and added. Compare
  perplexities that one interpreter measured, or name the version beside the number.
* Topics are split by name, not by position. Sorted by name, every eighth topic is held out as
  "validation" and the rest are "train". Topics quote each other here and there (several chapters
  repeat a sentence about tracebacks), so held-out text is new but not entirely unfamiliar.
"""

from typing import Literal

from pydoc_data.topics import topics

Split = Literal["train", "validation"]

HELD_OUT_EVERY = 8
"""One topic in this many, in order of name, belongs to the validation split."""


def python_topics(split: Split) -> list[str]:
    """Return the topics of one split, in order of their names.

    Args:
        split: "train" for seven topics in eight, "validation" for the held-out rest.

    Returns:
        One string per topic, whole, with its line breaks.

    Raises:
        ValueError: If `split` is neither "train" nor "validation".
    """
    if split not in ("train", "validation"):
        raise ValueError(f'split must be "train" or "validation", not {split!r}')
    last = HELD_OUT_EVERY - 1
    return [
        topics[name]
        for position, name in enumerate(sorted(topics))
        if (position % HELD_OUT_EVERY == last) == (split == "validation")
    ]
