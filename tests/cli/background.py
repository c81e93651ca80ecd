"""Daemons in the background: the command as a user runs it, and an end to all that it has started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pawand import client, procfs
from tests import harness


class Shell:
    """A user's shell: a workspace to stand in, a state folder, an environment."""

    def __init__(self, root: Path, env: Mapping[str, str]) -> None:
        self.state = root / "s"
        self.workspace = root / "w"
        self.workspace.mkdir(exist_ok=True)
        self.log = self.state / "logs" / "pawand.log"
        self.env = harness.environment(Path(os.environ["HOME"]), self.state, PAWAN_API_PORT="0", **env)

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [harness.COMMAND, *arguments], env=self.env, cwd=self.workspace, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        child = self.popen(*arguments)
        try:
            output, errors = child.communicate(timeout=timeout)
        finally:
            child.kill()
        return subprocess.CompletedProcess(arguments, child.returncode, output, errors)

    def ok(self, *arguments: str) -> str:
        """The output of a command that must succeed."""
        done = self.run(*arguments)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def known(self) -> dict[str, Any] | None:
        return client.read_state_file(self.state)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        known = self.known()
        assert known is not None
        made = harness.Process(None, known["url"], self.state, self.workspace, self.log)  # type: ignore[arg-type]
        return made.call(method, path, body)

    def daemons(self) -> list[int]:
        """All `pawand serve` of this state folder, however far they have come."""
        mark = f"PAWAND_STATE_DIR={self.state}".encode()
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                environ, line = (
                    Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0") for name in ("environ", "cmdline")
                )
                if mark in environ and b"serve" in line and procfs.start_ticks(int(pid)) is not None:
                    found.append(int(pid))
        return found

    def end(self) -> None:
        for pid in self.daemons():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        harness.until(lambda: not self.daemons(), "all daemons have ended")


@contextmanager
def shell(root: Path, env: Mapping[str, str]) -> Iterator[Shell]:
    made = Shell(root, env)
    try:
        yield made
    finally:
        made.end()
