"""The Hugging Face hub: whether it answers at all.

Its libraries try for half a minute to reach a hub that is not there, and only then look into their
caches or give up. One short question comes before them, so without a network a cached model or text
is used at once and a missing one is reported at once.
"""

from functools import cache
from queue import Empty, SimpleQueue
from threading import Thread

from huggingface_hub import constants, get_session

PATIENCE = 4.0
"""Seconds the hub has to answer."""


@cache
def hub_answers() -> bool:
    """Whether the hub answers in time, asked once per process.

    It does not in the libraries' own offline mode. A silent name server and every address behind a
    name have timeouts of their own, which add up, so the clock is watched from outside.
    """
    answer: SimpleQueue[bool] = SimpleQueue()
    Thread(target=lambda: answer.put(_ask()), daemon=True).start()
    try:
        return answer.get(timeout=PATIENCE)
    except Empty:
        return False


def _ask() -> bool:
    try:
        response = get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # whatever the network or its absence comes up with
        return False
    return not response.is_server_error
