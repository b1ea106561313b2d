"""Nothing of a key is ever seen, whatever it is and whoever repeats it."""

import json
import logging
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from callbacks import endings, joint_failure
from duquant.evaluation.mt_bench import commands
from duquant.evaluation.mt_bench.credentials import (
    Cover,
    checked_key,
    key_from_environment,
    shown_address,
    without_keys,
)
from duquant.evaluation.mt_bench.endpoint import ChatEndpoint, RequestPolicy
from tests.chat_bench import write_bench, write_references
from tests.hostile_server import CHUNKED, OK, answer, completion, hostile_server

PART = 6
"""Characters of a key in a row that nobody may see."""
FAST = RequestPolicy(retries=1, first_delay=0.0, timeout=5.0)
SECRET = "sk-proj-4f9A_xYz-7Q"

keys = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=PART, max_size=48)
anything = st.text(st.characters(exclude_categories=()), max_size=48)

ECHOES: dict[str, Callable[[str], bytes]] = {
    "refused": lambda key: answer(f"no key: {key}.".encode(), status="401 No"),
    "refused in JSON": lambda key: answer(json.dumps({"e": key}).encode(), status="403 No"),
    "only its beginning": lambda key: answer(f"{key[:-2]}*** no".encode(), status="401 No"),
    "only its end": lambda key: answer(f"no ***{key[2:]}".encode(), status="400 No"),
    "in chunks": lambda key: answer(f"{key[:7]} {key[7:]}".encode(), status="404 No"),
    "redirected": lambda key: answer(b"", f"Location: http://h/{key}", status="307 There"),
    "failing": lambda key: answer(key.encode(), f"X-Key: {key}", status=f"500 {key}"),
    "later": lambda key: answer(b"", f"Retry-After: {key}", status="429 Slow"),
    "as status": lambda key: f"HTTP/1.1 {key}\r\n\r\n".encode(),
    "as header": lambda key: OK + key.encode() + b"\r\n\r\n" + completion(),
    "as chunk": lambda key: CHUNKED + key.encode() + b"\r\n",
    "as encoding": lambda key: answer(completion(), f"Content-Encoding: {key}"),
    "unreadable": lambda key: answer(json.dumps([key]).encode()),
    "replied": lambda key: answer(completion(f"your key is {key}")),
    "judged": lambda key: answer(completion(f"{key}: [[7]]")),
}
"""What a server says that was given a key."""


def parts(secret: str) -> list[str]:
    return [secret[i : i + PART] for i in range(len(secret) - PART + 1)]


def chain(error: BaseException | None) -> Iterator[str]:
    """Everything an error can tell, and those that it came from."""
    while error is not None:
        yield from (str(error), repr(error), "".join(traceback.format_exception(error)))
        yield from (repr(value) for value in (error.args, vars(error)))
        error = error.__cause__ or error.__context__


def judge_everything(url: str, key: str) -> str:
    """Judge against a server; returns all that was raised, and all that was written to files."""
    said = []
    with tempfile.TemporaryDirectory() as directory:
        bench = write_bench(Path(directory), "alpha")
        references = write_references(bench.path)
        options: dict[str, Any] = {"limit": 1, "output_dir": bench.path, "request": FAST}
        with mock.patch.dict("os.environ", {"OPENAI_API_KEY": key}):
            said.append(repr(ChatEndpoint(url, "judge", key, FAST)))
            try:
                commands.judge(url, "judge", references, attempts=2, **options)
            except ValueError as error:
                said += chain(error)
                with (
                    mock.patch.object(joint_failure, "complain", said.append),
                    pytest.raises(SystemExit),
                ):
                    endings.fail(str(error))
        files = [file for file in Path(directory).rglob("*") if file.is_file()]
        said += [file.name + file.read_text(encoding="utf-8") for file in files]
    return "\n".join(said)


