"""A daemon for tests: its parts in this process, or the real command as a child."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from blockbuster import BlockBuster

from pawand import daemon
from pawand.sessions.store import SessionStore

COMMAND = Path(sys.executable).parent / "pawand"
MODEL = "test-model"
Event = tuple[str, dict[str, Any]]
Frame = tuple[str, str, dict[str, Any]]
"""(id, name, data)"""


_watches: list[BlockBuster] = []
"""The one that watches now, once for each block that asked for it: two would put back each other's functions."""


@contextmanager
def no_blocking() -> Iterator[BlockBuster]:
    """A call of ours that would block the event loop raises. Blocks may overlap in any way."""
    if _watches:
        watch = _watches[0]
    else:
        watch = BlockBuster("pawand")
        watch.activate()
        watch.functions["os.write"].can_block_in("sessions/journal.py", "write")  # docs/decisions/0014
        watch.functions["os.write"].can_block_in("sessions/waiting.py", "keep")
        watch.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", "lock_data")  # not ours
    _watches.append(watch)
    try:
        yield watch
    finally:
        _watches.pop()
        if not _watches:
            watch.deactivate()


def parts(
    workspace: Path, state: Path, upstream: str, env: Mapping[str, str] | None = None, **flags: Any
) -> daemon.Parts:
    """Everything but sockets, talking to `upstream`. `flags` are dotted keys with `__` for the dot; `env` is what the
    daemon finds in its environment besides."""
    settings = {"provider": "openai", "base_url": upstream, "model": MODEL, "limits.log_idle_secs": 60.0}
    settings |= {name.replace("__", "."): value for name, value in flags.items()}
    own = {"HOME": os.environ["HOME"], "PAWAND_STATE_DIR": str(state), "OPENAI_API_KEY": API_KEY}
    plan = daemon.plan(settings, workspace, own | dict(env or {}))
    store = SessionStore(plan.sessions)
    store.open()
    return daemon.assemble(plan, store)


API_KEY = "sk-test-0123456789abcdef"


def parse_events(body: str) -> list[Event]:
    """(name, data) of each event, comments left out."""
    return [(name, data) for _, name, data in parse_frames(body)]


def parse_frames(body: str) -> list[Frame]:
    """(id, name, data) of each event of a complete stream."""
    frames = []
    for block in body.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":"))
        if "event" in fields:
            frames.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return frames


def tokens(events: list[Event]) -> str:
    return "".join(data["content"] for name, data in events if name == "token")


def until(condition: Callable[[], Any], what: str, seconds: float = 15) -> Any:
    """Wait until `condition()` holds, and return what it returned."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError(f"not within {seconds} s: {what}")


class Stream:
    """An open event stream of a running daemon, read as it comes; `body` makes it a POST."""

    def __init__(self, url: str, path: str, body: Any = None, timeout: float = 20, **headers: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self._connection = http.client.HTTPConnection(address.hostname, address.port or 80, timeout=timeout)
        sent = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        data = None if body is None else json.dumps(body)
        self._connection.request("GET" if body is None else "POST", path, data, sent)
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self._data = b""

    @property
    def text(self) -> str:
        """All that came, comments too."""
        return self._data.decode(errors="replace")

    @property
    def frames(self) -> list[Frame]:
        """All whole frames so far."""
        return parse_frames(self.text.rpartition("\n\n")[0])

    @property
    def events(self) -> list[Event]:
        return [(name, data) for _, name, data in self.frames]

    def read(self, size: int) -> None:
        """Exactly `size` bytes more, less at the end of the stream."""
        self._data += self._response.read(size)

    def read_until(self, name: str, count: int = 1) -> list[Event]:
        """Read on until the stream holds `count` events called `name`."""
        while self._data.count(f"\nevent: {name}\n".encode()) < count or not self._data.endswith(b"\n\n"):
            line = self._response.readline()
            assert line, f"the stream ended before {name}: {self.text[-500:]}"
            self._data += line
        return self.events

    def read_rest(self) -> list[Event]:
        """To the end of the stream, also one that breaks off; the connection is closed then."""
        try:
            while line := self._response.readline():
                self._data += line
        except (OSError, http.client.HTTPException):
            pass
        self.close()
        return self.events

    def close(self) -> None:
        """Cut the connection, whatever is under way."""
        self._response.close()
        self._connection.close()


@dataclass
class Process:
    """A running `pawand serve`."""

    process: subprocess.Popen[bytes]
    url: str
    state: Path
    workspace: Path
    log: Path
    env: dict[str, str] = field(default_factory=dict)
    expected_code: int = 0

    def kill(self) -> None:
        """The hard way, as a crash or the kernel would."""
        self.expected_code = -signal.SIGKILL
        self.process.kill()
        self.process.wait(10)

    def stored(self, session: str) -> list[dict[str, Any]]:
        """The messages of a session's file, which must be whole."""
        found: list[dict[str, Any]] = json.loads((self.state / "sessions" / f"{session}.json").read_bytes())["messages"]
        return found

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """(status, JSON or text) of one request."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, {"Content-Type": "application/json", **(headers or {})}, method=method)
        try:
            with urlopen(request, timeout=60) as response:
                status, content = response.status, response.read().decode()
        except OSError as error:
            if not hasattr(error, "code"):
                raise
            status, content = error.code, error.read().decode()  # type: ignore[attr-defined]
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content

    def cli(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments], env=self.env, cwd=self.workspace, capture_output=True, text=True, timeout=timeout
        )

    def log_text(self) -> str:
        return self.log.read_text()


def environment(home: Path, state: Path, **more: str) -> dict[str, str]:
    """A child's environment: nothing of the user's own settings."""
    names = ("PATH", "LANG", "PYTHONPATH", "COVERAGE_PROCESS_START")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return kept | {"HOME": str(home), "PAWAND_STATE_DIR": str(state), **more}


@contextmanager
def serve(
    workspace: Path,
    state: Path,
    *flags: str,
    env: Mapping[str, str] | None = None,
    port: int = 0,
    config: str = "",
    prefix: tuple[str, ...] = (),
) -> Iterator[Process]:
    """Run `pawand serve` until the end of the block, then SIGTERM; it must exit with the expected code.

    `config` is the text of a settings file, `prefix` a command that runs the command.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    state.mkdir(parents=True, exist_ok=True)
    log = state / "test.log"
    environ = environment(Path(os.environ["HOME"]), state, **(env or {}))
    with log.open("ab") as output:
        command = [*prefix, str(COMMAND), "serve", "--workspace", str(workspace), "--port", str(port), *flags]
        if config:
            (state / "test.toml").write_text(config)
            command += ["--config", str(state / "test.toml")]
        child = subprocess.Popen(command, env=environ, stdout=output, stderr=output, cwd=workspace)
        try:
            url = _wait_until_ready(child, state, log)
            made = Process(child, url, state, workspace, log, environ)
            yield made
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
            code = child.wait(30)
    assert code == made.expected_code, f"exit code {code}: {log.read_text()}"


def _wait_until_ready(child: subprocess.Popen[bytes], state: Path, log: Path) -> str:
    """The URL of the state file, written once the port answers."""
    file = state / "run" / "pawand.json"
    for _ in range(600):
        if child.poll() is not None:
            raise AssertionError(f"pawand ended with {child.returncode}: {log.read_text()}")
        try:
            found = json.loads(file.read_bytes())
            if found["pid"] == child.pid:
                return str(found["url"])
        except (OSError, ValueError):
            pass
        try:
            child.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"pawand was not ready in 30 s: {log.read_text()}")
