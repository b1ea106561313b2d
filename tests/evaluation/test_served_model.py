"""``evaluate --endpoint``: a served model gets the numbers of the same model when it is loaded."""

import json
import math
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from duquant.evaluation.command import Evaluate
from duquant.quickstart import MODEL_DIRECTORY
from tests.chat_bench import write_chat_model
from tests.completions_server import CompletionsServer, completions_server
from tests.in_process import LIGHTNING_WARNINGS, write_text
from tests.task_files import write_task_files

pytestmark = LIGHTNING_WARNINGS
SUMS = """
task: sums
dataset_path: json
dataset_kwargs:
  data_files: {test: FILE}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6}
metric_list:
  - metric: exact_match
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_task_files(tmp_path_factory.mktemp("data"))
    write_text(directory / "text.txt")
    items = [{"question": f"def f{i}(", "answer": "x"} for i in range(3)]
    (directory / "sums.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (directory / "sums.yaml").write_text(SUMS.replace("FILE", str(directory / "sums.jsonl")))
    return directory


@pytest.fixture(scope="module")
def server() -> Iterator[CompletionsServer]:
    with completions_server(MODEL_DIRECTORY) as running:
        yield running


@pytest.fixture
def serving(
    server: CompletionsServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CompletionsServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.requests.clear()
    yield server
    server.root, server.max_length, server.scores_prompts = str(MODEL_DIRECTORY), 1024, True


def evaluate(output: Path, **options: Any) -> dict[str, Any]:
    Evaluate(output_dir=str(output), **options)()
    (file,) = (output / "results").iterdir()
    values: dict[str, Any] = json.loads(file.read_text())
    return values


def test_the_numbers_of_the_loaded_model(
    serving: CompletionsServer, data: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {
        "tasks": "arc_easy,lambada_openai,sums",
        "data_dir": str(data),
        "tasks_dir": str(data),
        "perplexity": {"c4_joined": str(data / "text.txt")},
        "sequence_length": 32,
        "stride": 16,
        "perplexity_windows": 5,
    }
    output = tmp_path / "served"
    found = evaluate(output, endpoint=serving.url, compare="quickstart", **asked)
    assert found["labels"] == ["full precision, served", "full precision"]
    assert set(found["results"]) == {"arc_easy", "lambada_openai", "sums", "perplexity_c4_joined"}
    for name, result in found["results"].items():
        loaded = found["compared_results"][name]
        assert result["num_items"] == loaded["num_items"]
        for label, metric in result["metrics"].items():
            value = loaded["metrics"][label]["value"]
            assert math.isclose(metric["value"], value, rel_tol=1e-4, abs_tol=1e-9), (name, label)
    first, second = (_log_likelihoods(output, kind) for kind in ("served", "precision"))
    assert first.keys() == second.keys() == {"arc_easy", "lambada_openai"}
    for name, rows in first.items():
        for row, expected in zip(rows, second[name], strict=True):
            assert row == pytest.approx(expected, abs=1e-3)
    assert max(len(request["prompt"]) for request in serving.requests) > 1
    count = len(serving.requests)
    evaluate(output, endpoint=serving.url, compare="quickstart", **asked)
    assert len(serving.requests) == count + 1, "only the probe: all parts are there"


def _log_likelihoods(output: Path, ending: str) -> dict[str, Any]:
    parts = [json.loads(file.read_text()) for file in (output / "parts").iterdir()]
    return {
        part["measured"]["name"]: part["measured"]["log_likelihoods"]
        for part in parts
        if part["settings"]["model"]["kind"].endswith(ending)
        and part["measured"]["log_likelihoods"]
    }


def test_a_model_elsewhere_needs_a_tokenizer(
    serving: CompletionsServer, data: Path, tmp_path: Path
) -> None:
    serving.root = "elsewhere/mine"
    asked = {"endpoint": serving.url, "tasks": "piqa", "data_dir": str(data)}
    with pytest.raises(
        ValueError, match=r"tokenizer of mine is not on this machine: .*--tokenizer"
    ):
        evaluate(tmp_path / "out", **asked)
    found = evaluate(tmp_path / "out", tokenizer="quickstart", **asked)
    assert found["labels"] == ["served"]
    assert found["evaluated"]["model"]["served"] == "mine"


def limited(server: CompletionsServer) -> None:
    server.max_length = 33


def silent(server: CompletionsServer) -> None:
    server.scores_prompts = False


@pytest.mark.parametrize(
    ("change", "options", "complaint"),
    [
        (limited, {"sequence_length": 33}, "takes 32 tokens of a prompt, as one more is generated"),
        (silent, {}, "holds no log-probabilities of every prompt's tokens"),
        (None, {"served_model": "other"}, "serves mine, not 'other'"),
        (None, {"dtype": "float32"}, "--dtype float32 is for a model that is loaded here"),
        (None, {"backend": "integer"}, "--backend integer is for"),
        (None, {"device": "cpu"}, "--device cpu is for"),
        (None, {"model": "quickstart"}, "give one of --model, --run, --config"),
        (None, {"ckpt_path": "last"}, "--ckpt_path belongs to a run"),
        (None, {"endpoint": None, "model": "x", "served_model": "y"}, "--served_model is a name"),
        (None, {"endpoint": "localhost"}, "endpoint is 'localhost'"),
    ],
)
def test_refusals(
    change: Callable[[CompletionsServer], None] | None,
    options: dict[str, Any],
    complaint: str,
    serving: CompletionsServer,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("duquant.evaluation.mt_bench.endpoint.LONGEST_DELAY", 0.0)
    if change is not None:
        change(serving)
    given = {
        "endpoint": serving.url,
        "perplexity": {"c4_joined": str(data / "text.txt")},
        **options,
    }
    with pytest.raises(ValueError, match=complaint) as refusal:
        evaluate(tmp_path / "out", **given)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model(
    serving: CompletionsServer, data: Path, tmp_path: Path
) -> None:
    other = write_chat_model(tmp_path / "other")
    file = other / "tokenizer.json"
    values = json.loads(file.read_text())
    vocabulary = values["model"]["vocab"]
    first, second = (key for key in vocabulary if key in ("q", "7"))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(values))
    serving.root = "elsewhere"
    asked = {"endpoint": serving.url, "tasks": "piqa", "data_dir": str(data)}
    with pytest.raises(ValueError, match="give the served model's own tokenizer as --tokenizer"):
        evaluate(tmp_path / "out", tokenizer=str(other), **asked)


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(ValueError, match="cannot be reached"):
            evaluate(tmp_path / "out", endpoint=url, tasks="piqa")
