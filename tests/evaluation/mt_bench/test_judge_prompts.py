"""Prompts are found by FastChat's names, and a wrong one is reported before anybody is asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from duquant.evaluation.mt_bench.judge_prompts import (
    FIELDS,
    NAMES,
    OWN_PROMPTS,
    REFERENCES,
    load_judge_prompts,
)
from tests.chat_bench import read_lines, write_lines


def fastchat_prompts() -> list[dict[str, Any]]:
    """Our prompts under the names FastChat gives its own."""
    return [
        {**record, "name": record["name"].removeprefix("duquant-")}
        for record in read_lines(OWN_PROMPTS)
    ]


@pytest.mark.parametrize("mode", ["single", "pairwise"])
def test_own_prompts_show_everything_there_is(mode: Any) -> None:
    for (needs_reference, turn), prompt in load_judge_prompts(None, mode).items():
        assert prompt.name.startswith("duquant-"), "a judgment must tell whose prompt it answers"
        shown = {"ref_answer_1", "ref_answer_2"} if needs_reference else set()
        expected = FIELDS[mode, turn] | (shown if turn == 2 else shown - {"ref_answer_2"})
        assert all(f"{{{name}}}" in prompt.template for name in expected)
        assert ("[[7]]" if mode == "single" else "[[C]]") in prompt.system


def test_a_file_in_fastchats_format(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "prompts.jsonl", fastchat_prompts())
    assert load_judge_prompts(file, "single")[True, 2].name == "single-math-v1-multi-turn"
    assert load_judge_prompts(file, "pairwise")[False, 1].name == "pair-v2"
    assert set(NAMES.values()) == {"single-v1", "single-math-v1", "pair-v2", "pair-math-v1"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "other"}, "has no prompt single-v1"),
        ({"prompt_template": "{question} {answer_2}"}, "line 1: .*names {answer_2}"),
        ({"prompt_template": "{question"}, "line 1: prompt_template"),
        ({"prompt_template": "{question.turns}"}, "line 1: .*{question.turns}"),
        ({"system_prompt": None}, "line 1: system_prompt must be a text"),
        ({"output_format": "[[A]]"}, "line 1: output_format"),
    ],
)
def test_malformed_prompt(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    first, *rest = fastchat_prompts()
    file = write_lines(tmp_path / "prompts.jsonl", [{**first, **change}, *rest])
    with pytest.raises(ValueError, match=complaint):
        load_judge_prompts(file, "single")


def test_prompt_file_is_json_lines() -> None:
    names = [json.loads(line)["name"] for line in OWN_PROMPTS.read_text().splitlines()]
    assert len(set(names)) == 8
    assert {"ref_answer_1", "ref_answer_2"} == REFERENCES
