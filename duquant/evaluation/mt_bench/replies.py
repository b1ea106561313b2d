"""What a judge wrote, kept by what it was asked: nothing is paid for twice.

The key of a reply is a digest of the whole request. A run that was interrupted between the two
orders of a comparison, or after a malformed reply, finds what it has already; a changed answer or
prompt gives another request, which is asked anew.
"""

import hashlib
import json
import threading
import time
from functools import partial
from pathlib import Path

from duquant.evaluation.mt_bench.completion import completion_text
from duquant.evaluation.mt_bench.endpoint import ChatEndpoint, Payload, UnreadableReply
from duquant.evaluation.mt_bench.json_lines import Record, append_record, recover_records


class Replies:
    """Asks an endpoint, unless it has already answered; may be used by several threads.

    Whatever comes is stored before it is read, beside the replies. What came and could not be read
    is a reply without words, as soon as anything else that was asked has shown that this is a
    judge; until then it is kept, and not asked for again.

    Args:
        path: file of the replies.
        endpoint: who is asked.

    Attributes:
        received: file of all that came, as it came.
        has_read: whether the endpoint has given a reply that could be read, now or before.
    """

    def __init__(self, path: Path, endpoint: ChatEndpoint) -> None:
        self.path = path
        self.received = path.with_name(f"{path.stem}.received.jsonl")
        self.endpoint = endpoint
        self._lock = threading.Lock()
        replies = [r for r in recover_records(path) if _has_texts(r, "request", "reply")]
        self._known: dict[str, str] = {r["request"]: r["reply"] for r in replies}
        self._unread: dict[str, str] = {}
        self.has_read = any("received" not in record for record in replies)
        self._read_received()

    def _read_received(self) -> None:
        """Take up what came in runs that ended before they had read it."""
        for record in recover_records(self.received):
            if not _has_texts(record, "request", "received") or record["request"] in self._known:
                continue
            try:
                body = record["received"].encode("utf-8", "surrogateescape")
                self._known[record["request"]] = completion_text(body)
                self.has_read = True
            except ValueError:
                self._unread[record["request"]] = record["received"]

    def ask(self, system: str, user: str, attempt: int) -> str:
        """The reply to a prompt.

        Args:
            system: system prompt.
            user: user prompt.
            attempt: counts replies to the same prompt, from 0.

        Raises:
            UnreadableReply: if what came cannot be read, and nothing could be so far.
            ValueError: if the endpoint does not answer.
        """
        said = {"system": system, "user": user}
        messages = [{"role": role, "content": text} for role, text in said.items()]
        payload = self.endpoint.payload(messages)
        request = _digest(payload, attempt)
        with self._lock:
            if request in self._known:
                return self._known[request]
            unread = self._unread.get(request)
        record: Record = {"request": request, "reply": "", "tstamp": time.time()}
        try:
            if unread is not None:
                raise UnreadableReply(f"a reply in {self.received} cannot be read", unread, True)
            record["reply"] = self.endpoint.ask(payload, partial(self._keep, request))
            self.has_read = True
        except UnreadableReply as error:
            self._unread[request] = record["received"] = error.received
            if not self.has_read:
                raise
        reply: str = record["reply"]
        with self._lock:
            self._known[request] = reply
            append_record(self.path, record)
        return reply

    def _keep(self, request: str, received: str) -> None:
        record = {"request": request, "received": received, "tstamp": time.time()}
        with self._lock:
            append_record(self.received, record)


def _has_texts(record: Record, *names: str) -> bool:
    return all(isinstance(record.get(name), str) for name in names)


def _digest(payload: Payload, attempt: int) -> str:
    text = json.dumps({"payload": payload, "attempt": attempt}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
