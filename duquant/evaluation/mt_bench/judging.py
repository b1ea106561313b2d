"""Let the judge read every match that it has not judged yet.

A judgment is kept as long as it is of the same prompts: if a model has answered anew, or the
prompts have changed, its old judgments are dropped from the file and asked for again. A reply
without a verdict is asked for again a few times and then recorded as malformed, which is a result
too: the next run does not ask again.
"""

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from duquant.evaluation.mt_bench.endpoint import UnreadableReply
from duquant.evaluation.mt_bench.json_lines import (
    Record,
    append_record,
    recover_records,
    rewrite_records,
)
from duquant.evaluation.mt_bench.judgments import has_verdict, match_key
from duquant.evaluation.mt_bench.matches import Match, MatchKey
from duquant.evaluation.mt_bench.progress import StepProgress
from duquant.evaluation.mt_bench.replies import Replies
from duquant.evaluation.mt_bench.verdicts import NO_SCORE, score, winner

WINNERS = ({"A": "model_1", "B": "model_2"}, {"A": "model_2", "B": "model_1"})
"""Who A and B are, in the first order and in the second."""
UNREAD = 2
"""Matches whose reply cannot be read, before any could be, that end a run."""


def judge_matches(
    matches: list[Match],
    path: Path,
    judge: str,
    replies: Replies,
    attempts: int,
    parallel: int,
) -> int:
    """Judge what is not judged yet.

    Args:
        matches: what to judge.
        path: the file of judgments, in FastChat's schema.
        judge: the judge's name.
        replies: asks the judge.
        attempts: replies asked for at most, until one has a verdict.
        parallel: requests at a time.

    Returns:
        How many of the matches are judged without a verdict.

    Raises:
        ValueError: if the endpoint does not answer, or nothing that it says can be read; what was
            judged before is kept.
    """
    done = keep_current(path, matches, judge)
    left = [match for match in matches if match.key not in done]
    with StepProgress("judging", len(matches), done=len(matches) - len(left)) as progress:

        def judge_some(some: list[Match]) -> list[Match]:
            """Judge these matches; returns those whose judge could not be understood yet."""
            aside = []
            work = partial(judge_match, judge=judge, replies=replies, attempts=attempts)
            with closing(_in_parallel(work, some, parallel, replies)) as found:
                for match, record in found:
                    if record is None:
                        aside.append(match)
                        continue
                    append_record(path, record)
                    progress.step(f"question {match.question_id}, turn {match.turn}")
            return aside

        aside = judge_some(judge_some(left))
    if aside:
        raise ValueError(
            f"{replies.received} holds a reply to each of {len(aside)} questions and turns that "
            f"are left, and none of them can be read: check --endpoint, then remove that file"
        )
    return sum(not has_verdict(found) for found in keep_current(path, matches, judge).values())


def _in_parallel(
    work: Callable[[Match], Record],
    matches: list[Match],
    parallel: int,
    replies: Replies,
) -> Generator[tuple[Match, Record | None], None, None]:
    """What each match gives, in the order they are done; the first error ends all that follow.

    A match gives nothing if its reply cannot be read and none could be so far. Where that is so of
    several matches, or of all, there is no judge but something else at that address.
    """
    stopped = threading.Event()
    unread: list[UnreadableReply] = []

    def guarded(match: Match) -> Record | None:
        try:
            return None if stopped.is_set() else work(match)
        except UnreadableReply as error:
            if error.is_stored:
                return None
            unread.append(error)
            if len(unread) < UNREAD or replies.has_read:
                return None
            stopped.set()
            raise
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(parallel) as pool:
        futures = {pool.submit(guarded, match): match for match in matches}
        try:
            for future in as_completed(futures):
                record = future.result()
                if record is not None or not stopped.is_set():
                    yield futures[future], record
        finally:
            stopped.set()
    if unread and not replies.has_read:
        raise unread[0]


def keep_current(path: Path, matches: list[Match], judge: str) -> dict[MatchKey, Record]:
    """Drop judgments of these matches that are of other prompts; returns those that are left."""
    wanted = {match.key: match for match in matches}
    records = recover_records(path)
    kept, done = [], {}
    for record in records:
        key = match_key(record, str(path))
        if key in wanted and not _is_of(record, wanted[key], judge):
            continue
        kept.append(record)
        if key in wanted:
            done[key] = record
    if len(kept) < len(records):
        rewrite_records(path, kept)
    return done


def judge_match(match: Match, judge: str, replies: Replies, attempts: int) -> Record:
    """A judgment in FastChat's schema, of one game or, for two models, of two."""
    common = {
        "judge": [judge, match.prompt.name],
        "turn": match.turn,
        "tstamp": time.time(),
    }
    if len(match.models) == 1:
        judgment = _ask(match, 0, replies, attempts, lambda text: score(text) != NO_SCORE)
        return {
            "question_id": match.question_id,
            "model": match.models[0],
            "user_prompt": match.user_prompts[0],
            "judgment": judgment,
            "score": score(judgment),
            **common,
        }
    record: dict[str, Any] = {
        "question_id": match.question_id,
        "model_1": match.models[0],
        "model_2": match.models[1],
    }
    for game, names in enumerate(WINNERS):
        judgment = _ask(match, game, replies, attempts, lambda text: winner(text) != "error")
        verdict = winner(judgment)
        record[f"g{game + 1}_winner"] = names.get(verdict, verdict)
        record[f"g{game + 1}_user_prompt"] = match.user_prompts[game]
        record[f"g{game + 1}_judgment"] = judgment
    return {**record, **common}


def _ask(
    match: Match,
    game: int,
    replies: Replies,
    attempts: int,
    has_verdict: Callable[[str], bool],
) -> str:
    judgment = ""
    for attempt in range(attempts):
        judgment = replies.ask(match.prompt.system, match.user_prompts[game], attempt)
        if has_verdict(judgment):
            break
    return judgment


def _is_of(record: Record, match: Match, judge: str) -> bool:
    names = ("user_prompt",) if len(match.models) == 1 else ("g1_user_prompt", "g2_user_prompt")
    prompts = tuple(record.get(name) for name in names)
    return prompts == match.user_prompts and record.get("judge") == [judge, match.prompt.name]
