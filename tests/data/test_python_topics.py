"""The text that Python carries."""

import pytest

from duquant.data.python_topics import python_topics


def test_held_out_topics_are_not_in_the_training_text() -> None:
    train, held_out = python_topics("train"), python_topics("validation")
    assert len(train) > 40
    assert held_out
    training_text = "\n\n".join(train)
    for topic in held_out:
        assert topic.strip().partition("\n\n")[2] not in training_text


def test_the_split_is_the_same_every_time() -> None:
    assert python_topics("train") == python_topics("train")
    assert python_topics("validation") == python_topics("validation")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'test'"):
        python_topics("test")  # type: ignore[arg-type]
