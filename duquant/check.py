"""``python -m duquant.check DIRECTORY``: does this host compute what the model's own card says?

A model directory holds the log-probabilities that its maker found behind 16 prompts
(:mod:`duquant.export.first_tokens`). Here the same prompts go through the model as this host runs
it, in float32, by transformers or by vLLM, and the two are compared.

**The bound.** In exact arithmetic all backends give the same numbers. In float32 they differ in
last bits, by about 1e-5 of a log-probability, until a last bit turns the rounding of an activation
over: from there on a prompt may differ by as much as two quantizations of the model. So a prompt
agrees if all its tokens differ by at most 0.001, and a host agrees if two of 16 do: another model,
other bits, a transform or a quantization left out, or half precision move every prompt by 0.05 and
more. Measured on models of 5 to 30 blocks: by the reference backend all prompts agree, whatever the
threads; by the integer backend 7 or 8 of 16 at 30 blocks, 15 and 16 at 8 and 5. Deep models turn
more roundings over, and very large ones may leave no prompt of the integer backend or a GPU as it
was; ``--backend reference`` on a CPU still tells whether the files are right.

**vLLM.** On CPUs it runs in its exact mode (:mod:`duquant.serving`), so it computes what
transformers computes with the same ``--backend``: at 30 blocks all 16 prompts agree within 3e-5 by
the reference backend, and 7 by the integer one, the same as in transformers. Elsewhere its own
kernels compute, and fewer prompts may agree.

It needs no extra, and exits with 0 where the host agrees, 1 where it does not, 2 where it cannot
be told.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch

from duquant.export.first_tokens import (
    FirstTokens,
    first_tokens_checksum,
    padded,
    read_first_tokens,
)
from duquant.export.hugging_face import register, set_execution
from duquant.json_files import read_json
from duquant.nn.execution import Backend
from duquant.plain_text import in_one_line
from duquant.terminal import complain, say
from duquant.user_paths import user_path

LARGEST_DIFFERENCE = 1e-3
"""Of a log-probability, for a prompt to agree."""
FEWEST_AGREEING = 1 / 8
"""Share of the prompts that must agree."""
ASKED_OF_VLLM = 20
"""Most probable tokens that vLLM gives at most, unless it is told otherwise."""
AGREES, DIFFERS, UNKNOWN = 0, 1, 2
Found = list[dict[int, float]]
"""Log-probabilities by token id, for every prompt; tokens may be missing."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Compare, show one table, and leave with the status."""
    options = _parser().parse_args(arguments)
    directory = user_path(options.directory)
    try:
        stored = _stored(directory)
        with redirect_stdout(sys.stderr):  # whatever libraries print
            found = (
                by_vllm(directory, stored.prompts, options.backend)
                if options.vllm
                else by_transformers(directory, stored, options.backend, options.device)
            )
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        complain(in_one_line(error))
        raise SystemExit(UNKNOWN) from None
    differences = largest_differences(stored, found)
    _show(differences, as_json=options.json)
    raise SystemExit(AGREES if agrees(differences) else DIFFERS)


def largest_differences(stored: FirstTokens, found: Found) -> list[float]:
    """Of every prompt, the largest difference of a stored token's log-probability.

    It is infinite where one is missing or is no number.
    """
    differences = []
    for tokens, numbers, ours in zip(stored.tokens, stored.log_probabilities, found, strict=True):
        each = [abs(ours.get(t, math.inf) - n) for t, n in zip(tokens, numbers, strict=True)]
        differences.append(math.inf if any(map(math.isnan, each)) else max(each))
    return differences


def agrees(differences: Sequence[float]) -> bool:
    """Whether enough prompts agree."""
    count = sum(difference <= LARGEST_DIFFERENCE for difference in differences)
    return count >= FEWEST_AGREEING * len(differences)


