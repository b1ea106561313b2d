"""Replies are kept by what was asked; an earlier run shows that there is a judge."""

from pathlib import Path
from typing import Any

import pytest

from duquant.evaluation.mt_bench import commands
from duquant.evaluation.mt_bench.endpoint import ChatEndpoint, RequestPolicy, UnreadableReply
from duquant.evaluation.mt_bench.json_lines import recover_records
from duquant.evaluation.mt_bench.replies import Replies
from tests.chat_bench import write_bench, write_references
from tests.judge_server import KEY, judge_server

POLICY = RequestPolicy(retries=1, first_delay=0.0)


def test_an_unreadable_reply_after_an_earlier_run_is_kept_and_not_asked_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "replies.jsonl"
    with judge_server("fine", "garbage", "garbage") as server:
        client = ChatEndpoint(server.url, "judge", KEY, POLICY)
        first = Replies(path, client)
        assert not first.has_read
        assert first.ask("be fair", "which?", 0) == "fine"
        for _ in range(2):  # runs that begin with a reply nobody can read
            again = Replies(path, client)
            assert again.has_read
            assert again.ask("be fair", "another?", 0) == ""
            assert again.ask("be fair", "which?", 0) == "fine"
        assert len(server.requests) == 3


def records(replies: Replies) -> list[str]:
    return [record["received"] for record in recover_records(replies.received)]


def test_everything_that_came_is_stored_before_it_is_read(tmp_path: Path) -> None:
    """The very first reply too, and every repetition; failures were not paid for."""
    path = tmp_path / "replies.jsonl"
    with judge_server("garbage", 500, "garbage", "garbage", "fine") as server:
        client = ChatEndpoint(server.url, "judge", KEY, POLICY)
        replies = Replies(path, client)
        with pytest.raises(ValueError, match="at last with HTTP 500"):
            replies.ask("be fair", "which?", 0)
        with pytest.raises(UnreadableReply) as first:
            replies.ask("be fair", "another?", 0)
        assert not first.value.is_stored
        assert len(records(replies)) == 3
        assert not path.exists()
        again = Replies(path, client)
        with pytest.raises(UnreadableReply) as second:
            again.ask("be fair", "another?", 0)
        assert second.value.is_stored
        assert len(server.requests) == 4
        assert again.ask("be fair", "a third?", 0) == "fine"
        assert again.ask("be fair", "another?", 0) == ""  # now there is a judge
        assert Replies(path, client).ask("be fair", "another?", 0) == ""
        assert len(server.requests) == 5
    assert [r["reply"] for r in recover_records(path)] == ["fine", ""]


@pytest.mark.parametrize(
    "text", ["[[7]]", "garbage", "null", "\udc80 half", "naïve 模型 \u2028", KEY]
)
def test_a_run_that_dies_after_it_was_paid_for_asks_for_nothing_again(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "replies.jsonl"
    with judge_server("fine", *[text] * 2) as server:
        client = ChatEndpoint(server.url, "judge", KEY, RequestPolicy(retries=0))
        Replies(path, client).ask("be fair", "which?", 0)

        def die(*_: object) -> str:
            raise KeyboardInterrupt

        with monkeypatch.context() as killed:
            killed.setattr("duquant.evaluation.mt_bench.endpoint.completion_text", die)
            with pytest.raises(KeyboardInterrupt):
                Replies(path, client).ask("be fair", "another?", 0)
        expected = {"garbage": "", "null": "", KEY: "…"}.get(text, text)
        for _ in range(2):
            assert Replies(path, client).ask("be fair", "another?", 0) == expected
        assert len(server.requests) == 2
    assert KEY not in Replies(path, client).received.read_text()


def test_replies_none_of_which_can_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run asks for what is not stored, until nothing is left to ask for."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    bench, references = write_bench(tmp_path, "alpha"), write_references(tmp_path)
    options: dict[str, Any] = {"output_dir": bench.path, "request": POLICY}
    client: Any = None
    with judge_server(*["garbage"] * 100) as server:
        for asked in (2, 4, 6):
            with pytest.raises(ValueError, match="no chat completion"):
                commands.judge(server.url, "judge", references, **options)
            assert (
                len(recover_records(Replies(bench.replies("judge"), client).received)) == 2 * asked
            )
        with pytest.raises(ValueError, match=r"none of them can be read: check --endpoint, then"):
            commands.judge(server.url, "judge", references, **options)
        assert len(server.requests) == 12
        server.script.clear()
        Replies(bench.replies("judge"), client).received.unlink()
        commands.judge(server.url, "judge", references, **options)
    assert len(recover_records(bench.judgments("judge", "single"))) == 6
