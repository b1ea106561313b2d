"""The DataModule: windows that only the seed and the text decide."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from duquant.data import datamodule
from duquant.data.corpora import MIX_PARTS
from duquant.data.datamodule import CalibrationDataModule
from duquant.data.python_topics import python_topics
from duquant.data.streams import BlockSamples
from duquant.data.windows import consecutive_windows
from duquant.model.batch import BlockBatch
from duquant.quickstart import MODEL_DIRECTORY
from tests.in_process import small_data, write_text


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt")


def data_module(text: Path, **options: Any) -> CalibrationDataModule:
    return small_data(MODEL_DIRECTORY, text, **options)


def reference_tokens(text: str) -> Tensor:
    """Tokens by the tokenizers library alone, without transformers."""
    tokenizer = Tokenizer.from_file(str(MODEL_DIRECTORY / "tokenizer.json"))
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)


# Calibration


def test_the_seed_decides_the_windows(text: Path) -> None:
    first, again, other = (data_module(text, seed=seed).calibration_windows() for seed in (2, 2, 3))
    assert first.shape == (8, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_windows_stay_the_same_when_asked_again(text: Path) -> None:
    data = data_module(text)
    assert torch.equal(data.calibration_windows(), data.calibration_windows())


def test_every_window_is_a_chunk_of_the_text(text: Path) -> None:
    tokens = reference_tokens(text.read_text(encoding="utf-8"))
    chunks = {tuple(chunk.tolist()) for chunk in tokens.unfold(0, 32, 1)}
    for window in data_module(text).calibration_windows():
        assert tuple(window.tolist()) in chunks


def test_the_description_changes_with_all_that_matters(text: Path, tmp_path: Path) -> None:
    other_text = write_text(tmp_path / "other.txt", skip=20)
    base = data_module(text).description()
    assert base == data_module(text).description()
    changes: list[dict[str, Any]] = [
        {"calibration": str(other_text)},
        {"seed": 3},
        {"num_samples": 7},
        {"sequence_length": 31},
    ]
    for change in changes:
        assert data_module(text, **change).description() != base, change
    moved = tmp_path / "moved.txt"
    text.rename(moved)
    assert data_module(moved).description() == base, "a path is not what a text says"


def test_a_mix_is_shared_out_and_the_rest_goes_to_its_first_part(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [topic for topic in python_topics("train") if len(topic) > 4000][: len(MIX_PARTS)]
    monkeypatch.setattr(datamodule, "load_texts", lambda source, split: parts)
    windows = data_module(text, calibration="mix").calibration_windows()
    homes = []
    for window in windows:
        found = [
            number
            for number, part in enumerate(parts)
            if window.tolist() in reference_tokens(part).unfold(0, 32, 1).tolist()
        ]
        homes += found
    assert homes == [0, 0, 0, 0, 1, 1, 2, 2], "8 = (8 - 2·2) + 2 + 2"


def test_special_tokens_begin_the_text_only_when_asked(tmp_path: Path) -> None:
    """LLaMA's tokenizer puts a BOS first; one is made here that does so, too."""
    tokenizer = Tokenizer.from_file(str(MODEL_DIRECTORY / "tokenizer.json"))
    bos = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    model = tmp_path / "model"
    model.mkdir()
    tokenizer.save(str(model / "tokenizer.json"))
    for name in ("config.json", "tokenizer_config.json"):
        (model / name).write_bytes((MODEL_DIRECTORY / name).read_bytes())
    text = write_text(tmp_path / "text.txt")
    plain, special = (
        small_data(model, text, add_special_tokens=asked).corpus_windows("topics").flatten()
        for asked in (False, True)
    )
    assert special[0] == bos
    assert torch.equal(special[1:], plain[:-1])


