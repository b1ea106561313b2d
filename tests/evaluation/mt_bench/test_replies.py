"""Replies are kept by what was asked; an earlier run shows that there is a judge."""

from pathlib import Path

from duquant.evaluation.mt_bench.endpoint import ChatEndpoint, RequestPolicy
from duquant.evaluation.mt_bench.replies import Replies
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
