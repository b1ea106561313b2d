"""What an evaluation measures: models that are loaded here, or served elsewhere, on texts."""

from typing import Any

from duquant.compute_device import find_device
from duquant.data.datamodule import CalibrationDataModule
from duquant.evaluation.endpoint_model import EndpointModel
from duquant.evaluation.harness import EvaluatedModel
from duquant.evaluation.loaded_model import ModelSource
from duquant.evaluation.request import EvaluationRequest
from duquant.evaluation.served_source import ServedSource
from duquant.model.tokenizer import require_known_tokens

LONGEST_WINDOW = 2048
Source = ModelSource | ServedSource


def find_sources(request: EvaluationRequest) -> list[Source]:
    """The model that is meant, and the one to compare it with.

    Raises:
        ValueError: as both of their ``find``.
    """
    first: Source
    if request.endpoint is not None:
        first = ServedSource.find(request.endpoint, request.served_model, request.tokenizer)
    else:
        first = ModelSource.find(request.source, request.tokenizer)
    second = (
        [] if request.compare is None else [ModelSource.find(request.compare, request.tokenizer)]
    )
    return [first, *second]


def make_ready(source: Source, request: EvaluationRequest, on_request: Any) -> Any:
    """A model that can be measured: loaded, or connected."""
    if isinstance(source, ServedSource):
        return EndpointModel(source, request.batch_size, on_request)
    model = source.load(request.dtype, request.device, request.backend)
    return EvaluatedModel(source, model, request.batch_size, on_request)


def arithmetic(source: Source, request: EvaluationRequest) -> dict[str, str | None]:
    """How it computes, as far as that is asked for here."""
    if isinstance(source, ServedSource):
        return {"dtype": "the server's", "device": None, "backend": None}
    return {
        "dtype": request.dtype,
        "device": find_device(request.device).type,
        "backend": request.backend if source.recipe is not None else None,
    }


def find_texts(
    source: Source, request: EvaluationRequest, longest: int
) -> CalibrationDataModule | None:
    """Windows of the texts whose perplexity is asked for.

    Args:
        source: whose tokenizer and vocabulary.
        request: what is asked for.
        longest: tokens of a window, unless the request says how many.

    Raises:
        ValueError: if a window is longer than the model can read, or has a token it does not know.
    """
    if not request.perplexity:
        return None
    length = request.sequence_length or min(LONGEST_WINDOW, longest)
    if length > source.max_length:
        behind = isinstance(source, ServedSource)
        room = f"has {source.max_length} positions"
        if behind:
            room = f"takes {source.max_length} tokens of a prompt, as one more is generated"
        raise ValueError(f"sequence_length is {length}, but the model {room}")
    texts = CalibrationDataModule(
        request.tokenizer or source.tokenizer.name_or_path,
        validation=request.perplexity,
        sequence_length=length,
        validation_windows=request.perplexity_windows,
        stride=request.stride,
    )
    for name in texts.validation:
        tokens = [int(texts.corpus_windows(name).max())]
        require_known_tokens(tokens, source.vocab_size, source.tokenizer)
    return texts