def test_a_long_text_is_tokenized_whole_without_a_warning(text: Path, tmp_path: Path) -> None:
    """A tokenizer's own limit would warn, and some would cut."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_bytes((MODEL_DIRECTORY / name).read_bytes())
    (model / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "TokenizersBackend", "model_max_length": 64}'
    )
    windows = small_data(model, text, validation_windows=None).corpus_windows("topics")
    tokens = reference_tokens(text.read_text(encoding="utf-8"))
    assert windows.shape[0] == tokens.numel() // 32 > 64 // 32


# Validation


def test_validation_windows_lie_end_to_end_from_the_start(text: Path, tmp_path: Path) -> None:
    other = write_text(tmp_path / "other.txt", skip=20)
    data = data_module(text, validation={"first": str(text), "second": str(other)})
    for name, path in {"first": text, "second": other}.items():
        tokens = reference_tokens(path.read_text(encoding="utf-8"))
        assert torch.equal(data.corpus_windows(name), consecutive_windows(tokens, 32, 4))


def test_one_loader_per_corpus_in_the_order_given(text: Path, tmp_path: Path) -> None:
    other = write_text(tmp_path / "other.txt", skip=20)
    corpora = {"second": str(other), "first": str(text)}
    data = data_module(text, validation=corpora, validation_chunk=3)
    loaders = data.val_dataloader()
    assert len(loaders) == 2
    for name, loader in zip(corpora, loaders, strict=True):
        batches = [windows for (windows,) in loader]
        assert [len(windows) for windows in batches] == [3, 1]
        assert torch.equal(torch.cat(batches), data.corpus_windows(name))


def test_a_corpus_that_is_too_short_is_named(text: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("short")
    data = data_module(text, validation={"tale": str(short)})
    with pytest.raises(ValueError, match="validation corpus tale: the text has"):
        data.corpus_windows("tale")


# Training


def test_samples_of_the_current_block_come_in_a_fixed_order(text: Path) -> None:
    data = data_module(text)
    data.samples = BlockSamples(torch.randn(8, 4, 6), torch.randn(8, 4, 6))
    for _ in range(2):
        batches = list(data.train_dataloader())
        assert all(isinstance(batch, BlockBatch) for batch in batches)
        assert torch.equal(
            torch.cat([batch.quantized_input for batch in batches]), data.samples.quantized_input
        )
        assert len(batches) == 4


def test_without_samples_there_is_one_step(text: Path) -> None:
    assert len(list(data_module(text).train_dataloader())) == 1


def test_only_calibration_samples_are_moved_to_the_device(text: Path) -> None:
    data, meta = data_module(text), torch.device("meta")
    batch = BlockBatch(torch.zeros(1), torch.zeros(1), torch.zeros(0))
    moved = data.transfer_batch_to_device(batch, meta, 0)
    assert isinstance(moved, BlockBatch)
    assert moved.target.is_meta
    (windows,) = data.transfer_batch_to_device([torch.zeros(1)], meta, 0)
    assert not windows.is_meta


# Refusals


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [
        ("num_samples", 0, 1),
        ("sequence_length", 1, 2),
        ("validation_chunk", 0, 1),
        ("validation_windows", 0, 1),
    ],
)
def test_numbers_without_sense_are_refused(text: Path, option: str, value: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"data.{option} is {value}; it must be at least {least}"):
        data_module(text, **{option: value})
    data_module(text, **{option: least})


def test_a_missing_text_is_refused_at_once(text: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no text nowhere\.txt"):
        data_module(text, validation={"tale": "nowhere.txt"})


def test_there_may_be_nothing_to_measure(text: Path) -> None:
    data = data_module(text, validation={})
    assert data.val_dataloader() == []
    assert len(data.calibration_windows())


@pytest.mark.parametrize(
    ("kept", "reason"), [(0, r"there is no tokenizer\.json"), (500, "Expecting .*line 26")]
)
def test_a_model_without_a_usable_tokenizer_is_named(
    text: Path, tmp_path: Path, kept: int, reason: str
) -> None:
    model = tmp_path / "no_tokenizer"
    model.mkdir()
    (model / "config.json").write_bytes((MODEL_DIRECTORY / "config.json").read_bytes())
    if kept:
        content = (MODEL_DIRECTORY / "tokenizer.json").read_bytes()
        (model / "tokenizer.json").write_bytes(content[:kept])
    complaint = rf"no_tokenizer has no usable tokenizer \({reason}.*\): copy the files of .*there$"
    with pytest.raises(ValueError, match=complaint):
        small_data(model, text).calibration_windows()
