"""The command line in a process of its own, without the seconds that its imports take.

A server imports ``cli.py`` once and forks whenever a test starts a command, be it ``cli.py``, a
script of the tests or ``-c`` and code. The fork is a process like any other, with a number, an
environment and a standard error of its own, and it can be killed. What differs: imports are over
when it begins (``tests/test_interrupts.py`` has those), and forks of one server hash strings alike.
"""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from typing import IO

from tests.assets import REPOSITORY

SERVER = """
import runpy, sys
from tests.forked_process import serve
import cli
import tensorboard.summary, torch.utils.tensorboard, transformers.models.llama.modeling_llama
serve(int(sys.argv[1]))
if sys.argv[0].endswith("cli.py"):  # what serve() returns to is a fork
    cli.main()
elif sys.argv[0] == "-c":
    exec(sys.argv.pop(1), {"__name__": "__main__"})
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


class ForkedProcess:
    """What ``subprocess.Popen`` would be of this command.

    Attributes:
        args: the command, as ``sys.argv``.
        pid: number of the process.
        returncode: status, or minus the signal that ended it; None while it runs.
        stdout: what it prints, as text.
        stderr: what it tells, as text.
    """

    def __init__(self, args: list[str], environment: dict[str, str]) -> None:
        self.args = args
        self.returncode: int | None = None
        (out, out_end), (err, err_end), (status, status_end) = os.pipe(), os.pipe(), os.pipe()
        request = json.dumps({"args": args, "environment": environment}).encode()
        ends = [out_end, err_end, status_end]
        _server().sendall(len(request).to_bytes(4, "big"))
        socket.send_fds(_server(), [request], ends)
        for end in ends:
            os.close(end)
        self.stdout: IO[str] = open(out, encoding="utf-8")  # noqa: SIM115
        self.stderr: IO[str] = open(err, encoding="utf-8")  # noqa: SIM115
        self._status: IO[str] = open(status, encoding="utf-8")  # noqa: SIM115
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        """The status, if it has ended."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """The status, once it has ended."""
        if self.returncode is None:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Everything that it still prints until it ends.

        Raises:
            subprocess.TimeoutExpired: it has not ended after ``timeout`` seconds; it is killed.
        """
        printed = ["", ""]

        def read(index: int, stream: IO[str]) -> None:
            with stream:
                printed[index] = stream.read()

        readers = [
            threading.Thread(target=read, args=each, daemon=True)
            for each in enumerate((self.stdout, self.stderr))
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait()
        return printed[0], printed[1]


def run_forked(args: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """What ``subprocess.run`` would be of this command."""
    process = ForkedProcess(args, environment)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(args, process.returncode, out, err)


@functools.cache
def _server() -> socket.socket:
    """Start the server of this process; it ends when its socket is closed."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def serve(descriptor: int) -> None:
    """Fork for every request; returns in the forks alone, which then are the command."""
    with socket.socket(fileno=descriptor) as requests:
        while True:
            size = int.from_bytes(requests.recv(4, socket.MSG_WAITALL), "big")
            if not size:
                raise SystemExit
            content, ends = _receive(requests, size)
            keeper = os.fork()
            if not keeper:
                break
            for end in ends:
                os.close(end)
            _reap()
    request = json.loads(content)
    _fork_and_keep(*ends)
    sys.argv = request["args"]
    os.environ.clear()
    os.environ.update(request["environment"])


def _receive(requests: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """A request and the descriptors that came with its first byte."""
    content, ends, _, _ = socket.recv_fds(requests, size, 3)
    while len(content) < size:
        content += requests.recv(size - len(content))
    return content, ends


def _reap() -> None:
    """Forget keepers that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _fork_and_keep(out: int, err: int, status: int) -> None:
    """Return in a child; its parent, the keeper, tells its number and in the end its status."""
    child = os.fork()
    if child:
        os.close(out)
        os.close(err)
        os.write(status, b"%d\n" % child)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(status, b"%d\n" % ended)
        os._exit(0)
    os.dup2(out, sys.stdout.fileno())
    os.dup2(err, sys.stderr.fileno())
    for end in (out, err, status):
        os.close(end)
