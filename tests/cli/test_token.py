"""`pawand token`: shown where it is, made and replaced, and told to a running daemon."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer

COUNTS = "{state}/token: it counts now: the daemon (pid {pid}) has read it\n"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def pawand(tmp_path: Path, state: Path, env: dict[str, str]) -> Iterator[harness.Process]:
    with harness.serve(tmp_path / "w", state, env=env) as process:
        yield process


def token(state: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    environ = harness.environment(Path(os.environ["HOME"]), state, **env)
    command = [str(harness.COMMAND), "token", *arguments]
    return subprocess.run(command, env=environ, cwd="/", capture_output=True, text=True, timeout=30, check=False)


def is_private(file: Path) -> bool:
    return stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_one_it_says_how_to_make_one(state: Path) -> None:
    answer = token(state, "show")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == f"pawand: there is no token in {state}/token; `pawand token new` makes one\n"
    assert not state.exists()


def test_one_is_made_and_shown(state: Path) -> None:
    made = token(state, "new")
    assert made.returncode == 0, made.stderr
    assert made.stderr == f"{state}/token: it counts from the next start of the daemon\n"
    assert made.stdout == (state / "token").read_text()
    assert len(made.stdout.strip()) == 43
    assert is_private(state / "token")
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    shown = token(state, "show")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, made.stdout, f"{state}/token\n")


def test_one_is_replaced_whole(state: Path) -> None:
    first = token(state, "new").stdout
    (state / "token").chmod(0o644)
    with open(state / "token") as reader:  # who has the old one open reads the old one
        second = token(state, "new").stdout
        assert reader.read() == first
    assert (state / "token").read_text() == second != first
    assert is_private(state / "token")
    assert [file.name for file in state.iterdir()] == ["token"]


def test_json_for_programs(state: Path) -> None:
    made = json.loads(token(state, "new", "--json").stdout)
    assert made == {"token": (state / "token").read_text().strip(), "file": f"{state}/token", "told": False}
    assert json.loads(token(state, "show", "--json").stdout) == {"token": made["token"], "file": f"{state}/token"}


def test_the_file_of_the_settings_counts(tmp_path: Path, state: Path) -> None:
    file = tmp_path / "elsewhere/my-token"
    (tmp_path / "my.toml").write_text(f'[server]\ntoken_file = "{file}"\n')
    made = token(state, "new", PAWAND_CONFIG=str(tmp_path / "my.toml"))
    assert made.returncode == 0, made.stderr
    assert made.stdout == file.read_text()
    assert not (state / "token").exists()


@pytest.mark.parametrize("content", [b"short\n", b"\xff" * 40])
def test_one_that_is_no_good_is_named(state: Path, content: bytes) -> None:
    state.mkdir()
    (state / "token").write_bytes(content)
    answer = token(state, "show")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert f"{state}/token" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert token(state, "new").returncode == 0


def test_a_folder_in_its_place_is_told(state: Path) -> None:
    (state / "token").mkdir(parents=True)
    for command, expected in (("show", "cannot be read"), ("new", "cannot be replaced: Is a directory")):
        answer = token(state, command)
        assert (answer.returncode, expected in answer.stderr) == (2, True), answer.stderr
    assert [file.name for file in state.iterdir()] == ["token"]


def test_root_leaves_it_to_the_owner_of_the_state_folder(state: Path) -> None:
    state.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(state, 12345, 12345)
    for _ in range(2):
        assert token(state, "new").returncode == 0
        assert (state / "token").stat().st_uid == 12345


def test_a_running_daemon_takes_the_new_one_at_once(pawand: harness.Process, state: Path) -> None:
    made = token(state, "new")
    assert (made.returncode, made.stderr) == (0, COUNTS.format(state=state, pid=pawand.process.pid))
    through = {"X-Forwarded-For": "10.0.0.9"}
    assert pawand.call("GET", "/models", headers=through)[0] == 401
    first = {"Authorization": f"Bearer {made.stdout.strip()}", **through}
    assert pawand.call("GET", "/models", headers=first)[0] == 200
    second = json.loads(token(state, "new", "--json").stdout)
    assert second["told"] is True
    assert pawand.call("GET", "/models", headers=first)[0] == 401
    assert pawand.call("GET", "/models", headers=through | {"Authorization": f"Bearer {second['token']}"})[0] == 200
    assert second["token"] not in pawand.log_text()


def test_it_counts_although_new_settings_do_not(pawand: harness.Process, state: Path) -> None:
    first = token(state, "new").stdout.strip()
    (pawand.workspace / "pawan.toml").write_text("model = [broken\n")
    made = token(state, "new")
    assert (made.returncode, made.stderr) == (0, COUNTS.format(state=state, pid=pawand.process.pid))
    through = {"X-Forwarded-For": "10.0.0.9"}
    assert pawand.call("GET", "/models", headers=through | {"Authorization": f"Bearer {first}"})[0] == 401
    second = {"Authorization": f"Bearer {made.stdout.strip()}"}
    assert pawand.call("GET", "/models", headers=through | second)[0] == 200
    words = ("read again", "settings stay as they were")
    lines = [line for line in pawand.log_text().splitlines() if any(word in line for word in words)]
    assert "settings read again" in lines[0]
    assert "the token was read again, and counts" in lines[1]
    assert "the settings stay as they were: " in lines[2]


def test_old_and_new_one_are_kept_out_of_events(pawand: harness.Process, state: Path, upstream: OpenAIServer) -> None:
    first = token(state, "new").stdout.strip()
    (pawand.workspace / "pawan.toml").write_text("model = [broken\n")
    second = token(state, "new").stdout.strip()
    upstream.script = [fake.text(f"{first} and {second}")]
    assert pawand.call("POST", "/chat", {"message": "hi"})[1]["content"] == "[redacted] and [redacted]"


@pytest.mark.slow
def test_what_the_daemon_does_not_take_is_told(pawand: harness.Process, state: Path) -> None:
    pid = pawand.process.pid
    os.kill(pid, signal.SIGSTOP)  # as one that hangs
    try:
        made = token(state, "new", "--json")
    finally:
        os.kill(pid, signal.SIGCONT)
    answer = json.loads(made.stdout)
    assert (made.returncode, answer["told"]) == (1, False)
    assert made.stderr.startswith(f"pawand: it is written, but the daemon (pid {pid}) does not take it yet")
    assert answer["token"] == (state / "token").read_text().strip()


@pytest.mark.slow
def test_a_daemon_that_cannot_read_it_is_told(pawand: harness.Process, state: Path, tmp_path: Path) -> None:
    pid = pawand.process.pid
    file = state / "run/pawand.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"token_file": f"{tmp_path}/elsewhere/token"}))
    made = token(state, "new")
    assert made.returncode == 1
    assert made.stderr.startswith(
        f"{tmp_path}/elsewhere/token: it is written, but the daemon (pid {pid}) does not take"
    )
    assert f"kill -HUP {pid}" in made.stderr
    assert made.stdout == (tmp_path / "elsewhere/token").read_text()


def test_nobody_else_gets_the_signal(state: Path) -> None:
    """A state file that a crash left names a process that is another program's by now."""
    (state / "run").mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            record = {"pid": other.pid, "url": "http://127.0.0.1:1", "token_file": str(state / "token")}
            (state / "run/pawand.json").write_text(json.dumps(record))
            (state / "run/lock").write_text(str(other.pid))
            for held in (False, True):
                with open(state / "run/lock") as lock:
                    if held:
                        (state / "run/lock").write_text("1")
                        fcntl.flock(lock, fcntl.LOCK_EX)
                    made = token(state, "new")
                assert "it counts from the next start" in made.stderr
                assert other.poll() is None
        finally:
            other.kill()
