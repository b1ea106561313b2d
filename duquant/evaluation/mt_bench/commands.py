"""``mtbench answer``, ``mtbench judge``, ``mtbench show``: their signatures are their options.

Each checks everything it can before it begins: files, chat template, key, endpoint. Nothing is
written before that, and everything that is written is finished: the same command continues.
"""

from pathlib import Path

from duquant.atomic_files import write_json
from duquant.compute_device import find_device
from duquant.evaluation.loaded_model import ModelSource
from duquant.evaluation.local_items import file_digest
from duquant.evaluation.mt_bench.answering import (
    answer_questions,
    answered,
    begin,
    require_same_questions,
)
from duquant.evaluation.mt_bench.answers import load_references
from duquant.evaluation.mt_bench.bench_directory import BenchDirectory, Mode
from duquant.evaluation.mt_bench.chat_model import (
    ChatModel,
    find_chat_model,
)
from duquant.evaluation.mt_bench.chat_template import ChatTemplate, TemplateName, choose_template
from duquant.evaluation.mt_bench.endpoint import ChatEndpoint, key_from_environment
from duquant.evaluation.mt_bench.judge_prompts import load_judge_prompts
from duquant.evaluation.mt_bench.judging import judge_matches
from duquant.evaluation.mt_bench.matches import make_matches
from duquant.evaluation.mt_bench.opponents import answers_of, choose_opponents
from duquant.evaluation.mt_bench.questions import Question, load_questions
from duquant.evaluation.mt_bench.replies import Replies
from duquant.evaluation.mt_bench.request_policy import RequestPolicy
from duquant.evaluation.mt_bench.results import collect_results
from duquant.evaluation.mt_bench.run_scores import remember_run, tell_runs
from duquant.evaluation.mt_bench.scores import Categories
from duquant.evaluation.options import Dtype
from duquant.json_output import one_document
from duquant.model.tokenizer import require_known_tokens
from duquant.reporting.report import write_report
from duquant.reporting.run_contents import read_run
from duquant.run_description import CONTENT
from duquant.run_lock import locked
from duquant.terminal import say
from duquant.terminal_table import show_table


