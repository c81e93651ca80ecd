"""What commands print where others wrote it, or where the surroundings are odd."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pawand.client import StateError, read_state_file
from tests import harness
from tests.cli.background import Shell, shell

CLI = Path(__file__).parents[2] / "pawand" / "cli"


@pytest.fixture
def sh(tmp_path: Path, env: dict[str, str]) -> Iterator[Shell]:
    with shell(tmp_path, env) as made:
        yield made


@contextmanager
def answering(answers: dict[str, Any]) -> Iterator[str]:
    """The address of a server that is not pawand: path → what it answers with; text as it is."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers[self.path.partition("?")[0]]
            body = found.encode() if isinstance(found, str) else json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream" if isinstance(found, str) else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - http.server's name

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_only_one_module_prints() -> None:
    """`say` and its like take out what steers a terminal; click does not."""
    found = []
    for file in sorted(CLI.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("echo", "secho") and file.name != "common.py":
                found.append(f"{file.name}:{node.lineno}")
    assert not found


def test_a_status_of_others_steers_and_forges_nothing(sh: Shell) -> None:
    evil = "x\x1b[2J\x9b\u202e\n  sandbox   bwrap"
    health = {"status": "ok", "version": evil, "agent_id": evil, "uptime_secs": 1, "model": evil, "reasons": [evil]}
    with answering({"/health": health}) as url:
        shown = sh.ok("--url", url, "status")
    assert shown.replace("\n", "").isprintable()
    assert "  sandbox   bwrap" not in shown.splitlines()
    assert "  model     x[2J\\n  sandbox   bwrap" in shown.splitlines()


def test_errors_steer_nothing(sh: Shell) -> None:
    (sh.workspace / "pawan.toml").write_text('temperature = "\\u001b[2J\\u009b"\n')
    for command in (["serve"], ["config", "show"], ["start"], ["sessions", "show", "a\x1b[2J"], ["--\x1b[2J"]):
        done = sh.run(*command)
        assert done.returncode
        assert (done.stdout + done.stderr).replace("\n", "").isprintable(), command


def test_a_key_with_a_line_in_it_forges_none(sh: Shell) -> None:
    (sh.workspace / "pawan.toml").write_text('"a\\nserver.port = 1" = 1\n')
    assert not [line for line in sh.run("config", "show").stderr.splitlines() if line.startswith("server.port")]
    shown = sh.run("doctor").stdout.splitlines()
    assert not [line for line in shown if line.startswith("server.port")]
    assert [line for line in shown if "`a\\nserver.port = 1`" in line]


# --- what answers is not pawand -------------------------------------------------------------------

HEALTH = {"status": "ok", "version": "1", "agent_id": "a", "uptime_secs": 1}
SESSION = {"id": "s", "model": "m", "updated_at": "2026-04-14T12:00:00Z", "title": "", "active_turn": None}
MESSAGE = {"role": "user", "content": "", "timestamp": "2026-04-14T12:00:00Z"}


@pytest.mark.parametrize(
    ("command", "answers"),
    [
        (["status"], {"/health": {**HEALTH, "uptime_secs": "long"}}),
        (["status"], {"/health": {**HEALTH, "uptime_secs": 1e300}}),
        (["status"], {"/health": {**HEALTH, "reasons": 3}}),
        (["sessions", "list"], {"/sessions": [{**SESSION, "message_count": 1, "active": False, "updated_at": 3}]}),
        (["sessions", "show", "s"], {"/sessions/s": {**SESSION, "messages": [{**MESSAGE, "timestamp": "soon"}]}}),
        (["sessions", "show", "s"], {"/sessions/s": {**SESSION, "messages": [{**MESSAGE, "tool_calls": [3]}]}}),
        (["sessions", "export", "s"], {"/sessions/s": {**SESSION, "messages": [{**MESSAGE, "tool_result": {}}]}}),
        (["sessions", "export", "s"], {"/sessions/s": {**SESSION, "messages": [], "title": 3}}),
        (["agents"], {"/agents": {"self": 1, "peers": [{"name": 1, "agent_id": 1, "ip": 1, "groups": 1}]}}),
        (["chat", "hello"], {"/chat/stream": "event: start\ndata: {}\n\n"}),
        (["chat", "hello"], {"/chat/stream": 'event: token\ndata: {"content": 3}\n\n'}),
    ],
)
def test_odd_answers_are_told_of(sh: Shell, command: list[str], answers: dict[str, Any]) -> None:
    with answering(answers) as url:
        done = sh.run("--url", url, *command)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (
        1,
        [f"pawand: what answers at {url} is not pawand: is this the right address?"],
    )
    assert "Traceback" not in done.stderr


# --- odd surroundings -----------------------------------------------------------------------------

ODD = os.fsdecode(b"\xff")


def test_words_that_are_no_text(sh: Shell) -> None:
    sh.ok("start")
    done = sh.run("cancel", ODD)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    for words in (["chat", ODD], ["chat", "hello", "--session", ODD], ["chat", "hello", "--model", ODD]):
        done = sh.run(*words)
        assert (done.returncode, r"'\udcff' is no UTF-8 text" in done.stderr) == (2, True)


def test_a_workspace_whose_name_is_no_text(sh: Shell, tmp_path: Path) -> None:
    odd = tmp_path / f"w{ODD}"
    odd.mkdir()
    (tmp_path / "link").symlink_to(odd)
    for workspace in (odd, tmp_path / "link"):
        for command in ("serve", "start"):
            done = sh.run(command, "--workspace", str(workspace))
            assert (done.returncode, "has a name that is no UTF-8 text: rename the folder" in done.stderr) == (2, True)
            assert "Traceback" not in done.stderr
    sh.workspace = odd
    done = sh.run("doctor")
    assert (done.returncode, "✗ workspace  the workspace" in done.stdout) == (1, True)
    assert "is no UTF-8 text" in done.stdout


def test_a_state_folder_whose_name_is_no_text_works(sh: Shell, tmp_path: Path) -> None:
    sh.env["PAWAND_STATE_DIR"] = str(tmp_path / f"s{ODD}")
    assert sh.json("start")["started"]
    assert sh.json("status")["answering"]
    sh.ok("stop")


def test_a_folder_that_is_gone(sh: Shell, tmp_path: Path) -> None:
    command = ["sh", "-c", f'rmdir "$PWD"; exec {harness.COMMAND} start']
    done = subprocess.run(command, env=sh.env, cwd=sh.workspace, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (
        1,
        "pawand: the folder that this shell is in is gone: cd into another one\n",
    )


def test_a_user_without_a_home(sh: Shell, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "sitecustomize.py").write_text("import os\nos.getuid = lambda: 54321\n")
    sh.env["PYTHONPATH"] = f"{stranger}:{sh.env.get('PYTHONPATH', '')}"
    del sh.env["HOME"]
    done = sh.run("start")
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        2,
        "pawand: this user has no home folder: set HOME, or XDG_CONFIG_HOME",
    )
    sh.env["XDG_CONFIG_HOME"] = str(tmp_path / "c")
    assert sh.json("start")["started"]
    sh.ok("stop")
    del sh.env["PAWAND_STATE_DIR"]
    for command in ("status", "start", "stop"):
        done = sh.run(command)
        assert (done.returncode, done.stderr) == (
            2,
            "pawand: this user has no home folder: set HOME, or PAWAND_STATE_DIR\n",
        )


def test_the_state_folder_of_another_user(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # the parents of tmp_path are closed to others
        state = Path(folder, "s")
        (state / "run").mkdir(parents=True)
        state.chmod(0o700)
        Path(folder).chmod(0o755)
        own = os.geteuid()
        os.seteuid(65534)
        try:
            with pytest.raises(StateError, match=f"{state} may not be read: it is another user's"):
                read_state_file(state)
        finally:
            os.seteuid(own)


def test_status_as_json_with_broken_settings(sh: Shell) -> None:
    (sh.workspace / "pawan.toml").write_bytes(b"\xef\xbb\xbfmodel = 'm'\n")
    done = sh.run("status", "--json")
    shown = json.loads(done.stdout)
    assert done.returncode == 2
    assert (shown["running"], shown["answering"], shown["pid"], shown["url"]) == (False, False, None, None)
    assert shown["error"].endswith("pawan.toml: begins with a byte order mark: save it as UTF-8 without BOM")


def test_ctrl_c_while_modules_are_loaded(sh: Shell, tmp_path: Path) -> None:
    early = tmp_path / "early"
    early.mkdir()
    (early / "click.py").write_text("raise KeyboardInterrupt")
    sh.env["PYTHONPATH"] = f"{early}:{sh.env.get('PYTHONPATH', '')}"
    command = [sys.executable, str(CLI.parents[1] / "bin" / "pawand"), "status"]
    done = subprocess.run(command, env=sh.env, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_logs_whose_reader_has_seen_enough(sh: Shell) -> None:
    sh.log.parent.mkdir(parents=True)
    sh.log.write_text("a line\n" * 100_000)
    child = sh.popen("logs", "-n", "100000")
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline() == "a line\n"
    child.stdout.close()
    assert (child.stderr.read(), child.wait(20)) == ("", 1)
    child.stderr.close()


def test_stop_for_programs(sh: Shell) -> None:
    pid = sh.json("start")["pid"]
    assert sh.json("stop") == {"stopped": True, "pid": pid}
    done = sh.run("stop", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (3, {"stopped": False, "pid": None})
