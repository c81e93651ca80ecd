"""To whom the commands send this machine's token: the running daemon of their state folder, and nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import harness

TOKEN = "a-token-of-this-machine"
COMMANDS = [["status"], ["models"], ["agents"], ["cancel", "s"], ["chat", "hi"]]


class Stranger(ThreadingHTTPServer):
    """Another user's program, which notes what it is sent."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.heard: list[tuple[str, str | None]] = []


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Stranger)
        self.server.heard.append((self.path, self.headers["Authorization"]))
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def stranger(port: int = 0) -> Iterator[Stranger]:
    with Stranger(port) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def run(tmp_path: Path, state: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    environ = harness.environment(Path(os.environ["HOME"]), state, **env)
    command = [str(harness.COMMAND), *arguments]
    return subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
def test_who_listens_on_the_port_of_a_stopped_daemon_gets_no_token(
    tmp_path: Path, state: Path, command: list[str]
) -> None:
    with stranger() as other:
        run(tmp_path, state, *command, PAWAN_API_PORT=str(other.server_port))
        assert {token for _, token in other.heard} == {None}


def test_nor_who_takes_the_port_of_a_daemon_that_crashed(tmp_path: Path, state: Path, env: dict[str, str]) -> None:
    with harness.serve(tmp_path / "w", state, env=env) as pawand:
        pawand.kill()
        port = int(pawand.url.rpartition(":")[2])
        with stranger(port) as other:
            assert (state / "run/pawand.json").exists()
            for more in ([], ["--url", pawand.url]):
                assert run(tmp_path, state, *more, "status", PAWAN_API_PORT=str(port)).returncode == 1
            assert other.heard == [("/health", None)] * 2


def test_nor_an_address_that_only_looks_like_it(tmp_path: Path, state: Path, env: dict[str, str]) -> None:
    """As of a daemon elsewhere, whose port ssh forwards to here."""
    with harness.serve(tmp_path / "w", state, env=env) as pawand, stranger() as other:
        for host in ("localhost", "127.0.0.1"):
            assert pawand.cli("--url", f"http://{host}:{other.server_port}", "status").returncode == 1
        assert other.heard == [("/health", None)] * 2


def test_the_running_daemon_gets_it_by_its_very_address(tmp_path: Path, state: Path, env: dict[str, str]) -> None:
    settings = '[server]\nlocal_auth = "token"\n'
    with harness.serve(tmp_path / "w", state, env=env, config=settings) as pawand:
        for known in ([], ["--url", pawand.url], ["--url", f"{pawand.url}/"]):
            assert pawand.cli(*known, "models").returncode == 0
        localhost = pawand.url.replace("127.0.0.1", "localhost")
        refused = pawand.cli("--url", localhost, "models")
        assert (refused.returncode, "send `Authorization: Bearer <token>`" in refused.stderr) == (1, True)
        shown = json.loads(pawand.cli("--url", localhost, "status", "--json").stdout)
        assert (shown["running"], "model" in shown) == (True, False)
