"""What a judge wrote, kept by what it was asked: nothing is paid for twice.

The key of a reply is a digest of the whole request. A run that was interrupted between the two
orders of a comparison, or after a malformed reply, finds what it has already; a changed answer or
prompt gives another request, which is asked anew.
"""

import hashlib
import json
import threading
import time
from pathlib import Path

from duquant.evaluation.mt_bench.endpoint import ChatEndpoint, Payload, UnreadableReply
from duquant.evaluation.mt_bench.json_lines import Record, append_record, recover_records


class Replies:
    """Asks an endpoint, unless it has already answered; may be used by several threads.

    What came and could not be read is a reply without words, as soon as anything else that was
    asked has shown that this is a judge.

    Args:
        path: file of the replies.
        endpoint: who is asked.

    Attributes:
        has_read: whether the endpoint has given a reply that could be read, now or before.
    """

    def __init__(self, path: Path, endpoint: ChatEndpoint) -> None:
        self.path = path
        self.endpoint = endpoint
        self._lock = threading.Lock()
        self._known: dict[str, str] = {
            record["request"]: record["reply"]
            for record in recover_records(path)
            if isinstance(record.get("request"), str) and isinstance(record.get("reply"), str)
        }
        self.has_read = bool(self._known)

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
        payload = self.endpoint.payload(system, user)
        request = _digest(payload, attempt)
        with self._lock:
            if request in self._known:
                return self._known[request]
        record: Record = {"request": request, "reply": "", "tstamp": time.time()}
        try:
            record["reply"] = reply = self.endpoint.ask(payload)
            self.has_read = True
        except UnreadableReply as error:
            if not self.has_read:
                raise
            record["received"], reply = error.received, ""
        with self._lock:
            self._known[request] = reply
            append_record(self.path, record)
        return reply


def _digest(payload: Payload, attempt: int) -> str:
    text = json.dumps({"payload": payload, "attempt": attempt}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
