"""``logits.json`` of a model directory: what the model says after 16 prompts, for hosts to compare.

Prompts are token ids, drawn once and for all from the vocabulary, so nobody needs a tokenizer. Of
the token that follows each, the most probable ones are kept with their log-probabilities, as the
finished directory gives them by the reference backend in float32 on the CPU, whatever the model's
dtype: in half precision, sums in another order turn so many roundings over that a right model could
not be told from a wrong one.

Prompts have 2 to 16 tokens, most of them few: every token is one more chance for a last bit to turn
a rounding over. They cost one reading of the written blocks, one block in memory at a time, packed,
with one of its linears in floating point; 256 tokens pass through each.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from xxhash import xxh3_64_hexdigest

from duquant.atomic_files import write_json
from duquant.json_files import read_json
from duquant.model.block_forward import run_block
from duquant.model.decoder import Decoder
from duquant.model.execution import configure_execution
from duquant.nn.execution import Execution

LOGITS = "logits.json"
PART = "first tokens"
"""What its checksum is called in ``config.json``."""
LENGTHS = (2,) * 8 + (4,) * 4 + (8,) * 2 + (16,) * 2
"""Tokens of each prompt."""
KEPT = 8
"""Tokens that are kept behind each prompt."""
SEED = 20240601
DIGITS = 5
"""Decimals of a log-probability: finer than any agreement that is asked for."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class FirstTokens:
    """What :data:`LOGITS` holds.

    Attributes:
        prompts: token ids of every prompt.
        tokens: after each prompt, the ids of the most probable tokens, best first.
        log_probabilities: theirs, natural logarithms.
    """

    prompts: list[list[int]]
    tokens: list[list[int]]
    log_probabilities: list[list[float]]

    def __post_init__(self) -> None:
        """Check that every prompt has its tokens, and each of these its number."""
        kept = [len(numbers) for numbers in self.log_probabilities]
        is_whole = [len(ids) for ids in self.tokens] == kept and len(kept) == len(self.prompts)
        if not is_whole or not kept or not all(kept) or not all(self.prompts):
            raise ValueError("prompts, tokens and log_probabilities do not belong together")
        if min(map(min, [*self.prompts, *self.tokens])) < 0:
            raise ValueError("a token id is below zero")

    @classmethod
    def of(cls, prompts: list[list[int]], logits: Tensor) -> "FirstTokens":
        """From prompts and the logits behind them, ``(prompts, vocab)``."""
        numbers = logits.double().log_softmax(dim=-1)
        best = numbers.topk(min(KEPT, logits.shape[-1]))
        rounded = [[round(number, DIGITS) for number in row] for row in best.values.tolist()]
        return cls(prompts, best.indices.tolist(), rounded)


def draw_prompts(vocab_size: int, max_positions: int) -> list[list[int]]:
    """16 prompts, shorter where the model has fewer positions: always the same ones."""
    generator = torch.Generator(device=CPU).manual_seed(SEED)
    places = torch.rand(
        len(LENGTHS), max(LENGTHS), generator=generator, dtype=torch.float64, device=CPU
    )
    rows = (places * vocab_size).long().tolist()
    return [row[: min(length, max_positions)] for row, length in zip(rows, LENGTHS, strict=True)]


def padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """One batch of all prompts; what is padded comes behind, where no model looks.

    Returns:
        Token ids ``(prompts, tokens)``, and of every prompt the place of its last token.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor(
        [prompt + prompt[-1:] * (longest - len(prompt)) for prompt in prompts], device=CPU
    )
    return ids, torch.tensor([len(prompt) - 1 for prompt in prompts], device=CPU)


def write_first_tokens(
    directory: Path,
    outside: Path,
    decoder: Decoder,
    read_block: Callable[[int, Decoder], nn.Module],
) -> dict[str, str]:
    """Compute and write them.

    Args:
        directory: the model directory, its blocks written.
        outside: the file in it of embeddings, final norm and head.
        decoder: the model that was quantized: embeddings, final norm, head.
        read_block: gives a finished block of a decoder, on the CPU.

    Returns:
        The file's checksum under its name; nothing, and no file, if a logit is not finite.
    """
    if decoder.dtype != torch.float32:
        decoder = Decoder(str(decoder.directory), torch.float32)
        decoder.checkpoint.read_from(outside)  # rounded to the model's dtype, as it is loaded
    prompts = draw_prompts(int(decoder.config.vocab_size), decoder.max_positions)
    return _write(directory, prompts, _last_logits(decoder, read_block, prompts))


def _write(directory: Path, prompts: list[list[int]], logits: Tensor) -> dict[str, str]:
    if not logits.isfinite().all():
        return {}  # whoever measures the model is told
    write_json(directory / LOGITS, asdict(FirstTokens.of(prompts, logits)))
    return first_tokens_checksum(directory)


@torch.no_grad()
def add_first_tokens(directory: Path, model: Any) -> dict[str, str]:
    """Compute and write those of a model that lies in memory whole.

    Args:
        directory: where the file goes.
        model: a quantized model in float32 on the CPU, run by the reference backend.

    Returns:
        As :func:`write_first_tokens`.
    """
    config = model.config
    positions = int(getattr(config, "max_position_embeddings", None) or 2**31)
    prompts = draw_prompts(int(config.vocab_size), positions)
    ids, last = padded(prompts)
    logits = model(input_ids=ids, use_cache=False).logits
    return _write(directory, prompts, logits[torch.arange(len(last), device=CPU), last])


def read_first_tokens(directory: Path) -> FirstTokens:
    """Read them.

    Raises:
        ValueError: if the directory or the file is missing, or the file is damaged.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} is no directory: give that of a quantized model, RUN/model")
    if not (directory / LOGITS).exists():
        raise ValueError(
            f"{directory} has no {LOGITS}; if an earlier release quantized it: "
            f"python cli.py export --run RUN --to native"
        )
    return read_json(directory / LOGITS, FirstTokens)


def first_tokens_checksum(directory: Path) -> dict[str, str]:
    """The file's checksum under its name; nothing where there is no file."""
    file = directory / LOGITS
    return {PART: xxh3_64_hexdigest(file.read_bytes())} if file.is_file() else {}


@torch.no_grad()
def _last_logits(
    decoder: Decoder,
    read_block: Callable[[int, Decoder], nn.Module],
    prompts: list[list[int]],
) -> Tensor:
    """Logits behind every prompt, ``(prompts, vocab)``, one block in memory at a time."""
    ids, last = padded(prompts)
    hidden = decoder.embed(ids, CPU)
    contexts = decoder.contexts(ids.shape[1], CPU)
    decoder.release()
    for index in range(decoder.num_blocks):
        block = read_block(index, decoder)
        configure_execution([block], Execution("reference", "packed"))
        hidden = run_block(block, hidden, contexts[index], CPU)
        del block  # before the next one is read
    final = hidden[torch.arange(len(last), device=CPU), last]
    logits = decoder.logits(final.unsqueeze(1)).squeeze(1)
    decoder.release()
    return logits
