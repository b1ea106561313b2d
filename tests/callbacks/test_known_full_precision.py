"""Full precision that is known: not measured again, the same number, said in one line."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from callbacks.known_full_precision import KnownFullPrecision
from callbacks.preflight import describe_job
from callbacks.run_summary import RunSummary
from duquant.model.decoder import Decoder
from duquant.modules.language_model import LanguageModel
from tests.in_process import (
    LIGHTNING_WARNINGS,
    FinishedRun,
    small_data,
    small_language_model,
    small_trainer,
)

pytestmark = LIGHTNING_WARNINGS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "duquant" / "perplexity"


class Loads:
    """Which blocks of the original model are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: list[int] = []
        load = Decoder.load_block

        def spy(decoder: Decoder, index: int) -> Any:
            self.blocks.append(index)
            return load(decoder, index)

        monkeypatch.setattr(Decoder, "load_block", spy)

    def taken(self) -> list[int]:
        blocks, self.blocks = self.blocks, []
        return blocks


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    return Loads(monkeypatch)


def measure(
    run: FinishedRun,
    source: Path | None = None,
    validation: dict[str, str] | None = None,
    **options: Any,
) -> tuple[LanguageModel, str]:
    """Validate; the model, and what was printed."""
    settings = {"reuse_full_precision": True, **options}
    model = small_language_model(source or run.source, run.output, **settings)
    corpora = {} if validation is None else {"validation": validation}
    data = small_data(source or run.source, run.text, **corpora)
    printed = io.StringIO()
    trainer = small_trainer(KnownFullPrecision(Console(file=printed, width=200)))
    trainer.validate(model, data, verbose=False)
    return model, printed.getvalue()


def test_it_is_measured_once(finished_run: FinishedRun, loads: Loads) -> None:
    first, told = measure(finished_run)
    assert told == ""
    assert loads.taken() == [0, 1]
    second, told = measure(finished_run)
    assert told == (
        "full precision on topics is known from an earlier run of this model; "
        "--model.reuse_full_precision false measures it again\n"
    )
    assert loads.taken() == [], "the original's blocks were not read"
    assert second.perplexities == first.perplexities
    assert list(second.perplexities["topics"]) == ["full_precision", "quantized"]
    third, told = measure(finished_run, reuse_full_precision=False)
    assert (told, loads.taken()) == ("", [0, 1])
    assert third.perplexities == first.perplexities


def test_plain_rounding_is_measured_beside_what_is_known(
    finished_run: FinishedRun, loads: Loads
) -> None:
    measure(finished_run)
    loads.taken()
    model, _ = measure(finished_run, report_round_to_nearest=True)
    assert loads.taken() == [0, 1]
    assert model.perplexities == finished_run.model.perplexities


def test_one_corpus_of_two(finished_run: FinishedRun, loads: Loads, cache: Path) -> None:
    text = str(finished_run.text)
    measure(finished_run)
    loads.taken()
    other = finished_run.text.with_name("other.txt")
    other.write_text(finished_run.text.read_text()[500:])
    model, told = measure(finished_run, validation={"a": str(other), "topics": text})
    assert told.startswith("full precision on topics is known")
    assert loads.taken() == [0, 1]
    expected = finished_run.model.perplexities["topics"]["full_precision"]
    assert model.perplexities["topics"]["full_precision"] == expected
    assert model.perplexities["a"]["full_precision"] != expected
    assert len(list(cache.iterdir())) == 2
    _, told = measure(finished_run, validation={"a": str(other), "topics": text})
    assert told.startswith("full precision on a, topics is known")


def test_another_model_is_measured(finished_run: FinishedRun, loads: Loads, tmp_path: Path) -> None:
    measure(finished_run)
    loads.taken()
    copy = tmp_path / "copy"
    shutil.copytree(finished_run.source, copy)
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    _, told = measure(finished_run, source=copy)
    assert told == ""
    assert loads.taken() == [0, 1]


def test_process_0_decides(finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variants that differ between processes would wait for each other for ever."""
    trainer = small_trainer(KnownFullPrecision(Console(file=io.StringIO())))
    monkeypatch.setattr(trainer.strategy, "broadcast", lambda found: {"topics": 5.0})
    model = small_language_model(
        finished_run.source, finished_run.output, reuse_full_precision=True
    )
    trainer.validate(model, small_data(finished_run.source, finished_run.text), verbose=False)
    assert model.perplexities["topics"]["full_precision"] == 5.0


def test_the_estimate_is_of_what_will_be_measured(finished_run: FinishedRun) -> None:
    model, _ = measure(finished_run)
    data = small_data(finished_run.source, finished_run.text)
    assert describe_job(model, data).num_variants == 2
    again, _ = measure(finished_run)
    job = describe_job(again, data)
    assert (job.num_variants, job.has_full_precision) == (1, False)


def test_the_summary_says_what_was_known(
    finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[dict[str, Any]] = []
    monkeypatch.setattr("callbacks.run_summary.write_json", lambda path, v: written.append(v))
    monkeypatch.setattr("callbacks.run_summary.peak_memory_bytes", lambda device: 10**15)
    for _ in range(2):
        model = small_language_model(
            finished_run.source, finished_run.output, reuse_full_precision=True
        )
        console = Console(file=io.StringIO())
        trainer = small_trainer(KnownFullPrecision(console), RunSummary(console))
        trainer.validate(model, small_data(finished_run.source, finished_run.text), verbose=False)
    assert [summary["known_before"] for summary in written] == [[], ["topics"]]
    assert written[0]["perplexity"] == written[1]["perplexity"]
    assert written[0]["peak_memory_bytes"] == 10**15, "measuring counts as well"


def test_peak_memory_is_of_the_whole_run(finished_run: FinishedRun) -> None:
    summary = json.loads((finished_run.output / "summary.json").read_text())
    blocks = [block["peak_memory_bytes"] for block in summary["blocks"]]
    assert summary["peak_memory_bytes"] >= max(blocks)
    assert summary["preflight"]["memory_bytes"]["measured"] == summary["peak_memory_bytes"]
