"""`pawand chat --peer`: another agent, straight from the command, at the address and with the token of the settings."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer

TOKEN = "token-of-the-other-daemon-0123456789"


@pytest.fixture
def upstream() -> Iterator[OpenAIServer]:
    with OpenAIServer(lambda _: fake.text("Hello", " from bee")) as server:
        yield server


@pytest.fixture
def bee(tmp_path: Path, env: dict[str, str]) -> Iterator[harness.Process]:
    """A peer that asks every caller for its token."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b/token").write_text(TOKEN)
    (tmp_path / "b/token").chmod(0o600)
    with harness.serve(tmp_path / "w", tmp_path / "b", env=env, config='[server]\nlocal_auth = "token"') as process:
        yield process


def settings(text: str) -> None:
    file = Path(os.environ["HOME"]) / ".config/pawan/pawan.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def aegis(text: str) -> None:
    file = Path(os.environ["HOME"]) / ".config/aegis/aegis-net.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def chat(tmp_path: Path, *arguments: str, state: str = "none") -> subprocess.CompletedProcess[str]:
    """The command with the state folder `state`."""
    environ = harness.environment(Path(os.environ["HOME"]), tmp_path / state)
    command = [str(harness.COMMAND), *arguments]
    return subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)


def peer(bee: harness.Process, token: str = TOKEN) -> str:
    return f'[peers.Bee]\naddress = "{bee.url}"\n' + (f'token = "{token}"\n' if token else "")


def test_a_peer_answers_and_keeps_the_conversation(tmp_path: Path, bee: harness.Process) -> None:
    settings(peer(bee))
    answer = chat(tmp_path, "chat", "--peer", "bee", "--session", "mine", "hi")
    assert (answer.returncode, answer.stdout) == (0, "Hello from bee\n"), answer.stderr
    assert bee.stored("mine")[0]["content"] == "hi"
    lines = chat(tmp_path, "chat", "--peer", "Bee", "--json", "hi").stdout.splitlines()
    assert [json.loads(line)["event"] for line in lines][-1] == "done"


@pytest.mark.parametrize("token", ["", "not-the-right-one-0123456789"])
def test_a_wrong_token_says_which_one_is_meant(tmp_path: Path, bee: harness.Process, token: str) -> None:
    settings(peer(bee, token))
    answer = chat(tmp_path, "chat", "--peer", "bee", "hi")
    assert answer.returncode == 1
    assert "Bee refuses: `[peers.Bee] token`" in answer.stderr
    assert "not-the-right-one" not in answer.stderr


def test_the_aegis_file_leads_there_without_a_daemon(tmp_path: Path, bee: harness.Process) -> None:
    aegis('[peers.Cat]\nip = "127.0.0.9"\n')
    settings(f'[peers.cat]\ntoken = "{TOKEN}"\n')
    answer = chat(tmp_path, "chat", "--peer", "cat", "hi")
    assert answer.returncode == 3
    assert "http://127.0.0.9:3300" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_daemon_of_this_machine_tells_who_there_is(
    tmp_path: Path, bee: harness.Process, env: dict[str, str]
) -> None:
    aegis('[peers.dog]\nip = "127.0.0.9"\n')
    with harness.serve(tmp_path / "v", tmp_path / "a", env=env):
        (Path(os.environ["HOME"]) / ".config/aegis/aegis-net.toml").unlink()
        aegis('[peers.eel]\nip = "127.0.0.9"\n')
        answer = chat(tmp_path, "chat", "--peer", "ant", "hi", state="a")
    assert answer.returncode == 1
    assert answer.stderr == "pawand: there is no agent 'ant'; there are: eel\n"


def test_a_redirect_is_not_followed(tmp_path: Path, bee: harness.Process) -> None:
    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(307)
            self.send_header("Location", f"{bee.url}/chat/stream")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings(f'[peers.bee]\naddress = "127.0.0.1:{server.server_port}"\ntoken = "{TOKEN}"\n')
        answer = chat(tmp_path, "chat", "--peer", "bee", "hi")
        server.shutdown()
    assert (answer.returncode, "is not pawand" in answer.stderr) == (1, True), answer.stderr
    assert bee.call("GET", "/sessions", headers={"Authorization": f"Bearer {TOKEN}"}) == (200, [])


def test_a_peer_and_an_address_are_too_much(tmp_path: Path) -> None:
    answer = chat(tmp_path, "--url", "http://127.0.0.1:1", "chat", "--peer", "bee", "hi")
    assert answer.returncode == 2
    assert "give one of them" in answer.stderr
