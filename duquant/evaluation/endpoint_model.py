"""lm-eval measures a model behind an endpoint.

:class:`EndpointModel` is lm-eval's ``local-completions``: what is asked and how it is scored is
lm-eval's own. Different are the connection (the one that ``mtbench`` uses: bounded, patient, every
failure in one line), the tokens (as for a loaded model, so both get the same prompts), and that it
counts what it does. A request holds several prompts, which the server runs together.
"""

import copy
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI
from torch import Tensor

from duquant.evaluation.harness import Ticker
from duquant.evaluation.options import BatchSize
from duquant.evaluation.perplexity import first_scored
from duquant.evaluation.served_source import ServedSource
from duquant.evaluation.silence import silence
from duquant.model.tokenizer import require_known_tokens

PROMPTS_AT_ONCE = 16
"""Prompts of a request."""
PROBE = "The first question is: what is 7 + 5?"
"""A text that says whether the server scores prompts, and makes the same tokens of them."""


class EndpointModel(LocalCompletionsAPI):
    """A served model as lm-eval sees it.

    Args:
        source: the model.
        batch_size: prompts of a request; "auto" is :data:`PROMPTS_AT_ONCE`.
        on_request: called after every answered request.
    """

    arithmetic = "the server's"
    kv_cache = "the server's"

    def __init__(
        self,
        source: ServedSource,
        batch_size: BatchSize = "auto",
        on_request: Callable[[], Any] | None = None,
    ) -> None:
        with silence():
            super().__init__(
                base_url=source.endpoint.url,
                tokenizer_backend="huggingface",
                model=source.name,
                tokenizer=source.tokenizer.name_or_path,
                batch_size=PROMPTS_AT_ONCE if batch_size == "auto" else batch_size,
                max_length=source.max_length + 1,
                max_retries=1,  # the connection repeats by itself
            )
        self.source, self.tokenizer, self.add_bos_token = source, source.tokenizer, None
        self.num_truncated = 0
        self.set_cache_hook(Ticker(on_request))

    def tok_encode(self, string: Any, *args: Any, **options: Any) -> Any:
        """Token ids of a text, or of several, as for a loaded model.

        Raises:
            ValueError: if one of them is none of the model's.
        """
        if not isinstance(string, str):
            return [self.tok_encode(each) for each in string]
        tokens: list[int] = HFLM.tok_encode(self, string, *args, **options)
        require_known_tokens(tokens, self.source.vocab_size, self.tokenizer)
        return tokens

    def model_call(
        self,
        messages: list[list[int]],
        *,
        generate: bool = True,
        gen_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Send lm-eval's request; returns the answer.

        Raises:
            ValueError: if the server refuses or does not answer, in one line.
        """
        payload = self._create_payload(
            self.create_message(messages),
            generate=generate,
            gen_kwargs=copy.deepcopy(gen_kwargs),
            seed=self._seed,
            eos=self.eos_string,
            **options,
        )
        lengths = None if generate else [len(message) for message in messages]
        read = partial(_completions, len(messages), lengths)
        return json.loads(self.source.endpoint.ask(payload, path="/completions", read=read))

    def batch_loglikelihood_requests(self, chunks: Any) -> Any:
        """Prompts of a request; those that are too long lose their beginning, and are counted."""
        chunks = [list(chunk) for chunk in chunks]
        lengths = [len(context) + len(end) for chunk in chunks for _, context, end in chunk]
        self.num_truncated += sum(length > self.max_length for length in lengths)
        return super().batch_loglikelihood_requests(chunks)

    def losses(
        self,
        windows: Tensor,
        num_scored: int | None = None,
        on_windows: Callable[[int], Any] | None = None,
    ) -> list[float]:
        """Mean negative log-likelihood of each window ``(windows, tokens)``.

        Args:
            windows: token ids.
            num_scored: predictions of a window that count, from its end (default: all).
            on_windows: told how many windows have just been scored.
        """
        first = first_scored(windows, num_scored)
        losses = []
        for chunk in windows.split(self._batch_size):
            rows = [(None, row[: first + 1], row[first + 1 :]) for row in chunk.tolist()]
            with silence():
                scores = self._loglikelihood_tokens(rows)
            losses += [-score / (windows.shape[1] - 1 - first) for score, _ in scores]
            if on_windows is not None:
                on_windows(len(chunk))
        return losses

    def holds(self, prompt: str) -> bool:
        """Whether a prompt fits into the context."""
        return len(self.tok_encode(prompt)) <= int(self.max_length)


def require_scores(source: ServedSource) -> None:
    """Check by one short request that a server gives what log-likelihoods are made of.

    Raises:
        ValueError: if it does not, or if it reads other words out of our tokens.
    """
    model = EndpointModel(source, 1)
    tokens = source.tokenizer.encode(PROBE, add_special_tokens=False)
    (choice,) = model.model_call([tokens], generate=False)["choices"]
    if PROBE not in str(choice.get("text")):
        raise ValueError(
            f"the endpoint {source.endpoint.shown} reads {str(choice.get('text'))[:60]!r} in "
            f"tokens that mean {PROBE!r}: give the served model's own tokenizer as --tokenizer"
        )


def _completions(count: int, lengths: Sequence[int] | None, body: bytes) -> str:
    """An answer that has a completion of each prompt and, given their lengths, its scores."""
    text = body.decode("utf-8", "replace")
    try:
        choices = sorted(json.loads(text)["choices"], key=lambda choice: choice["index"])
        is_whole = [choice["index"] for choice in choices] == list(range(count))
        if lengths is None:
            is_whole = is_whole and all(isinstance(choice["text"], str) for choice in choices)
        else:
            is_whole = is_whole and all(map(_is_scored, choices, lengths))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        wanted = "completions" if lengths is None else "log-probabilities of every prompt's tokens"
        raise ValueError(f"an answer that holds no {wanted}")
    return text


def _is_scored(choice: dict[str, Any], length: int) -> bool:
    """Whether every token of the prompt but the first, and one more, has its scores."""
    scores, best = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
    return (
        len(scores) == len(best) == length + 1
        and all(isinstance(score, int | float) for score in scores[1:])
        and all(tops for tops in best[1:])
    )
