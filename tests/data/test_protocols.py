"""Protocols: every named one against the published procedure, written out."""

import random

import pytest
import torch
from torch import Tensor

from duquant.data.protocols import (
    PROTOCOLS,
    WHOLE_TEXT,
    DrawnDocuments,
    JoinedText,
    find_protocol,
)


def tokenize(text: str) -> Tensor:
    """A token per character."""
    return torch.tensor([ord(character) for character in text])


def documents(count: int = 40) -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices("abcdef", k=5 + 3 * n)) for n in range(count)]


def test_a_corpus_is_measured_by_its_name_then_by_its_source() -> None:
    assert find_protocol("c4_drawn", "some.jsonl") is PROTOCOLS["c4_drawn"]
    assert find_protocol("c4_drawn", "c4") is PROTOCOLS["c4_drawn"]
    assert find_protocol("mine", "ptb") is PROTOCOLS["ptb"]
    assert find_protocol("mine", "mine.txt") is WHOLE_TEXT


def test_the_titles_tell_the_two_of_c4_apart() -> None:
    assert "1100 documents joined" in PROTOCOLS["c4_joined"].title
    assert "256 windows drawn with seed 20" in PROTOCOLS["c4_drawn"].title
    assert PROTOCOLS["c4"] is PROTOCOLS["c4_joined"]


@pytest.mark.parametrize("name", ["wikitext2", "ptb"])
def test_whole_corpora_keep_their_joint(name: str) -> None:
    windows = PROTOCOLS[name].windows(documents(), "\n\n", tokenize, 16, 16)
    text = tokenize("\n\n".join(documents()))
    assert torch.equal(windows, text[: len(text) // 16 * 16].view(-1, 16))


def test_c4_joined_is_the_first_documents_joined_by_spaces() -> None:
    many = [f"document {n}" for n in range(1200)]
    windows = PROTOCOLS["c4_joined"].windows(many, "\n\n", tokenize, 4, 4)
    text = tokenize(" ".join(many[:1100]))
    assert torch.equal(windows, text[: 256 * 4].view(256, 4)), "256 windows, as published"
    few = JoinedText("", " ", documents=2).windows(many, "\n\n", tokenize, 4, 4)
    assert few.numel() <= len("document 0 document 1")


def test_c4_drawn_draws_documents_and_places() -> None:
    """The published loop: draw a document until it is long enough, then draw a place in it."""
    texts, generator, expected = documents(), random.Random(20), []
    while len(expected) < 256:
        text = texts[generator.randint(0, len(texts) - 1)]
        if len(text) > 32:
            start = generator.randint(0, len(text) - 32 - 1)
            expected.append(text[start : start + 32])
    windows = PROTOCOLS["c4_drawn"].windows(texts, "", tokenize, 32, 32)
    assert ["".join(map(chr, window)) for window in windows.tolist()] == expected


def test_documents_that_are_all_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no document is longer than a window of 500 .*has 122"):
        PROTOCOLS["c4_drawn"].windows(documents(), "", tokenize, 500, 500)


def test_drawn_windows_have_no_stride() -> None:
    with pytest.raises(ValueError, match="have no stride"):
        DrawnDocuments("drawn", 2, 0).windows(documents(), "", tokenize, 16, 8)


def test_a_stride_lets_windows_overlap() -> None:
    windows = WHOLE_TEXT.windows(["abcdefgh"], "", tokenize, 4, 2)
    assert ["".join(map(chr, window)) for window in windows.tolist()] == ["abcd", "cdef", "efgh"]
