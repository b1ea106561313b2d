"""The table: numbers with errors, and what a reader must know before quoting them."""

import io
from dataclasses import replace

from rich.console import Console

from duquant.evaluation.results_table import notes, print_results
from duquant.scores.formatting import format_metric
from duquant.scores.statistics import Measurement, Metric, mean_of, perplexity_of


def measurement(name: str, values: list[float]) -> Measurement:
    return Measurement(name, "1.0", 0, len(values), 10, {"acc": mean_of(values)})


def test_shares_are_percentages_and_perplexities_are_not() -> None:
    assert format_metric(mean_of([1.0, 0.0, 1.0, 1.0])) == "75.00 ± 25.00"
    assert format_metric(perplexity_of([0.0, 0.0])) == "1.00 ± 0.00"
    assert format_metric(Metric(123456.0, None)) == "1.23e+05"


def test_two_models_side_by_side() -> None:
    model, reference = measurement("task", [1.0, 0.0] * 8), measurement("task", [1.0, 1.0] * 8)
    file = io.StringIO()
    print_results(
        "Title", ["W4A4", "full precision"], [{"task": model}, {"task": reference}], {}, None,
        Console(file=file),
    )  # fmt: skip
    row = next(line for line in file.getvalue().splitlines() if "task" in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["task", "acc", "50.00 ± 12.91", "100.00 ± 0.00", "-50.00 ± 12.91", "yes"]


def test_numbers_are_never_cut() -> None:
    """Names give way on a narrow terminal; a file has room for them too."""
    name = "mmlu_high_school_government_and_politics"
    both = [{name: measurement(name, [1.0, 0.0] * 8)}, {name: measurement(name, [1.0] * 16)}]
    for console in (
        Console(file=io.StringIO()),
        Console(file=io.StringIO(), width=90, force_terminal=True, color_system=None),
    ):
        print_results("Title", ["W4A4", "full precision"], both, {}, None, console)
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        for number in ("50.00 ± 12.91", "100.00 ± 0.00", "-50.00 ± 12.91", "> error", "yes"):
            assert number in printed
        assert (name in printed) is not console.is_terminal


def test_notes_name_what_differs_from_the_published_protocol() -> None:
    one = replace(
        measurement("mmlu_anatomy", [1.0]),
        published_items=20, num_truncated=3, num_fewshot=5, fewest_shots=2,
    )  # fmt: skip
    said = "\n".join(notes({"mmlu_anatomy": one}, {}, 7))
    for words in (
        "5-shot", "--limit 7", "10 items, the published set 20", "3 requests", "as few as 2",
    ):  # fmt: skip
        assert words in said
    groups = {"mmlu": ("mmlu_anatomy", "mmlu_virology")}
    assert "anatomy" not in "\n".join(notes({"mmlu_anatomy": one}, groups, None))
