"""Chat templates in tasks: what the model is asked, what decides a number, what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from duquant.evaluation.command import Evaluate
from duquant.evaluation.evaluation import Evaluation
from duquant.evaluation.harness import EvaluatedModel, measure_task
from duquant.evaluation.loaded_model import ModelSource
from duquant.evaluation.prompting import Prompting
from duquant.evaluation.task_list import find_tasks
from duquant.quickstart import MODEL_DIRECTORY
from tests.in_process import LIGHTNING_WARNINGS
from tests.small_run import write_small_model
from tests.task_files import write_task_files

pytestmark = LIGHTNING_WARNINGS
TURNS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
END = "{% if add_generation_prompt %}[assistant] {% endif %}"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
IGNORES = "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}{% endfor %}"
GOOD = TURNS + END
FAILING = {
    "none": (None, "has no chat template"),
    "empty": ("", "has no chat template"),
    "syntax": ("{% for m in messages %}", "fails: "),
    "raising": ("{{ raise_exception('never\nagain') }}", "fails: never"),
    "names": ({"tool_use": GOOD}, "fails: "),
    "undefined": ("{{ messages.first.second }}", "fails: "),
}
SILENT = {"refuses a system message": REFUSES + GOOD, "ignores it": IGNORES + END}
Written = Callable[[Any], Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """A tokenizer with a chat template, as a directory."""

    def write(template: Any) -> Path:
        directory = tmp_path / "tokenizer"
        shutil.rmtree(directory, ignore_errors=True)
        tokenizer = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(directory)
        shutil.copy(MODEL_DIRECTORY / "config.json", directory)
        return directory

    return write


def tokenizer(template: Any) -> Any:
    loaded = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    loaded.chat_template = template
    return loaded


DEFINITION = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}}}
test_split: test
fewshot_split: test
description: "Name it."
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["Rome", "Oslo"]
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""


@dataclass
class Interview:
    """A small model and a task, and what the one is asked in the other."""

    source: ModelSource
    model: EvaluatedModel
    task: Any

    def asked(self, prompting: Prompting, num_fewshot: int) -> list[tuple[str, str]]:
        """Context and continuation of every request."""
        seen: list[tuple[str, str]] = []

        def spy(requests: list[Any], *_: Any, **__: Any) -> list[tuple[float, bool]]:
            seen.extend(texts for texts, _, _ in requests)
            return [(0.0, False)] * len(requests)

        self.model._loglikelihood_tokens = spy  # type: ignore[method-assign]
        measure_task(
            self.model, "capitals", self.task, num_fewshot=num_fewshot, prompting=prompting
        )
        return seen


@pytest.fixture(scope="module")
def interview(tmp_path_factory: pytest.TempPathFactory) -> Interview:
    folder = tmp_path_factory.mktemp("interview")
    rows = [{"question": name, "gold": n % 2} for n, name in enumerate(["Italy?", "Norway?"])]
    items = folder / "items.jsonl"
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "capitals.yaml").write_text(DEFINITION.format(items=items))
    task = find_tasks(["capitals"], tasks_dir=folder, num_fewshot=0).tasks["capitals"]
    source = ModelSource.find(str(write_small_model(folder / "model", blocks=1)))
    source.tokenizer.chat_template = GOOD
    model = EvaluatedModel(source, source.load("float32", "cpu", "auto"))
    return Interview(source, model, task)


def test_prompts_are_conversations(interview: Interview) -> None:
    chat = Prompting(apply_chat_template=True, fewshot_as_multiturn=True)
    assert interview.asked(chat, 0)[0] == (
        "[system] Name it.\n[user] Italy?\n[assistant] ",
        "Rome",
    )
    as_turns = interview.asked(chat, 1)[0][0]
    assert as_turns.count("[user]") == 2
    assert "[assistant] Oslo\n[user] Italy?\n[assistant] " in as_turns
    in_one = interview.asked(Prompting(apply_chat_template=True), 1)[0][0]
    assert in_one.count("[user]") == 1
    assert in_one.endswith("Italy?\n[assistant] ")
    assert "[user]" not in interview.asked(Prompting(), 0)[0][0]


def test_an_instruction_comes_first(interview: Interview) -> None:
    for prompting, start in (
        (Prompting(system_instruction="Be brief."), "Be brief."),
        (Prompting(True, True, "Be brief."), "[system] Be brief."),
    ):
        assert all(context.startswith(start) for context, _ in interview.asked(prompting, 0))


def test_every_setting_is_part_of_the_key() -> None:
    good, other = tokenizer(GOOD), tokenizer(TURNS + "=>")
    bos = tokenizer(GOOD)
    bos.add_special_tokens({"bos_token": "<unk>"})
    ways = [
        Prompting().settings(good),
        Prompting(True).settings(good),
        Prompting(True, True).settings(good),
        Prompting(True, True, "a").settings(good),
        Prompting(True, True, "b").settings(good),
        Prompting(False, False, "a").settings(good),
        Prompting(True).settings(other),
        Prompting(True).settings(bos),
    ]
    assert ways[0] == {}, "plain prompts are what they were"
    assert len({json.dumps(way) for way in ways}) == len(ways)
    assert Prompting().settings(other) == {}


@pytest.mark.parametrize("kind", FAILING)
def test_a_template_that_does_not_work_is_refused(
    kind: str, written: Written, tmp_path: Path
) -> None:
    template, message = FAILING[kind]
    source = ModelSource.find(str(MODEL_DIRECTORY), str(written(template)))
    with pytest.raises(ValueError, match=message) as refused:
        Prompting(True).require(source.tokenizer, "it")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", SILENT)
def test_an_instruction_is_not_dropped_silently(kind: str) -> None:
    silent = tokenizer(SILENT[kind])
    Prompting(True).require(silent, "it")
    with pytest.raises(ValueError, match="no place for a system message"):
        Prompting(True, system_instruction="Be brief.").require(silent, "it")
    Prompting(True, system_instruction="Be brief.").require(tokenizer(GOOD), "it")


def test_reports_say_how_prompts_are_put(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = write_task_files(tmp_path / "data"), tmp_path / "out"
    options: dict[str, Any] = {
        "model": "quickstart",
        "tokenizer": str(written(GOOD)),
        "tasks": "arc_easy",
        "data_dir": str(data),
        "output_dir": str(output),
        "limit": 2,
    }
    Evaluate(**options)()
    Evaluate(**options, apply_chat_template=True, system_instruction="One\nword.")()
    assert len(list((output / "parts").iterdir())) == 2, "neither is taken for the other"
    printed = capsys.readouterr().out
    said = [
        "prompts by the tokenizer's chat template, few-shot examples as turns",
        'system instruction "One\\nword."',
    ]
    notes = [json.loads(file.read_text())["notes"] for file in (output / "results").iterdir()]
    assert sorted(all(line in each for line in said) for each in notes) == [False, True]
    for line in said:
        assert printed.count(line) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "piqa", "fewshot_as_multiturn": True}, "needs --apply_chat_template"),
        ({"tasks": "piqa", "fewshot_as_multiturn": False}, "needs --apply_chat_template"),
        ({"perplexity": {"a": "b"}, "apply_chat_template": True}, "for tasks: give --tasks"),
        ({"perplexity": {"a": "b"}, "system_instruction": "x"}, "for tasks: give --tasks"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluate(model="quickstart", **options)


def test_a_model_without_a_template_is_refused_before_any_work(tmp_path: Path) -> None:
    data = write_task_files(tmp_path / "data")
    request = Evaluate(
        model="quickstart", tasks="piqa", data_dir=str(data), apply_chat_template=True
    )
    with pytest.raises(ValueError, match="the tokenizer of quickstart has no chat template"):
        Evaluation(request, None)  # type: ignore[arg-type]


def test_descriptions_that_a_template_leaves_out_are_mentioned() -> None:
    class Task:
        class config:
            description = "Questions about ice."

    chat = Prompting(True)
    assert len(chat.notes([tokenizer(GOOD)], [Task()])) == 1
    assert "leaves the descriptions" in chat.notes([tokenizer(SILENT["ignores it"])], [Task()])[1]