@pytest.mark.parametrize("echo", ECHOES)
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=keys)
def test_whatever_a_server_repeats(
    echo: str, key: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    with hostile_server(lambda: [ECHOES[echo](key)]) as server:
        said = judge_everything(server.url, key)
        sent = b"".join(server.requests)
    assert f"Authorization: Bearer {key}".encode() in sent
    shown = said + "".join(capsys.readouterr()) + caplog.text
    ours = our_words()
    assert [part for part in parts(key) if part in shown and part not in ours] == []


@cache
def our_words() -> str:
    """What files and messages say anyway, so that a key may say it too."""
    said = []
    for echo in ECHOES.values():
        with hostile_server(lambda echo=echo: [echo("any-text")]) as server:
            said.append(judge_everything(server.url, "any-text"))
    return "\n".join(said)


@given(text=anything)
def test_what_cannot_be_a_key_is_refused_without_a_word_of_it(text: str) -> None:
    stripped = text.strip()
    is_key = stripped.isascii() and stripped.isprintable() and " " not in stripped
    assume(not is_key)
    for use in (checked_key, lambda key: ChatEndpoint("http://127.0.0.1:9", "judge", key)):
        with pytest.raises(ValueError, match=r"\Athe environment variable OPENAI_API_KEY") as error:
            use(text)
        said = "\n".join(line for line in chain(error.value) if "use(text)" not in line)
        assert "\n" not in str(error.value)
        assert not any(part in said for part in parts(text) if not part.isascii())
        assert not any(part in str(error.value) for part in parts(text))


MIDDLES = ["\n", "\r\n", "\t", " ", "\0", "\x1b", "\x7f", "\xa0", "é", "€", "🔑", "\udc80"]


@pytest.mark.parametrize("middle", MIDDLES)
def test_members_of_that_kind(middle: str) -> None:
    with pytest.raises(ValueError, match="holds more than a key") as error:
        ChatEndpoint("http://127.0.0.1:9", "judge", SECRET[:9] + middle + SECRET[9:])
    assert not any(part in line for line in chain(error.value) for part in parts(SECRET))


@pytest.mark.parametrize("around", ["", "\n", "\r\n", " \t\n"])
def test_space_around_a_key_is_no_part_of_it(around: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", around + SECRET + around)
    assert key_from_environment() == SECRET
    monkeypatch.setenv("OPENAI_API_KEY", around)
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
        key_from_environment()


ADDRESSES = [
    f"http://me:{SECRET}@{{host}}/v1",
    f"http://{SECRET}@{{host}}/v1",
    f"http://{SECRET}:me@{{host}}/v1/chat/completions",
    f"http://{{host}}/v1?api_key={SECRET}",
    f"http://{{host}}/v1?a=b&key={SECRET}&c=d",
    f"http://{{host}}/v1?{SECRET}",
    f"http://{{host}}/v1#{SECRET}",
    f"http://me:p%40{SECRET}@{{host}}/v1?k=p%26{SECRET}",
]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("kind", ["works", "401", "500", "garbage", "headers", "nobody"])
def test_secrets_of_an_address(
    address: str,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where the server repeats the whole request, and where logs are wanted in full."""
    caplog.set_level(logging.DEBUG)
    with hostile_server(lambda: [reply()]) as server:

        def reply() -> bytes:
            asked = server.requests[-1]
            return {
                "works": answer(completion("[[7]] " + asked.decode("latin-1"))),
                "401": answer(asked, status="401 No"),
                "500": answer(asked, status="500 No"),
                "garbage": answer(asked),
                "headers": OK + b"X: " + asked.split(b"\r\n")[0] + b"\r\nno header\r\n\r\n",
                "nobody": b"",
            }[kind]

        url = address.format(host=server.url.split("/")[2])
        said = judge_everything(url, "any-text")
        sent = b"\n".join(server.requests).decode()
    shown = said + "".join(capsys.readouterr()) + caplog.text
    assert not any(part in shown for part in parts(SECRET))
    assert "Authorization: Bearer any-text" in sent
    assert ("?" in address) == (SECRET in sent), "a query is sent, a password is not"
    posts = re.findall(r"POST (\S+)", sent)
    assert all(re.match(r"/v1/chat/completions(\?|$)", path) for path in posts)


@pytest.mark.parametrize(
    "address",
    [
        SECRET,
        f"htps://me:{SECRET}@host",
        f"me:{SECRET}@host/v1",
        f"http://me:{SECRET}/x@host",
        f"http://me:{SECRET}?x@host",
        f"http://h:{SECRET}",
        f"http://[::1?key={SECRET}",
        f"http://ho st?key={SECRET}",
        f"http://host\n?key={SECRET}",
        f"http:///v1?key={SECRET}",
        f"https://?key={SECRET}",
        f"http://host:99999?key={SECRET}",
    ],
)
def test_no_address_and_no_secret_of_it(address: str) -> None:
    key = SECRET if address in (SECRET, f"http://h:{SECRET}") else "any-text"
    with pytest.raises(ValueError, match=r"\Aendpoint is '.*'; an address looks like") as error:
        ChatEndpoint(address, "judge", key)
    assert not any(part in line for line in chain(error.value) for part in parts(SECRET))


@given(text=anything)
def test_any_text_as_an_address(text: str) -> None:
    for url in (text, "http://" + text, f"https://a:{text}@host/v1", f"http://host?k={text}"):
        shown = shown_address(url)
        assert "@" not in shown
        assert "?" not in shown
        try:
            ChatEndpoint(url, "judge", "any-text")
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017


@given(key=keys, before=anything, after=anything)
def test_covered_texts_share_no_part_with_a_key(key: str, before: str, after: str) -> None:
    text = before + key + after + key[1:] + key[:-1] + before
    for covered in (Cover(key).parts(text), Cover(key, "other-secret").parts(text)):
        assert not any(part in covered for part in parts(key))
    assert key not in Cover(key).whole(text)


@pytest.mark.parametrize(
    "message",
    [
        f"unrecognized arguments: --api_key {SECRET}",
        f"unrecognized arguments: --request.API-KEY={SECRET} --x",
        f"unrecognized arguments: --token {SECRET}",
        f'Parser key "request.timeout": Expected a float. Got value: {SECRET}',
        f"there are no answers of {SECRET} in runs",
    ],
)
def test_a_key_in_the_wrong_place(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{SECRET}\n")
    assert not any(part in without_keys(message) for part in parts(SECRET))
    with mock.patch.object(joint_failure, "complain") as said, pytest.raises(SystemExit):
        endings.fail(message)
    assert not any(part in said.call_args[0][0] for part in parts(SECRET))


@pytest.mark.parametrize(
    "message",
    [
        "give a --tokenizer that has one",
        "--model.key_bits 16 is too much",
        "--max_new_tokens=7 is less",
        "--data.tokenizer ~/x is missing",
        "--keys_of none",
    ],
)
def test_options_that_hold_no_key_keep_their_words(message: str) -> None:
    assert without_keys(message) == message


@pytest.mark.parametrize("name", ["key", "api_key", "api-key", "apikey", "openai.key", "x_TOKEN",
                                  "token", "hf-token", "secret", "a.password"])  # fmt: skip
@pytest.mark.parametrize("between", ["=", " "])
def test_options_that_hold_one_do_not(name: str, between: str) -> None:
    said = without_keys(f"unrecognized arguments: --{name}{between}{SECRET} more")
    assert said == f"unrecognized arguments: --{name}{between}… more"
