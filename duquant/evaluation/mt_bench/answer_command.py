"""``mtbench answer``: its signature is its options.

A model answers that is loaded here, or one that a server serves. Everything that can be wrong is
found before the first question: files, chat template, key, endpoint. Every answer is written when
it is there, so the same command continues.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from duquant.compute_device import find_device
from duquant.evaluation.loaded_model import ModelSource
from duquant.evaluation.local_items import file_digest
from duquant.evaluation.mt_bench.answering import (
    Chat,
    answer_questions,
    answered,
    begin,
    require_same_questions,
)
from duquant.evaluation.mt_bench.bench_directory import BenchDirectory
from duquant.evaluation.mt_bench.chat_model import ChatModel, find_chat_model
from duquant.evaluation.mt_bench.chat_template import ChatTemplate, TemplateName, choose_template
from duquant.evaluation.mt_bench.credentials import key_from_environment
from duquant.evaluation.mt_bench.endpoint import ChatEndpoint
from duquant.evaluation.mt_bench.questions import Question, load_questions
from duquant.evaluation.mt_bench.request_policy import RequestLimits, RequestPolicy
from duquant.evaluation.mt_bench.run_scores import remember_run
from duquant.evaluation.mt_bench.served_chat import OPTIONS, SERVED, ServedChat
from duquant.evaluation.mt_bench.served_model import find_served_model
from duquant.evaluation.options import Dtype
from duquant.model.tokenizer import require_known_tokens
from duquant.run_description import CONTENT
from duquant.run_lock import locked
from duquant.terminal import say

PATIENCE = RequestLimits(timeout=600.0)
"""Answers are long, and a server answers several at a time."""


@dataclass(frozen=True)
class _Answerer:
    """Who answers, checked but not loaded.

    Attributes:
        name: what it is called in answers.
        settings: which model it is, and how it is asked.
        load: makes it ready.
        directory: of the model, if it is here.
        parallel: questions at a time.
    """

    name: str
    settings: dict[str, Any]
    load: Callable[[], Chat]
    directory: Path | None = None
    parallel: int = 1


def answer(
    questions: Path,
    pretrained: str | None = None,
    endpoint: str | None = None,
    served_model: str | None = None,
    output_dir: Path = Path("runs/mt_bench"),
    model_id: str | None = None,
    chat_template: TemplateName = "tokenizer",
    max_new_tokens: int = 1024,
    seed: int = 0,
    limit: int | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    parallel: int = 8,
    request: RequestLimits = PATIENCE,
) -> None:
    """Let a model answer the questions, two turns each; the same command continues a stopped run.

    Args:
        questions: FastChat's question.jsonl.
        pretrained: a quantized or full-precision model directory, a run directory, or a hub id.
        endpoint: instead of a model that is loaded, the base address of an OpenAI-compatible server
            that serves one, as vllm serve does: http://localhost:8000/v1. A key, where it asks for
            one, is read from the environment variable OPENAI_API_KEY.
        served_model: the model's name at the endpoint; by default the only one it serves.
        output_dir: where answers and judgments are kept, in FastChat's layout.
        model_id: name of the model in answers and tables; by default its directory's.
        chat_template: the tokenizer's own, or a format of FastChat by name; an endpoint uses its
            model's own.
        max_new_tokens: tokens an answer may have.
        seed: sampling starts from this plus the question's number.
        limit: answer only the first questions.
        dtype: what a loaded model computes in; auto is what it is stored in.
        device: where a loaded model goes: auto (a GPU if there is one), cpu, cuda, cuda:1, ...
        parallel: questions at a time that an endpoint is asked.
        request: how an endpoint is asked.

    Raises:
        ValueError: if anything is missing or does not fit, before the first question.
    """
    for option, value in {"max_new_tokens": max_new_tokens, "parallel": parallel}.items():
        if value < 1:
            raise ValueError(f"{option} is {value}; at least 1 is needed")
    require_one_source(pretrained, endpoint, served_model)
    asked = load_questions(questions, limit)
    require_same_questions(BenchDirectory(output_dir), questions)
    how = {"max_new_tokens": max_new_tokens, "seed": seed, "questions": file_digest(questions)}
    if pretrained is not None:
        answerer = _loaded(pretrained, asked, how, model_id, chat_template, dtype, device)
    else:
        require_decided_by_server(chat_template=chat_template, dtype=dtype, device=device)
        client = ChatEndpoint(str(endpoint), "", key_from_environment("none"), options=OPTIONS)
        client = replace(client, policy=RequestPolicy(**asdict(request), temperature=None))
        answerer = _served(client, served_model, how, model_id, parallel)
    _answer_all(answerer, asked, BenchDirectory(output_dir), questions)


def _answer_all(
    answerer: _Answerer, asked: list[Question], bench: BenchDirectory, questions: Path
) -> None:
    name, settings = answerer.name, answerer.settings
    done = answered(bench, name, settings)
    if all(question.question_id in done for question in asked):
        say(f"{name} has answered all {len(asked)} questions: {bench.answers(name)}")
        return
    with locked(bench.path):
        done = answered(bench, name, settings)  # nobody adds to them any more
        chat = answerer.load()
        begin(bench, name, settings, questions)
        if answerer.directory is not None:
            remember_run(bench, name, answerer.directory)
        answer_questions(chat, asked, bench, name, settings["seed"], done, answerer.parallel)
    if isinstance(chat, ChatModel) and chat.turns_without_room:
        say(f"{chat.turns_without_room} turns are empty: no room in {chat.context} positions")
    say(f"answers of {name}: {bench.answers(name)}")


def _loaded(
    pretrained: str,
    asked: list[Question],
    how: dict[str, Any],
    model_id: str | None,
    chat_template: TemplateName,
    dtype: Dtype,
    device: str,
) -> _Answerer:
    """A model that is loaded here."""
    place, directory = find_device(device), find_chat_model(pretrained)
    name, source = _model_name(model_id, directory.resolve()), ModelSource.find(str(directory))
    template = choose_template(source.tokenizer, chat_template, pretrained)
    _require_known_turns(asked, template, source)
    settings = {
        **_identity(source),
        "tokenizer": file_digest(*sorted(directory.glob("*.json"))),
        "chat_template": template.source,
        "dtype": dtype,
        **how,
    }

    def load() -> ChatModel:
        return ChatModel(source.read(dtype, {"": place}), template, how["max_new_tokens"])

    return _Answerer(name, settings, load, directory)


def _served(
    client: ChatEndpoint,
    served_model: str | None,
    how: dict[str, Any],
    model_id: str | None,
    parallel: int,
) -> _Answerer:
    """A model behind an endpoint; which server it was, or at which port, decides nothing."""
    found = find_served_model(client, served_model)
    policy = replace(client.policy, max_tokens=how["max_new_tokens"])
    chat = ServedChat(replace(client, model=found.name, policy=policy))
    settings = {"model": found.name, "chat_template": SERVED, "dtype": SERVED, **how}
    return _Answerer(
        _model_name(model_id, Path(found.name)), settings, lambda: chat, parallel=parallel
    )


def require_one_source(
    pretrained: str | None, endpoint: str | None, served_model: str | None
) -> None:
    """Refuse a question to nobody, or to two."""
    if (pretrained is None) == (endpoint is None):
        raise ValueError("give --pretrained MODEL, or --endpoint URL of a server, but not both")
    if endpoint is None and served_model is not None:
        raise ValueError("--served_model is a name at an --endpoint, which is not given")


def require_decided_by_server(**options: str) -> None:
    """Refuse options of a loaded model beside an endpoint."""
    for name, value in options.items():
        if value not in ("auto", "tokenizer"):
            raise ValueError(
                f"--{name} {value} is for a model that is loaded here; behind an --endpoint the "
                f"server decides it: leave the option out"
            )


def _require_known_turns(
    asked: list[Question], template: ChatTemplate, source: ModelSource
) -> None:
    for turn in (turn for question in asked for turn in question.turns):
        tokens = template.tokens([{"role": "user", "content": turn}])
        require_known_tokens(tokens, source.vocab_size, source.tokenizer)


def _identity(source: ModelSource) -> dict[str, str]:
    """Which model answers: by samples of its weights, as earlier releases had it, and by all."""
    model = source.description()
    return {"model": model["weights"], CONTENT: model[CONTENT]}


def _model_name(model_id: str | None, path: Path) -> str:
    name = model_id or (path.parent.name if path.name == "model" else path.name)
    if not name or "/" in name or name.startswith("."):
        raise ValueError(
            f"model_id is {name!r}; it becomes a file name, so it is needed and may hold no /"
        )
    return name