def answer(
    pretrained: str,
    questions: Path,
    output_dir: Path = Path("runs/mt_bench"),
    model_id: str | None = None,
    chat_template: TemplateName = "tokenizer",
    max_new_tokens: int = 1024,
    seed: int = 0,
    limit: int | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Let a model answer the questions, two turns each; the same command continues a stopped run.

    Args:
        pretrained: a quantized or full-precision model directory, a run directory, or a hub id.
        questions: FastChat's question.jsonl.
        output_dir: where answers and judgments are kept, in FastChat's layout.
        model_id: name of the model in answers and tables; by default its directory's.
        chat_template: the tokenizer's own, or a format of FastChat by name.
        max_new_tokens: tokens an answer may have.
        seed: sampling starts from this plus the question's number.
        limit: answer only the first questions.
        dtype: what the model computes in; auto is what it is stored in.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, ...

    Raises:
        ValueError: if anything is missing or does not fit, before the first question.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; at least 1 is needed")
    asked, place = load_questions(questions, limit), find_device(device)
    bench = BenchDirectory(output_dir)
    require_same_questions(bench, questions)
    directory = find_chat_model(pretrained)
    name, source = _model_name(model_id, directory), ModelSource.find(str(directory))
    template = choose_template(source.tokenizer, chat_template, pretrained)
    _require_known_turns(asked, template, source)
    settings = {
        **_identity(source),
        "tokenizer": file_digest(*sorted(directory.glob("*.json"))),
        "chat_template": template.source,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "dtype": dtype,
        "questions": file_digest(questions),
    }
    done = answered(bench, name, settings)
    if all(question.question_id in done for question in asked):
        say(f"{name} has answered all {len(asked)} questions: {bench.answers(name)}")
        return
    with locked(output_dir):
        done = answered(bench, name, settings)  # nobody adds to them any more
        chat = ChatModel(source.read(dtype, {"": place}), template, max_new_tokens)
        begin(bench, name, settings, questions)
        remember_run(bench, name, directory)
        answer_questions(chat, asked, bench, name, seed, done)
    if chat.turns_without_room:
        say(f"{chat.turns_without_room} turns are empty: no room in {chat.context} positions")
    say(f"answers of {name}: {bench.answers(name)}")


def judge(
    endpoint: str,
    judge_model: str,
    reference_answers: Path | None = None,
    mode: Mode = "single",
    models: str | None = None,
    baseline: str | None = None,
    output_dir: Path = Path("runs/mt_bench"),
    questions: Path | None = None,
    judge_prompts: Path | None = None,
    limit: int | None = None,
    attempts: int = 3,
    parallel: int = 1,
    request: RequestPolicy = RequestPolicy(),
) -> None:
    """Let a model behind an OpenAI-compatible endpoint judge the answers, asking nothing twice.

    Args:
        endpoint: base address, for example https://api.openai.com/v1; its key is read from the
            environment variable OPENAI_API_KEY and from nowhere else.
        judge_model: the judge's name at the endpoint.
        reference_answers: FastChat's reference_answer/gpt-4.jsonl; math, reasoning and coding
            are judged beside them.
        mode: single gives scores from 1 to 10, pairwise compares two models in both orders.
        models: names separated by commas; by default all that have answered.
        baseline: pairwise compares each model with this one; by default each with each.
        output_dir: where the answers are.
        questions: FastChat's question.jsonl; by default those that were answered.
        judge_prompts: FastChat's judge_prompts.jsonl. Only with that file do scores compare with
            published ones; the prompts of this package ask for the same in other words, to compare
            your own models with each other.
        limit: judge only the first questions.
        attempts: replies asked for until one has a verdict; then it is recorded as malformed.
        parallel: requests at a time.
        request: how the judge is asked.

    Raises:
        ValueError: if anything is missing, malformed or unreachable; what was judged is kept.
    """
    for option, value in {"attempts": attempts, "parallel": parallel}.items():
        if value < 1:
            raise ValueError(f"{option} is {value}; at least 1 is needed")
    bench = BenchDirectory(output_dir)
    asked = load_questions(questions or bench.questions, limit)
    opponents = choose_opponents(bench, mode, _names(models), baseline)
    answers, references = answers_of(bench, opponents), load_references(reference_answers, asked)
    prompts = load_judge_prompts(judge_prompts, mode)
    matches = make_matches(asked, opponents, answers, references, prompts)
    client = ChatEndpoint(endpoint, judge_model, key_from_environment(), request)
    client.check()
    path, replies = bench.judgments(judge_model, mode), bench.replies(judge_model)
    with locked(output_dir):
        asker = Replies(replies, client)
        unclear = judge_matches(matches, path, judge_model, asker, attempts, parallel)
    say(f"judgments of {judge_model}: {path}")
    if unclear:
        say(f"{unclear} of {len(matches)} judgments have no verdict and count as malformed")
    _report(bench, judge_model, _categories(bench, questions))


def show(
    output_dir: Path = Path("runs/mt_bench"),
    judge_model: str | None = None,
    questions: Path | None = None,
    models: str | None = None,
    baseline: str | None = None,
    json: bool = False,
) -> None:
    """Print scores per category and wins, ties and losses, and write them as JSON.

    Args:
        output_dir: where the judgments are.
        judge_model: whose judgments; by default every judge's.
        questions: FastChat's question.jsonl, for the categories; by default those answered.
        models: names separated by commas; by default all that were judged.
        baseline: count only comparisons with this model.
        json: print them as one JSON document, and all else on standard error.

    Raises:
        ValueError: if there are no judgments, or they are malformed.
    """
    bench = BenchDirectory(output_dir)
    judges = bench.judges() if judge_model is None else [judge_model]
    if not judges:
        raise ValueError(f"{output_dir} holds no judgments; mtbench judge makes them")
    categories = _categories(bench, questions)
    found = [collect_results(bench, j, categories, _names(models), baseline) for j in judges]
    with one_document(json) as document:
        for results in found:
            for table in results.tables():
                show_table(table)
            write_json(bench.results(results.judge), results.to_dict())
            say(f"the same as JSON: {bench.results(results.judge)}")
            _report(bench, results.judge, categories)
        document["judges"] = [results.to_dict() for results in found]


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


def _categories(bench: BenchDirectory, questions: Path | None) -> Categories:
    asked = load_questions(questions or bench.questions)
    return {question.question_id: question.category for question in asked}


def _report(bench: BenchDirectory, judge: str, categories: Categories) -> None:
    """Put a judge's scores into the reports of the runs that they are of."""
    for run in tell_runs(bench, judge, categories):
        page, _ = write_report(run, [read_run(run)])
        say(f"report with these scores: {page}")


def _model_name(model_id: str | None, directory: Path) -> str:
    path = directory.resolve()
    name = model_id or (path.parent.name if path.name == "model" else path.name)
    if "/" in name or name.startswith("."):
        raise ValueError(f"model_id is {name!r}; it becomes a file name, so it may hold no /")
    return name


def _names(models: str | None) -> list[str]:
    return [name.strip() for name in (models or "").split(",") if name.strip()]
