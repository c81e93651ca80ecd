"""The processes of a benchmark: the upstream, the floor, the daemon with its default settings, and the clients."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import msgspec

from bench.client import Result, Task

ROOT = Path(__file__).parents[1]
COMMAND = Path(sys.executable).parent / "pawand"
START_SECS = 30.0
_LONGEST = re.compile(r"^pawand_loop_longest_hold_seconds (\S+)$", re.MULTILINE)


class Server:
    """A running server: what it has used of the machine."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    @property
    def cpu(self) -> float:
        """Seconds, by the process's CPU clock (clock_getcpuclockid(3)): what /proc counts in ticks, to the ns."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    @property
    def resident(self) -> int:
        """Bytes now."""
        return self._status("VmRSS")

    @property
    def resident_peak(self) -> int:
        """Bytes at most, since the start or the last `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{self.process.pid}/status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def get(self, path: str) -> str:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=START_SECS)
        connection.request("GET", path)
        answer = connection.getresponse().read().decode()
        connection.close()
        return answer

    @property
    def longest_hold(self) -> float:
        """How long the daemon's event loop was held at most, in seconds, as its /metrics says."""
        found = _LONGEST.search(self.get("/metrics"))
        assert found is not None
        return float(found[1])


@contextmanager
def _running(*command: str) -> Iterator[Server]:
    """A module of ours that prints the port it listens on."""
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Server(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Rig:
    """What every scenario stands on. `upstream` and `floor` run all the time, daemons come and go."""

    def __init__(self, folder: Path, upstream: Server, floor: Server) -> None:
        self.upstream = upstream
        self.floor = floor
        self._folder = folder

    def home(self) -> Path:
        """An empty home, with a workspace in it. It stays until the end: ext4 without a journal looks at every file
        that was removed in the last minutes before it makes a new one."""
        home = Path(tempfile.mkdtemp(dir=self._folder))
        (home / "project").mkdir()
        return home

    def environment(self, home: Path) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PAWAN_PROVIDER": "openai",
            "OPENAI_API_URL": f"http://127.0.0.1:{self.upstream.port}/v1",
            "OPENAI_API_KEY": "sk-bench-0123456789abcdef",
        }

    @contextmanager
    def starting(self, home: Path) -> Iterator[Server]:
        """A daemon with its default settings, from the moment it is started."""
        port = _free_port()
        command = [str(COMMAND), "serve", "--workspace", str(home / "project"), "--port", str(port)]
        with (home / "log").open("w") as log:
            process = subprocess.Popen(command, env=self.environment(home), stdout=log, stderr=log, text=True)
        try:
            yield Server(process, port)
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
            if code or "Traceback" in (home / "log").read_text():
                raise RuntimeError(f"pawand ended with {code}: {(home / 'log').read_text()}")
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def daemon(self, home: Path | None = None) -> Iterator[Server]:
        """One that answers, with all it needs imported; in a home of its own unless told where."""
        with self.starting(home or self.home()) as server:
            wait_healthy(server)
            wait_warm(server)
            yield server


@contextmanager
def rig() -> Iterator[Rig]:
    with (
        tempfile.TemporaryDirectory(prefix="pawand-bench-") as folder,
        _running("bench.upstream") as upstream,
        _running("bench.floor", f"http://127.0.0.1:{upstream.port}/v1") as floor,
    ):
        yield Rig(Path(folder), upstream, floor)


def wait_healthy(server: Server) -> None:
    """Until /health answers."""
    end = time.monotonic() + START_SECS
    while time.monotonic() < end:
        try:
            server.get("/health")
        except OSError:
            time.sleep(0.002)
        else:
            return
    raise RuntimeError("pawand did not answer")


def wait_warm(server: Server) -> None:
    """Until the daemon, with nothing to do, has finished what it does after its start."""
    end, used = time.monotonic() + START_SECS, -1.0
    while time.monotonic() < end and server.cpu - used > 0.01:
        used = server.cpu
        time.sleep(0.5)


class Client:
    """A task in a process of its own, ready to begin."""

    def __init__(self, task: Task) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.client"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._tell(msgspec.json.encode(task))
        self._heard()

    def tell(self) -> None:
        """Begin; one that has no end of its own takes the second time for it."""
        self._tell(b"")

    def wait(self) -> None:
        """Until its clock has stopped."""
        self._heard()

    def result(self) -> Result:
        """Of one that was waited for. Raises RuntimeError where what came was wrong."""
        with self._process:
            return msgspec.json.decode(self._heard(), type=Result)

    def _tell(self, line: bytes) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(line + b"\n")
        stdin.flush()

    def _heard(self) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RuntimeError("a client failed; it says why above")
        return line


def run(task: Task) -> Result:
    client = Client(task)
    client.tell()
    client.wait()
    return client.result()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
