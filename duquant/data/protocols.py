"""Perplexity protocols: which windows of a corpus are measured, under which name.

A perplexity can be compared only with one measured on the same windows. C4 is reported in two ways
that differ by several hundredths to several tenths, so every protocol has a name that stands beside
the number. A corpus is measured by the protocol of its own name (``c4_drawn``), else by that of its
source (``c4``), else whole:

============  ====================================================================================
wikitext2     all documents joined by blank lines, windows from the start to the end
ptb           all sentences joined by spaces, windows from the start to the end
c4, c4_joined the first 1100 documents joined by spaces, its first 256 windows
c4_drawn      256 windows, each from another draw of a document and of a place in it, seed 20
============  ====================================================================================

The names belong to texts of either kind: ``{c4_drawn: c4}`` takes C4 from the hub,
``{c4_drawn: my_c4.jsonl}`` from a file with one document per row.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from duquant.data.windows import consecutive_windows

Tokenize = Callable[[str], Tensor]
"""Token ids ``(n,)`` of a text."""
MOST_DRAWS = 1_000_000


@dataclass(frozen=True)
class JoinedText:
    """Windows laid through the joined documents.

    Attributes:
        title: the protocol in words.
        joint: text between two documents, or ``None`` for the corpus' own.
        documents: how many of them are joined, or ``None`` for all.
        most_windows: windows at most, or ``None`` for all.
    """

    title: str
    joint: str | None = None
    documents: int | None = None
    most_windows: int | None = None

    def windows(
        self, documents: list[str], joint: str, tokenize: Tokenize, length: int, stride: int
    ) -> Tensor:
        """Windows ``(count, length)``, beginning every ``stride`` tokens."""
        text = (joint if self.joint is None else self.joint).join(documents[: self.documents])
        return consecutive_windows(tokenize(text), length, self.most_windows, stride)


@dataclass(frozen=True)
class DrawnDocuments:
    """Windows at drawn places of drawn documents; documents that are too short are drawn again.

    Attributes:
        title: the protocol in words.
        count: number of windows.
        seed: of Python's generator, which draws the document first and then the place.
    """

    title: str
    count: int
    seed: int

    def windows(
        self, documents: list[str], joint: str, tokenize: Tokenize, length: int, stride: int
    ) -> Tensor:
        """Windows ``(count, length)``; there is nothing to join and nothing to stride over.

        Raises:
            ValueError: if no document is longer than a window, or a stride is asked for.
        """
        if stride != length:
            raise ValueError(f"{self.title}: drawn windows have no stride, leave it out")
        generator, tokens = random.Random(self.seed), dict[int, Tensor]()
        found: list[Tensor] = []
        for _ in range(MOST_DRAWS):
            number = generator.randint(0, len(documents) - 1)
            if number not in tokens:
                tokens[number] = tokenize(documents[number])
            last_start = tokens[number].numel() - length - 1
            if last_start >= 0:
                start = generator.randint(0, last_start)
                found.append(tokens[number][start : start + length])
                if len(found) == self.count:
                    return torch.stack(found)
            elif not found and len(tokens) == len(documents):
                break
        longest = max(int(ids.numel()) for ids in tokens.values())
        raise ValueError(
            f"{self.title}: no document is longer than a window of {length} tokens (the longest "
            f"has {longest}); take a smaller sequence_length"
        )


Protocol = JoinedText | DrawnDocuments
_C4_JOINED = JoinedText("C4, first 1100 documents joined, 256 windows", " ", 1100, 256)
PROTOCOLS: dict[str, Protocol] = {
    "wikitext2": JoinedText("WikiText-2"),
    "ptb": JoinedText("PTB"),
    "c4": _C4_JOINED,
    "c4_joined": _C4_JOINED,
    "c4_drawn": DrawnDocuments("C4, 256 windows drawn with seed 20", count=256, seed=20),
}
WHOLE_TEXT = JoinedText("whole text")


def find_protocol(name: str, source: str) -> Protocol:
    """Protocol of a corpus called ``name`` that comes from ``source``."""
    return PROTOCOLS.get(name) or PROTOCOLS.get(source) or WHOLE_TEXT
