"""An endpoint is asked again where that may help, and the key stays where it belongs."""

import socket
from typing import Any

import pytest

from duquant.evaluation.mt_bench.credentials import key_from_environment
from duquant.evaluation.mt_bench.endpoint import ChatEndpoint, RequestPolicy
from tests.judge_server import KEY, judge_server

MESSAGES = [{"role": "system", "content": "be fair"}, {"role": "user", "content": "which?"}]


def endpoint(url: str, waits: list[float], **policy: Any) -> ChatEndpoint:
    settings = {"timeout": 0.2, "retries": 4, **policy}
    return ChatEndpoint(url, "judge", KEY, RequestPolicy(**settings), waits.append)


def ask(client: ChatEndpoint) -> str:
    return client.ask(client.payload(MESSAGES))


def test_a_request_of_the_protocol() -> None:
    with judge_server("fine") as server:
        assert ask(endpoint(server.url, [])) == "fine"
    assert server.keys == [f"Bearer {KEY}"]
    assert server.requests == [
        {
            "model": "judge",
            "messages": MESSAGES,
            "n": 1,
            "temperature": 0.0,
            "max_tokens": 2048,
        }
    ]


def test_null_leaves_the_choice_to_the_endpoint() -> None:
    payload = endpoint("http://x", [], temperature=None, max_tokens=None).payload(MESSAGES)
    assert set(payload) == {"model", "messages", "n"}


@pytest.mark.parametrize("failure", [429, 500, 503, "drop", "late", "garbage"])
def test_what_may_pass_is_repeated(failure: str | int) -> None:
    waits: list[float] = []
    with judge_server(failure, "fine") as server:
        assert ask(endpoint(server.url, waits)) == "fine"
    assert len(server.requests) == 2
    assert waits == [1.0]


def test_delays_double_up_to_a_minute_and_end() -> None:
    waits: list[float] = []
    with (
        judge_server(*[500] * 9) as server,
        pytest.raises(ValueError, match="failed 9 times, at last with HTTP 500"),
    ):
        ask(endpoint(server.url, waits, retries=8))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(("header", "wait"), [("7", 7), ("600", 60), ("Wed, 21 Oct", 1)])
def test_server_says_how_long_to_wait(header: str, wait: float) -> None:
    waits: list[float] = []
    with judge_server(429, "fine") as server:
        server.headers["Retry-After"] = header
        ask(endpoint(server.url, waits))
    assert waits == [wait]


@pytest.mark.parametrize(("status", "remedy"), [(401, "OPENAI_API_KEY"), (400, "--judge_model")])
def test_what_will_not_pass_ends_at_once(status: int, remedy: str) -> None:
    waits: list[float] = []
    with (
        judge_server(status) as server,
        pytest.raises(ValueError, match=f"HTTP {status}.*{remedy}") as refusal,
    ):
        ask(endpoint(server.url, waits))
    assert KEY not in str(refusal.value), "the server repeats the key; we must not"
    assert waits == []


def test_wrong_path() -> None:
    with judge_server() as server, pytest.raises(ValueError, match=r"HTTP 404.*--endpoint"):
        ask(endpoint(f"{server.url}/v2", []))


def test_a_completion_without_text_is_empty() -> None:
    with judge_server("null") as server:
        assert ask(endpoint(server.url, [])) == ""


def test_check() -> None:
    with judge_server() as server:
        endpoint(server.url, []).check()
        endpoint(f"{server.url}/chat/completions", []).check()
        with pytest.raises(ValueError, match=r"HTTP 401.*OPENAI_API_KEY"):
            ChatEndpoint(server.url, "judge", "wrong").check()


def test_nobody_there() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(ValueError, match=r"cannot be reached .connection failed"):
            endpoint(url, []).check()


def test_bad_address_and_numbers() -> None:
    with pytest.raises(ValueError, match=r"endpoint is 'api.openai.com'"):
        endpoint("api.openai.com", [])
    for name, value in {"timeout": 0, "retries": -1, "first_delay": -1, "max_tokens": 0}.items():
        with pytest.raises(ValueError, match=f"request.{name} is {value}"):
            RequestPolicy(**{name: value})
    with pytest.raises(ValueError, match="temperature is -1"):
        RequestPolicy(temperature=-1)


def test_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert key_from_environment() == KEY
    assert KEY not in repr(endpoint("http://x", []))
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
        key_from_environment()
