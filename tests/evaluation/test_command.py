"""``cli.py evaluate``: results, resuming, comparing, and every bad input in one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import cli
from duquant.evaluation import evaluation
from duquant.evaluation.command import Evaluate
from duquant.evaluation.silence import silence
from duquant.scores.statistics import Measurement
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun, write_text
from tests.small_run import run, write_small_model
from tests.task_files import write_mmlu_files, write_task_files
from tests.tiny_models import write_tiny_model

pytestmark = LIGHTNING_WARNINGS
Outcome = tuple[int, str, str]
Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_task_files(tmp_path_factory.mktemp("data"))
    write_mmlu_files(directory / "mmlu", count=1)
    write_text(directory / "text.txt")
    return directory


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run ``evaluate`` in this process: status, standard output, standard error."""

    def call(*options: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cli.py", "evaluate", *map(str, options)])
        capsys.readouterr()
        status: Any = 0
        try:
            cli.main()
        except SystemExit as stopped:
            status = stopped.code or 0
        printed = capsys.readouterr()
        return int(status), printed.out, printed.err

    return call


def results(output: Path) -> dict[str, Any]:
    """What the only results file says."""
    (file,) = (output / "results").iterdir()
    values: dict[str, Any] = json.loads(file.read_text())
    return values


def small(data: Path, output: Path, *extra: object) -> list[object]:
    return [
        "--model", "quickstart", "--tasks", "arc_easy,piqa", "--data_dir", data,
        "--output_dir", output, *extra,
    ]  # fmt: skip


def test_results_can_be_quoted(data: Path, tmp_path: Path, command: Command) -> None:
    output = tmp_path / "out"
    status, printed, told = command(
        *small(data, output, "--limit", "2", "--perplexity", f"{{c4_joined: {data}/text.txt}}"),
        *("--sequence_length", "32", "--stride", "16", "--perplexity_windows", "3"),
    )
    assert status == 0, told
    values = results(output)
    assert set(values["results"]) == {"arc_easy", "piqa", "perplexity_c4_joined"}
    metric = values["results"]["arc_easy"]["metrics"]["acc_norm"]
    assert {"value", "stderr", "higher_is_better"} <= metric.keys()
    assert values["results"]["arc_easy"]["version"] == "1.0"
    assert values["results"]["arc_easy"]["published_items"] == 2376
    assert values["results"]["piqa"]["num_items"] == 2
    assert {"lm_eval", "transformers", "torch", "duquant", "python"} <= values["versions"].keys()
    assert values["evaluated"]["parts"]["piqa"]["seed"] == 1234
    for words in ("1100 documents joined", "windows of 32 tokens every 16", "first 3"):
        assert words in values["protocols"]["c4_joined"]
        assert words in printed
    assert values["results"]["piqa"]["backend"] == "float32"
    assert "full precision: backend float32, KV cache none" in printed
    assert "the data have 3 items, the published set 2376" in printed
    assert "--limit 2: a taste" in printed
    assert "about 0:00 left" in told
    assert not list(output.rglob("*.partial"))


def test_results_as_one_document(data: Path, tmp_path: Path, command: Command) -> None:
    status, printed, told = command(*small(data, tmp_path / "out", "--limit", "1", "--json"))
    assert status == 0, told
    assert json.loads(printed) == results(tmp_path / "out")
    assert "arc_easy" in told, "the table is on standard error"
    assert "json" not in results(tmp_path / "out")["request"]


def test_finished_parts_are_not_repeated(
    data: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the second task, continued by the same command, then only shown again."""
    output, measured = tmp_path / "out", []
    measure = evaluation.measure_task

    def interrupted(lm: Any, name: str, *args: Any, **options: Any) -> Measurement:
        if name == "piqa" and not measured.count("piqa"):
            measured.append(name)
            raise KeyboardInterrupt
        measured.append(name)
        return measure(lm, name, *args, **options)

    monkeypatch.setattr(evaluation, "measure_task", interrupted)
    status, _, told = command(*small(data, output))
    assert status == 130
    assert "interrupted; the same command continues" in told
    assert not (output / "results").exists()
    status, first, told = command(*small(data, output))
    assert status == 0, told
    assert "1 of 2 parts are there already" in told
    assert measured == ["arc_easy", "piqa", "piqa"]
    assert command(*small(data, output))[:2] == (0, first)
    assert len(measured) == 3


def test_other_settings_lie_side_by_side_and_the_whole_replaces_a_taste(
    data: Path, tmp_path: Path, command: Command
) -> None:
    output = tmp_path / "out"

    def evaluate(*options: object) -> str:
        status, printed, told = command(*small(data, output, *options))
        assert status == 0, told
        return printed

    def files() -> list[str]:
        return sorted(file.name.rpartition("-")[0] for file in (output / "results").iterdir())

    evaluate("--limit", "1")
    assert files() == ["limit-1"]
    evaluate("--limit", "2", "--tasks", "winogrande")
    assert files() == ["limit-1", "limit-2"], "other tasks replace nothing"
    printed = evaluate("--limit", "1", "--seed", "5")
    assert files() == ["limit-1", "limit-1", "limit-2"], "another seed replaces nothing"
    assert "they replace" not in printed
    printed = evaluate("--compare", "quickstart")
    assert files() == ["all-items", "limit-1", "limit-2"]
    assert printed.count("they replace limit-1-") == 1
    assert "full precision, compared: backend float32" in printed
    evaluate("--limit", "1")
    assert files() == ["all-items", "limit-1", "limit-1", "limit-2"], "a taste replaces no whole"
    items = {
        (file.name.rpartition("-")[0], task): result["num_items"]
        for file in (output / "results").iterdir()
        for task, result in json.loads(file.read_text())["results"].items()
    }
    assert items[("all-items", "piqa")] == 3
    assert items[("limit-1", "piqa")] == 1
    assert items[("limit-2", "winogrande")] == 2


def test_a_further_task_does_not_repeat_the_others(
    data: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, measured = tmp_path / "out", []
    measure = evaluation.measure_task

    def watched(lm: Any, name: str, *args: Any, **options: Any) -> Measurement:
        measured.append(name)
        return measure(lm, name, *args, **options)

    monkeypatch.setattr(evaluation, "measure_task", watched)
    assert command(*small(data, output))[0] == 0
    assert command(*small(data, output, "--tasks", "arc_easy,winogrande,piqa"))[0] == 0
    assert measured == ["arc_easy", "piqa", "winogrande"]
    assert set(results(output)["results"]) == {"arc_easy", "piqa", "winogrande"}


DEFINITION = """
task: capitals
dataset_path: json
dataset_kwargs: {data_files: FILE}
test_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [Rome, Oslo]
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_an_edited_task_is_measured_again(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its definition or its data; the newer results take the place of the older ones."""
    output, measured = tmp_path / "out", []
    definition, items = tmp_path / "tasks" / "capitals.yaml", tmp_path / "items.jsonl"
    definition.parent.mkdir()
    measure = evaluation.measure_task

    def watched(lm: Any, name: str, *args: Any, **options: Any) -> Measurement:
        measured.append(name)
        return measure(lm, name, *args, **options)

    def evaluate(text: str, question: str) -> int:
        definition.write_text(text.replace("FILE", str(items)))
        items.write_text(json.dumps({"question": question, "gold": 0}) + "\n")
        options = ("--tasks", "capitals", "--tasks_dir", definition.parent)
        status, _, told = command("--model", "quickstart", *options, "--output_dir", output)
        assert status == 0, told
        assert "capitals" in results(output)["results"]
        return len(measured)

    monkeypatch.setattr(evaluation, "measure_task", watched)
    assert evaluate(DEFINITION, "Italy?") == 1
    assert evaluate(DEFINITION, "Italy?") == 1
    assert evaluate(DEFINITION.replace("Rome", "Roma"), "Italy?") == 2
    assert evaluate(DEFINITION.replace("Rome", "Roma"), "Italia?") == 3
    assert evaluate(DEFINITION, "Italy?") == 3, "what was measured before is still there"


def test_a_run_beside_its_original(
    data: Path, tmp_path: Path, command: Command, finished_run: FinishedRun
) -> None:
    output = tmp_path / "out"
    status, printed, told = command(
        *("-c", finished_run.output / "config.yaml", "--ckpt_path", "last"),
        *("--compare", finished_run.source, "--tasks", "piqa", "--data_dir", data),
        *("--perplexity", f"{{topics: {finished_run.text}}}", "--sequence_length", "32"),
        *("--perplexity_windows", "4", "--output_dir", output),
    )
    assert status == 0, told
    values = results(output)
    own = values["results"]["perplexity_topics"]["metrics"]["perplexity"]["value"]
    original = values["compared_results"]["perplexity_topics"]["metrics"]["perplexity"]["value"]
    expected = finished_run.model.perplexities["topics"]
    assert original == pytest.approx(expected["full_precision"], rel=1e-5)
    # Integers are rounded alike, but sums before them are not: 4 bits turn the last digit around.
    assert own == pytest.approx(expected["quantized"], rel=2e-2)
    apart = values["differences"]["perplexity_topics"]["perplexity"]
    assert apart["value"] == pytest.approx(own - original)
    assert apart["is_paired"]
    assert values["recipe"]["weight_bits"] == 4
    for words in ("W4A4", "full precision", "difference", "> error"):
        assert words in printed


def test_mmlu_by_category(data: Path, tmp_path: Path, command: Command) -> None:
    output = tmp_path / "out"
    status, printed, told = command(
        *("--model", "quickstart", "--mmlu", "--mmlu_data_dir", data / "mmlu"),
        *("--num_fewshot", "5", "--output_dir", output),
    )
    assert status == 0, told
    values = results(output)["results"]
    assert len(values) == 57 + 4 + 1
    assert values["mmlu"]["num_items"] == 57
    assert values["mmlu_stem"]["num_items"] == 19
    assert values["mmlu_anatomy"]["num_fewshot"] == 5
    subjects = [values[name]["metrics"]["acc"]["value"] for name in values if "stderr" not in name]
    assert values["mmlu"]["metrics"]["acc"]["value"] == pytest.approx(sum(subjects[:57]) / 57)
    assert "mmlu_humanities" in printed
    assert "mmlu: the data have 57 items, the published set 14042" in printed


BAD_OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "unknown task": (["--tasks", "arc_eazy"], ["arc_eazy", "arc_easy"]),
    "no tasks": (["--tasks", ""], ["--tasks, --mmlu or --perplexity"]),
    "no data folder": (["--data_dir", "nowhere"], ["no folder nowhere"]),
    "no MMLU folder": (["--mmlu", "--mmlu_data_dir", "nowhere"], ["no folder nowhere"]),
    "MMLU not asked for": (["--mmlu_data_dir", "."], ["add --mmlu"]),
    "no examples": (["--num_fewshot", "5"], ["num_fewshot is 5", "arc_easy have 0"]),
    "no items": (["--limit", "0"], ["limit is 0"]),
    "no batch": (["--batch_size", "0"], ["batch_size is 0"]),
    "batch in words": (["--batch_size", "large"], ["batch_size", "large"]),
    "missing model": (["--model", "./nowhere"], ["no model directory ./nowhere"]),
    "missing original": (["--compare", "./nowhere"], ["no model directory ./nowhere"]),
    "model and run": (["--run", "nowhere"], ["one of --model, --run, --config"]),
    "checkpoint of a model": (["--ckpt_path", "last"], ["--ckpt_path belongs to a run"]),
    "missing text": (["--perplexity", "{a: nowhere.txt}"], ["nowhere.txt"]),
    "not a number of tokens": (["--sequence_length", "long"], ["sequence_length", "long"]),
    "unknown device": (["--device", "abacus"], ["no device abacus"]),
    "unknown dtype": (["--dtype", "int4"], ["dtype", "int4"]),
    "unknown option": (["--colour", "blue"], ["colour"]),
}


def assert_refused(outcome: Outcome, words: list[str], output: Path) -> None:
    status, printed, told = outcome
    assert status == 2, printed
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
    for word in words:
        assert word in told
    assert not output.exists(), "nothing may be written"


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_option_is_one_line(case: str, data: Path, tmp_path: Path, command: Command) -> None:
    options, words = BAD_OPTIONS[case]
    output = tmp_path / "out"
    assert_refused(command(*small(data, output, *options)), words, output)


def test_texts_that_do_not_fit(data: Path, tmp_path: Path, command: Command) -> None:
    output, text = tmp_path / "out", f"{{mine: {data}/text.txt}}"
    for options, words in (
        (["--sequence_length", "5000"], ["sequence_length is 5000", "positions"]),
        (["--sequence_length", "16", "--stride", "17"], ["stride is 17", "at most 16"]),
    ):
        outcome = command(*small(data, output, "--perplexity", text, *options))
        assert_refused(outcome, words, output)


def test_damaged_files(data: Path, tmp_path: Path, command: Command) -> None:
    broken, output = write_task_files(tmp_path / "data"), tmp_path / "out"
    (broken / "piqa.jsonl").write_text('{"goal": "x"}\n')
    assert_refused(command(*small(broken, output)), ["piqa.jsonl, line 1"], output)
    (broken / "piqa.jsonl").unlink()
    assert_refused(command(*small(broken, output)), ["there is no", "piqa.jsonl"], output)
    mmlu = write_mmlu_files(broken / "mmlu")
    (mmlu / "dev" / "virology_dev.csv").unlink()
    options = ("--model", "quickstart", "--mmlu", "--mmlu_data_dir", mmlu, "--output_dir", output)
    assert_refused(command(*options), ["there is no", "virology_dev.csv"], output)
    (mmlu / "test" / "anatomy_test.csv").write_text("question,A,B\n")
    assert_refused(command(*options), ["anatomy_test.csv, line 1", "3 columns"], output)


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [(600, ["tokens up to", "knows 600"]), (5000, ["but the model 5000", "not belong together"])],
)
def test_a_tokenizer_of_another_model(
    vocabulary: int, words: list[str], data: Path, tmp_path: Path, command: Command
) -> None:
    other = write_tiny_model(
        tmp_path / "other",
        {"model_type": "llama", "vocab_size": vocabulary, "num_hidden_layers": 1},
    )
    output = tmp_path / "out"
    options = ("--model", other, "--tokenizer", "quickstart")
    assert_refused(command(*small(data, output, *options)), words, output)


def test_a_run_that_is_none_or_not_finished(data: Path, tmp_path: Path, command: Command) -> None:
    output, run = tmp_path / "out", tmp_path / "run"
    run.mkdir()
    options = ("--run", run, "--tasks", "piqa", "--data_dir", data, "--output_dir", output)
    assert_refused(command(*options), ["holds no run"], output)
    (run / "run.json").write_text("{}")
    assert_refused(command(*options), ["no finished model yet"], output)


def test_an_output_of_another_kind(data: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    status, _, told = command(*small(data, tmp_path))
    assert status == 2
    assert "not empty and no evaluation" in told
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_the_bar_is_not_silenced_with_the_libraries(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is drawn by a thread, while what is measured has standard error taken away."""
    consoles: list[Console] = []

    class Watched:
        def __init__(self, request: Evaluate, console: Console) -> None:
            consoles.append(console)

        def run(self, output: Console) -> dict[str, Any]:
            with silence():
                consoles[0].print("a bar")
                print("a library", file=sys.stderr)
            return {}

    monkeypatch.setattr(evaluation, "Evaluation", Watched)
    Evaluate(model="quickstart", tasks="piqa")()
    assert capsys.readouterr().err == "a bar\n"


def test_a_small_run_in_a_process_of_its_own(data: Path, tmp_path: Path) -> None:
    model = write_small_model(tmp_path / "model", blocks=1)
    done = run(
        *("evaluate", "--model", str(model), "--tasks", "winogrande,lambada_openai"),
        *("--data_dir", str(data), "--output_dir", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    assert "winogrande" in done.stdout
    assert set(results(tmp_path / "out")["results"]) == {"winogrande", "lambada_openai"}
