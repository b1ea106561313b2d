"""The Python language reference as evaluation text, read from the running interpreter.

Perplexity needs text, and text usually means a download. CPython carries its own: `help("for")`
prints from `pydoc_data.topics`, one dictionary of some eighty chapters of the language reference
(about 450 kB). It is in every CPython, needs no network, and is English prose of one subject, so a
model of one million parameters can learn enough of it for quantization damage to show.

Two things to know when comparing numbers:

* The wording varies a little between CPython versions, though from 3.8 to 3.13 the same topics are
  held out. Compare perplexities that one interpreter measured, or name the version beside them.
* Topics quote each other: all of "exceptions" stands in "execmodel" too. A held-out topic whose
  body a training topic quotes whole would be text the model was trained on, so it is dropped. Six
  topics remain, and four fifths of their text is the reference of the string methods.
"""

from pydoc_data.topics import topics
from typing import Literal

Split = Literal["train", "validation"]

HELD_OUT_EVERY = 8
"""One topic in this many, in order of name, is not trained on."""


def python_topics(split: Split) -> list[str]:
    """Return the topics of one split, in order of their names.

    Args:
        split: "train" for seven topics in eight, "validation" for the held-out eighth without
            the topics that a training topic quotes whole.

    Returns:
        One string per topic, with its line breaks.

    Raises:
        ValueError: If `split` is neither "train" nor "validation".
    """
    if split not in ("train", "validation"):
        raise ValueError(f'split must be "train" or "validation", not {split!r}')
    ordered = [topics[name] for name in sorted(topics)]
    held_out = ordered[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    train = [text for text in ordered if text not in held_out]
    if split == "train":
        return train
    return [text for text in held_out if not any(_body(text) in other for other in train)]


def _body(topic: str) -> str:
    """Return a topic without its heading, whose underline depends on where it is quoted."""
    return topic.strip().partition("\n\n")[2]
