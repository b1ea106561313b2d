"""A server on this machine that speaks the completions protocol for a real model, as vLLM does."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class CompletionsServer:
    """What the server is, and what it was asked.

    Attributes:
        directory: the model that is served.
        root: what the list of models says of where it came from.
        url: its base address.
        max_length: tokens that fit.
        scores_prompts: whether it gives log-probabilities of prompts.
        requests: payloads, in the order they came.
    """

    directory: Path
    root: str
    url: str = ""
    max_length: int = 1024
    scores_prompts: bool = True
    requests: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.directory)
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch.float32)

    @torch.no_grad()
    def complete(self, payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer of one request."""
        self.requests.append(payload)
        if any(len(p) + payload["max_tokens"] > self.max_length for p in payload["prompt"]):
            return 400, {"error": {"message": f"the context has {self.max_length} tokens"}}
        choices = []
        for index, prompt in enumerate(payload["prompt"]):
            start = torch.tensor([prompt])
            asked = {"max_new_tokens": payload["max_tokens"], "do_sample": False}
            ids = self.model.generate(start, attention_mask=torch.ones_like(start), **asked)[0]
            shown = ids if payload.get("echo") else ids[len(prompt) :]
            text = self.tokenizer.decode(shown, skip_special_tokens=not payload.get("echo"))
            for stop in payload.get("stop") or []:
                text = text.partition(stop)[0] if stop else text
            choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None}
            if payload.get("echo") and self.scores_prompts:
                choice["logprobs"] = self._scores(ids)
            choices.append(choice)
        return 200, {"choices": choices[::-1]}

    def _scores(self, ids: Tensor) -> dict[str, Any]:
        logprobs = self.model(ids[None]).logits[0, :-1].log_softmax(-1)
        scores = logprobs.gather(1, ids[1:, None])[:, 0].tolist()
        best = [
            {"it": score, "best": top}
            for score, top in zip(scores, logprobs.amax(-1).tolist(), strict=True)
        ]
        return {"token_logprobs": [None, *scores], "top_logprobs": [None, *best]}


@contextmanager
def completions_server(directory: Path, root: str | None = None) -> Iterator[CompletionsServer]:
    """Run a server for the length of a ``with`` block."""
    served = CompletionsServer(directory, str(directory) if root is None else root)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            entry = {"id": "mine", "root": served.root, "max_model_len": served.max_length}
            self._send(200, {"data": [entry]})

        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = self.path == "/v1/completions"
            self._send(*(served.complete(payload) if known else (404, {})))

        def _send(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
