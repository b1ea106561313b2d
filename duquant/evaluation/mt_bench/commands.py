"""``mtbench judge`` and ``mtbench show``: their signatures are their options.

Each checks everything it can before it begins: files, key, endpoint. Nothing is
written before that, and everything that is written is finished: the same command continues.
"""

from pathlib import Path

from duquant.atomic_files import write_json
from duquant.evaluation.mt_bench.answers import load_references
from duquant.evaluation.mt_bench.bench_directory import BenchDirectory, Mode
from duquant.evaluation.mt_bench.credentials import key_from_environment
from duquant.evaluation.mt_bench.endpoint import ChatEndpoint
from duquant.evaluation.mt_bench.judge_prompts import load_judge_prompts
from duquant.evaluation.mt_bench.judging import judge_matches
from duquant.evaluation.mt_bench.matches import make_matches
from duquant.evaluation.mt_bench.opponents import answers_of, choose_opponents
from duquant.evaluation.mt_bench.questions import load_questions
from duquant.evaluation.mt_bench.replies import Replies
from duquant.evaluation.mt_bench.request_policy import RequestPolicy
from duquant.evaluation.mt_bench.results import collect_results
from duquant.evaluation.mt_bench.run_scores import tell_runs
from duquant.evaluation.mt_bench.scores import Categories
from duquant.json_output import one_document
from duquant.reporting.report import write_report
from duquant.reporting.run_contents import read_run
from duquant.run_lock import locked
from duquant.terminal import say
from duquant.terminal_table import show_table


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


def _categories(bench: BenchDirectory, questions: Path | None) -> Categories:
    asked = load_questions(questions or bench.questions)
    return {question.question_id: question.category for question in asked}


def _report(bench: BenchDirectory, judge: str, categories: Categories) -> None:
    """Put a judge's scores into the reports of the runs that they are of."""
    for run in tell_runs(bench, judge, categories):
        page, _ = write_report(run, [read_run(run)])
        say(f"report with these scores: {page}")


def _names(models: str | None) -> list[str]:
    return [name.strip() for name in (models or "").split(",") if name.strip()]
