"""Which model a server serves: what its list of models says.

``GET {url}/models`` names every model. vLLM adds where a model came from and how many tokens fit::

    {"data": [{"id": "runs/mine/model", "root": "runs/mine/model", "max_model_len": 8192}]}
"""

import json
from dataclasses import dataclass
from typing import Any

from duquant.evaluation.mt_bench.endpoint import ChatEndpoint
from duquant.plain_text import plain

LARGEST_LIST = 2**22
"""Bytes of a list of models that are read."""


@dataclass(frozen=True)
class ServedModel:
    """A model of a server.

    Attributes:
        name: what the server calls it.
        root: the directory or hub id that it was loaded from; the name where the server does not
            tell.
        max_length: tokens that fit, or ``None`` where the server does not tell.
    """

    name: str
    root: str
    max_length: int | None = None


def find_served_model(endpoint: ChatEndpoint, name: str | None = None) -> ServedModel:
    """The model of a server that is meant.

    Args:
        endpoint: the server.
        name: its name there; by default the only one.

    Raises:
        ValueError: if the server cannot be reached, refuses the key, serves no such model or
            several, or does not say which.
    """
    answer = endpoint.get("/models", LARGEST_LIST)
    served = {model.name: model for model in _models(answer.body)} if answer.status == 200 else {}
    if name is None and not served:
        raise ValueError(
            f"the endpoint {endpoint.shown} does not say which models it serves (HTTP "
            f"{answer.status}): check the address, which usually ends in /v1, or name the model by "
            f"--served_model"
        )
    if name is None and len(served) > 1:
        raise ValueError(
            f"the endpoint {endpoint.shown} serves {_listed(served)}: choose one by --served_model"
        )
    if name is not None and served and name not in served:
        raise ValueError(
            f"the endpoint {endpoint.shown} serves {_listed(served)}, not {name!r}: check "
            f"--served_model"
        )
    if name is None:
        (model,) = served.values()
        return model
    return served.get(name, ServedModel(name, name))


def _models(body: bytes) -> list[ServedModel]:
    """Models of a list, none where it is no list."""
    try:
        entries = json.loads(body)["data"]
        return [_model(entry) for entry in entries if isinstance(entry["id"], str)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []


def _model(entry: dict[str, Any]) -> ServedModel:
    root, length = entry.get("root"), entry.get("max_model_len")
    return ServedModel(
        entry["id"],
        root if isinstance(root, str) and root else entry["id"],
        length if isinstance(length, int) and length > 0 else None,
    )


def _listed(served: dict[str, ServedModel]) -> str:
    names = [plain(name)[:80] for name in served]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