@torch.no_grad()
def by_transformers(
    directory: Path, stored: FirstTokens, backend: Backend = "auto", device: str = "cpu"
) -> Found:
    """What transformers computes here, of the stored tokens.

    Raises:
        ValueError: if the model cannot be loaded or run so.
    """
    from transformers import AutoModelForCausalLM

    register()
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    )
    set_execution(model, backend)
    vocab_size = int(model.config.vocab_size)
    if max(map(max, [*stored.prompts, *stored.tokens])) >= vocab_size:
        raise ValueError(f"{directory}: a token of logits.json is none of the model's {vocab_size}")
    ids, last = padded(stored.prompts)
    logits = model.to(device).eval()(input_ids=ids.to(device), use_cache=False).logits.cpu()
    numbers = logits[torch.arange(len(last), device=last.device), last].double().log_softmax(dim=-1)
    return [
        {token: float(row[token]) for token in tokens}
        for row, tokens in zip(numbers, stored.tokens, strict=True)
    ]


def by_vllm(directory: Path, prompts: list[list[int]], backend: Backend = "auto") -> Found:
    """What vLLM computes here: the most probable tokens behind every prompt.

    Prompts are padded to one length, as they were when their numbers were stored.

    Raises:
        ValueError: if vLLM is not installed.
    """
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    try:
        from vllm import LLM, SamplingParams
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ValueError(
            f'vLLM cannot be imported ({in_one_line(error)}): pip install "duquant[vllm]"'
        ) from error
    llm = LLM(
        str(directory),
        dtype="float32",
        skip_tokenizer_init=True,
        max_logprobs=ASKED_OF_VLLM,
        enforce_eager=True,  # compiling takes minutes, the prompts are over in seconds
        additional_config={  # see duquant.serving
            "duquant_backend": backend,
            "duquant_exact": current_platform.is_cpu(),
        },
    )
    asked = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        logprobs=ASKED_OF_VLLM,
        prompt_logprobs=ASKED_OF_VLLM,
        detokenize=False,
    )
    ids, last = padded(prompts)
    answers = llm.generate([{"prompt_token_ids": row} for row in ids.tolist()], asked)
    found = []
    for answer, place in zip(answers, last.tolist(), strict=True):
        behind = [*answer.prompt_logprobs[1:], answer.outputs[0].logprobs[0]]
        found.append({token: each.logprob for token, each in behind[place].items()})
    return found


def _stored(directory: Path) -> FirstTokens:
    """The directory's log-probabilities, if they are those that were written with it."""
    stored = read_first_tokens(directory)
    quantization = read_json(directory / "config.json", dict[str, Any]).get("quantization_config")
    checksums = quantization.get("checksums") if isinstance(quantization, dict) else None
    for part, checksum in first_tokens_checksum(directory).items():
        if isinstance(checksums, dict) and checksums.get(part, checksum) != checksum:
            raise ValueError(f"{directory}: {part} are not those that were stored with the model")
    return stored


def _show(differences: Sequence[float], *, as_json: bool) -> None:
    count = sum(difference <= LARGEST_DIFFERENCE for difference in differences)
    if as_json:
        shown = [difference if math.isfinite(difference) else None for difference in differences]
        record = {"agrees": agrees(differences), "agreeing": count, "differences": shown}
        say(json.dumps({**record, "largest_difference": LARGEST_DIFFERENCE}))
        return
    say("prompt  largest difference of a log-probability")
    for index, difference in enumerate(differences):
        is_far = difference > LARGEST_DIFFERENCE
        say(f"{index + 1:>6}  {difference:.5f}{'  differs' if is_far else ''}")
    verdict = "this host computes the model" if agrees(differences) else "THIS HOST DIFFERS"
    say(f"{verdict}: {count} of {len(differences)} prompts agree within {LARGEST_DIFFERENCE}")


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Leave with a mistake in one line, without the usage."""
        complain(message)
        raise SystemExit(UNKNOWN)


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="python -m duquant.check",
        description="Compare this host's log-probabilities with those that the model came with.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", help="a quantized model directory")
    parser.add_argument(
        "--vllm", action="store_true", help="run it in vLLM (default: transformers)"
    )
    parser.add_argument(
        "--backend", choices=get_args(Backend), default="auto", help="how it computes"
    )
    parser.add_argument("--device", default="cpu", help="where transformers computes")
    parser.add_argument("--json", action="store_true", help="print one line of JSON, no table")
    return parser


if __name__ == "__main__":
    main()
