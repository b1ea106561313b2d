"""The DataModule: calibration activations of the current block, validation windows of text."""

import hashlib
import random
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from duquant.data.batches import UploadedBatches, batch_loader, in_order
from duquant.data.corpora import CORPUS_NAMES, MIX, load_documents, load_texts, require_source
from duquant.data.protocols import Protocol, find_protocol
from duquant.data.streams import BlockSamples, StreamSizes
from duquant.data.windows import consecutive_windows, draw_windows
from duquant.model.batch import BlockBatch
from duquant.model.checkpoint import find_model_directory
from duquant.model.tokenizer import load_tokenizer
from duquant.ops.process_memory import available_bytes
from duquant.processes import ALONE

SHARE_FOR_STREAMS = 0.25


class CalibrationDataModule(LightningDataModule):
    """Calibration text and validation corpora.

    Args:
        tokenizer: model directory or hub id that holds the tokenizer.
        calibration: corpus to calibrate on: wikitext2, c4, ptb, pile, mix (from the hub),
            python_topics (from the interpreter), or a local .txt, .json, .jsonl (each also with .gz
            or .zst) or .parquet file.
        validation: corpora to measure perplexity on, by the name they get in logs and reports; the
            names c4_joined and c4_drawn choose between the two protocols of C4; {} measures
            nothing.
        num_samples: calibration windows, of all processes together.
        sequence_length: tokens of a window, in calibration and validation.
        validation_windows: windows used of each validation corpus (default: all).
        stride: tokens between the starts of two validation windows, whose last so many predictions
            are scored (default: sequence_length, windows do not overlap).
        validation_chunk: windows that pass through the model together, in each process; more of
            them load blocks less often and take more memory.
        batch_size: calibration samples per LWC step (set by model.lwc.batch_size).
        seed: draws the calibration windows (and the model's random rotations).
        stream_memory_gb: memory for the activations between blocks, in each process; if they need
            more, they stay on disk, in the run's directory (default: on a GPU what its work leaves
            free, else a quarter of the available memory, shared by all processes).
        add_special_tokens: begin each text with the tokenizer's special tokens (a BOS), as the
            papers' LLaMA numbers do.
    """

    def __init__(
        self,
        tokenizer: str,
        calibration: str = "wikitext2",
        validation: dict[str, str] | None = None,
        num_samples: int = 128,
        sequence_length: int = 2048,
        validation_windows: int | None = None,
        stride: int | None = None,
        validation_chunk: int = 64,
        batch_size: int = 1,
        seed: int = 2,
        stream_memory_gb: float | None = None,
        add_special_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.tokenizer_source = tokenizer
        self.calibration = calibration
        self.validation = {"wikitext2": "wikitext2"} if validation is None else validation
        self.num_samples = num_samples
        self.sequence_length = sequence_length
        self.validation_windows = validation_windows
        self.stride = sequence_length if stride is None else stride
        self.validation_chunk = validation_chunk
        self.batch_size = batch_size
        self.seed = seed
        self.stream_memory_gb = stream_memory_gb
        self.add_special_tokens = add_special_tokens
        self.samples: BlockSamples | None = None
        self.samples_at_once = batch_size
        self.processes = ALONE
        self._tokens: dict[tuple[str, str], list[Tensor]] = {}
        self._windows: dict[str, Tensor] = {}
        self._tokenizer: Any = None
        self._require_sense()

    def _require_sense(self) -> None:
        minima = {
            "num_samples": 1,
            "sequence_length": 2,
            "validation_chunk": 1,
            "validation_windows": 1,
            "stride": 1,
            "stream_memory_gb": 0,
        }
        for name, least in minima.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"data.{name} is {value}; it must be at least {least}")
        if self.stride > self.sequence_length:
            raise ValueError(
                f"data.stride is {self.stride}; it must be at most {self.sequence_length}, the "
                f"data.sequence_length"
            )
        for source in self.validation.values():
            if source not in CORPUS_NAMES:
                require_source(source)

    def calibration_windows(self) -> Tensor:
        """Token ids ``(num_samples, sequence_length)``.

        Raises:
            ValueError: if the text is too short.
        """
        texts = self._tokenize(self.calibration, "train")
        generator = random.Random(self.seed)
        shares = [self.num_samples // len(texts)] * len(texts)
        shares[0] += self.num_samples - sum(shares)
        windows = [
            draw_windows(tokens, share, self.sequence_length, generator)
            for tokens, share in zip(texts, shares, strict=True)
            if share
        ]
        return torch.cat(windows)

    def corpus_windows(self, name: str) -> Tensor:
        """Windows ``(windows, sequence_length)`` of one validation corpus, by its protocol."""
        if name not in self._windows:
            source, length = self.validation[name], self.sequence_length
            try:
                if source == MIX:
                    tokens = torch.cat(self._tokenize(source, "validation"))
                    windows = consecutive_windows(tokens, length, stride=self.stride)
                else:
                    documents, joint = load_documents(source, "validation")
                    windows = self.protocol(name).windows(
                        documents, joint, self._token_ids, length, self.stride
                    )
            except ValueError as error:
                raise ValueError(f"validation corpus {name}: {error}") from error
            self._windows[name] = windows
        return self._windows[name][: self.validation_windows]

    def protocol(self, name: str) -> Protocol:
        """Which windows of a validation corpus are measured."""
        return find_protocol(name, self.validation[name])

    def holds_in_memory(self, sizes: StreamSizes) -> bool:
        """Whether activation streams of these sizes fit into the memory they may take."""
        budget = self.stream_memory_gb
        share = SHARE_FOR_STREAMS / self.processes.local_count
        allowed = available_bytes() * share if budget is None else budget * 1e9
        return sizes.bytes_at_once <= allowed

    def description(self) -> dict[str, Any]:
        """What decides the calibrated numbers, for fingerprints; texts by their token hash."""
        windows = self.calibration_windows()
        return {
            "calibration_tokens": hashlib.sha256(windows.numpy().tobytes()).hexdigest()[:16],
            "num_samples": self.num_samples,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
        }

    def train_dataloader(self) -> DataLoader[Any] | UploadedBatches:
        """Samples of the current block in a fixed order; without LWC, one token step."""
        if self.samples is None:
            return DataLoader(TensorDataset(torch.zeros(1, dtype=torch.float32, device="cpu")))
        count, device = self.processes.count, torch.device(self.processes.device)
        return batch_loader(self.samples, self.samples_at_once // count, device)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader per validation corpus, in the order they were given.

        Each yields chunks of this process's share, at least one, which may be empty.
        """
        shares = [self.processes.share(self.corpus_windows(name)) for name in self.validation]
        chunks = [[(chunk,) for chunk in share.split(self.validation_chunk)] for share in shares]
        return [
            DataLoader(of_corpus, batch_size=None, sampler=in_order(of_corpus))  # type: ignore[arg-type]
            for of_corpus in chunks
        ]

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move calibration samples; validation windows are moved chunk by chunk later."""
        if isinstance(batch, BlockBatch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        return batch

    def _tokenize(self, source: str, split: Any) -> list[Tensor]:
        if (source, split) not in self._tokens:
            texts = load_texts(source, split)
            self._tokens[source, split] = [self._token_ids(text) for text in texts]
        return self._tokens[source, split]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, read at its first use."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(find_model_directory(self.tokenizer_source))
        return self._tokenizer

    def token_text(self, token_id: int) -> str:
        """What one token stands for."""
        return str(self.tokenizer.decode([token_id]))

    def _token_ids(self, text: str) -> Tensor:
        ids = self.tokenizer(text, add_special_tokens=self.add_special_tokens).input_ids
        return torch.tensor(ids, device="cpu")
