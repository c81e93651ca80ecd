"""The `pawand` command as a user runs it: a process, its output, its exit code."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import pytest

from pawand import __version__
from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer


@pytest.fixture
def upstream() -> Iterator[OpenAIServer]:
    with OpenAIServer(lambda _: fake.text("Hello", " you")) as server:
        yield server


@pytest.fixture
def pawand(tmp_path: Path, env: dict[str, str]) -> Iterator[harness.Process]:
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as process:
        yield process


def run(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command where no daemon runs."""
    environ = harness.environment(Path(os.environ["HOME"]), tmp_path / "none", **env)
    command = [str(harness.COMMAND), *arguments]
    return subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)


def test_version_and_help_teach(tmp_path: Path) -> None:
    assert run(tmp_path, "version").stdout == f"pawand {__version__}\n"
    shown = run(tmp_path, "--help")
    assert shown.returncode == 0
    for word in (
        "serve",
        "status",
        "chat",
        "sessions",
        "models",
        "agents",
        "start",
        "stop",
        "logs",
        "doctor",
        "Exit codes",
    ):
        assert word in shown.stdout
    for command in (["serve"], ["status"], ["chat"], ["sessions"], ["sessions", "list"], ["models"], ["agents"]):
        answer = run(tmp_path, *command, "--help")
        assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["nonsense"], ["chat"], ["status", "--colour"], ["sessions", "show"]])
def test_wrong_use_exits_2(tmp_path: Path, arguments: list[str]) -> None:
    answer = run(tmp_path, *arguments)
    assert answer.returncode == 2
    assert "Error" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    "url",
    [
        "http://[",
        "http://x:abc",
        "http://x:99999",
        "http://ex ample/",
        "localhost:3300",
        "ftp://x",
        "http://ü..x/",
        "http://x/ü",
    ],
)
def test_an_address_that_is_none_exits_2(tmp_path: Path, url: str) -> None:
    answer = run(tmp_path, "--url", url, "status")
    assert (answer.returncode, "is no address" in answer.stderr) == (2, True), answer.stderr


@pytest.mark.parametrize("page", ["<html>", "[7]", '{"other": 1}', "[" * 100_000])
@pytest.mark.parametrize("command", [["status"], ["models"], ["agents"], ["sessions", "list"], ["chat", "x"]])
def test_an_address_of_something_else_is_told(tmp_path: Path, page: str, command: list[str]) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        answer = run(tmp_path, "--url", f"http://127.0.0.1:{server.server_port}", *command)
        server.shutdown()
    assert answer.returncode == 1
    assert "is this the right address?" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_reader_that_leaves_and_a_full_disk_are_no_tracebacks(pawand: harness.Process) -> None:
    for number in range(3):
        pawand.call("POST", "/sessions", {"title": f"title {number}"})
    for target in ("| head -c1", "> /dev/full"):
        shell = f"{harness.COMMAND} sessions list {target}"
        shown = subprocess.run(["bash", "-c", shell], env=pawand.env, capture_output=True, text=True, check=False)
        assert "Traceback" not in shown.stderr


def test_the_command_reaches_a_daemon_on_any_address_of_this_machine(tmp_path: Path, upstream: OpenAIServer) -> None:
    env = {"OPENAI_API_URL": upstream.url, "OPENAI_API_KEY": harness.API_KEY}
    config = tmp_path / "c.toml"
    config.write_text(f'[server]\nlocal_auth = "token"\ntoken_file = "{tmp_path}/my-token"\n')
    flags = ["--config", str(config), "--host", "127.0.0.2"]
    with harness.serve(tmp_path / "w", tmp_path / "s", *flags, env=env) as pawand:
        assert pawand.cli("models").returncode == 0
        assert (tmp_path / "my-token").stat().st_mode & 0o777 == 0o600


def test_status_tells_what_runs(pawand: harness.Process) -> None:
    shown = pawand.cli("status")
    assert shown.returncode == 0
    assert f"running: pawan@{os.uname().nodename} at {pawand.url}" in shown.stdout
    assert harness.MODEL in shown.stdout
    found = json.loads(pawand.cli("status", "--json").stdout)
    assert (found["running"], found["pid"], found["url"]) == (True, pawand.process.pid, pawand.url)
    assert (found["version"], found["status"]) == (__version__, "ok")


def test_status_of_nothing_exits_3(tmp_path: Path) -> None:
    port = {"PAWAN_API_PORT": "9"}
    answer = run(tmp_path, "status", **port)
    assert answer.returncode == 3
    assert answer.stdout.startswith("not running: pawand does not answer at http://127.0.0.1:9")
    answer = run(tmp_path, "status", "--json", **port)
    assert answer.returncode == 3
    assert json.loads(answer.stdout)["running"] is False


def test_other_commands_without_a_daemon_exit_3(tmp_path: Path) -> None:
    for command in (["chat", "hi"], ["models"], ["agents"], ["cancel", "s"]):
        answer = run(tmp_path, "--url", "http://127.0.0.1:9", *command)
        assert (answer.returncode, "does not answer" in answer.stderr) == (3, True)


def test_chat_shows_tokens_and_tool_lines(pawand: harness.Process, upstream: OpenAIServer) -> None:
    replies = iter([fake.calls(("bash", {"command": "echo \x1b[31mred"})), fake.text("All", " \x1b[2Jdone", ".\n")])
    upstream.script = lambda _: next(replies)
    shown = pawand.cli("chat", "do it", "--session", "cli")
    assert shown.returncode == 0
    assert shown.stdout == "All [2Jdone.\n"
    lines = shown.stderr.splitlines()
    assert lines[0].startswith("▸ bash echo")
    assert lines[1].startswith("✓ bash")
    assert "red" in lines[1]
    assert lines[-1] == "session cli"
    assert "\x1b" not in shown.stderr


def test_chat_json_is_one_event_a_line(pawand: harness.Process) -> None:
    shown = pawand.cli("chat", "hi", "--json", "--model", "other")
    events = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [event["event"] for event in events] == ["start", "token", "token", "done"]
    assert events[0]["model"] == "other"
    assert events[-1]["content"] == "Hello you"
    assert len({event["id"] for event in events}) == 4


def test_chat_that_fails_exits_1(pawand: harness.Process, upstream: OpenAIServer) -> None:
    upstream.script = lambda _: fake.refusal(400, "no such thing")
    shown = pawand.cli("chat", "hi")
    assert shown.returncode == 1
    assert "no such thing" in shown.stderr
    assert pawand.cli("chat", " ").returncode == 1


@contextmanager
def in_terminal(pawand: harness.Process, *arguments: str) -> Iterator[Terminal]:
    """The command with a terminal of its own."""
    master, slave = os.openpty()
    command = [str(harness.COMMAND), *arguments]
    child = subprocess.Popen(
        command,
        env=pawand.env,
        cwd=pawand.workspace,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
    )
    os.close(slave)
    try:
        yield Terminal(master, child)
    finally:
        child.kill()
        child.wait()
        os.close(master)


@dataclass
class Terminal:
    master: int
    child: subprocess.Popen[bytes]
    seen: str = ""

    def read_until(self, words: str) -> None:
        while words not in self.seen:
            assert select.select([self.master], [], [], 20)[0], self.seen
            self.seen += os.read(self.master, 4096).decode()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


@pytest.fixture
def prompting(tmp_path: Path, env: dict[str, str]) -> Iterator[harness.Process]:
    config = '[permissions]\nbash = "prompt"\n'
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=config) as process:
        yield process


def touch(*names: str) -> list[fake.Reply]:
    return [*(fake.calls(("bash", {"command": f"touch {name}"})) for name in names), fake.text("finished")]


def test_chat_asks_in_the_terminal(prompting: harness.Process, upstream: OpenAIServer) -> None:
    upstream.script = touch("a", "b", "c")
    with in_terminal(prompting, "chat", "go", "--session", "s") as terminal:
        terminal.read_until("[n]o: ")
        assert "? bash, until 20" in terminal.seen
        assert "\r\n  command: touch a\r\n" in terminal.seen
        assert not (prompting.workspace / "a").exists()
        terminal.type("what\n")
        terminal.read_until("'what' is not one of")
        terminal.type("n\n")
        terminal.read_until("touch b\r\n  Allow it? [y]es, [a]lways in this session, [n]o: ")
        terminal.type("a\n")  # c is not asked about any more
        terminal.read_until("session s")
        assert terminal.child.wait(10) == 0
        assert terminal.seen.count("Allow it?") == 3  # one of them again after a word that is none
        assert "command: touch c" not in terminal.seen
        assert "finished" in terminal.seen
    assert [(prompting.workspace / name).exists() for name in "abc"] == [False, True, True]


def test_chat_shows_all_of_what_is_approved(prompting: harness.Process, upstream: OpenAIServer) -> None:
    hidden = f"echo {'a' * 200}; touch one # \u202eall\u200b well\ntouch two"
    upstream.script = [fake.calls(("bash", {"command": hidden})), fake.text("finished")]
    with in_terminal(prompting, "chat", "go", "--session", "s") as terminal:
        terminal.type("y\n")  # before there is a question
        terminal.read_until("[n]o: ")
        assert "touch one # all well\r\n    touch two\r\n" in terminal.seen
        time.sleep(0.2)
        assert not (prompting.workspace / "one").exists()
        [asked] = prompting.call("GET", "/sessions/s/permissions")[1]
        assert " characters)" in asked["summary"]
        terminal.type("no\n")
        terminal.read_until("session s")
    assert not list(prompting.workspace.iterdir())


def test_ctrl_d_at_a_question_leaves_the_turn_and_says_how_to_come_back(
    prompting: harness.Process, upstream: OpenAIServer
) -> None:
    upstream.script = touch("a")
    with in_terminal(prompting, "chat", "go", "--session", "s") as terminal:
        terminal.read_until("[n]o: ")
        terminal.type("\x04")
        terminal.read_until("go on with --session s")
        assert f"the turn goes on in session s: follow it with GET {prompting.url}/sessions/s/events" in terminal.seen
        assert "end it with `pawand cancel s`" in terminal.seen
        assert terminal.child.wait(10) == 130
    assert json.loads(prompting.cli("cancel", "s", "--json").stdout) == {"cancelled": True}


def test_ctrl_c_at_a_question_cancels_the_turn(prompting: harness.Process, upstream: OpenAIServer) -> None:
    upstream.script = touch("a")
    with in_terminal(prompting, "chat", "go", "--session", "s") as terminal:
        terminal.read_until("[n]o: ")
        terminal.type("\x03")
        terminal.read_until("session s")
        assert terminal.child.wait(10) == 130
        assert "cancelling the turn; Ctrl-C again leaves it running" in terminal.seen
        assert "goes on" not in terminal.seen
    assert prompting.call("GET", "/sessions/s")[1]["active_turn"] is None
    assert not (prompting.workspace / "a").exists()


def test_ctrl_c_cancels_the_turn_and_shows_its_end(pawand: harness.Process, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text(*"abcdefghij" * 10, pause=0.2)]
    with in_terminal(pawand, "chat", "go", "--session", "s") as terminal:
        terminal.read_until("ab")
        terminal.type("\x03")
        terminal.read_until("session s")
        assert terminal.child.wait(10) == 130
    assert upstream.hung_up.wait(5)
    [_, kept] = pawand.call("GET", "/sessions/s")[1]["messages"]
    assert kept["interrupted"]
    assert kept["content"] in terminal.seen  # no token was lost, or shown twice


def test_ctrl_c_without_a_terminal_cancels_too(pawand: harness.Process, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text(*"abcdefghij" * 10, pause=0.2)]
    with chatting(pawand, "--json") as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["event"] == "start"
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=20)
    assert child.returncode == 130
    events = [json.loads(line) for line in output.splitlines()]
    assert (events[-1]["event"], events[-1]["code"]) == ("error", "cancelled")
    assert errors == "cancelling the turn; Ctrl-C again leaves it running\n"


def test_a_second_ctrl_c_leaves_the_turn(pawand: harness.Process, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text(*"abcdefghij" * 10, pause=0.2)]
    with chatting(pawand) as child:
        assert child.stdout is not None
        child.stdout.read(1)
        os.kill(pawand.process.pid, signal.SIGSTOP)  # so that the turn cannot be cancelled
        try:
            child.send_signal(signal.SIGINT)
            assert child.stderr is not None
            until_line(child.stderr, "cancelling the turn; Ctrl-C again leaves it running\n")
            errors = interrupt(child)
        finally:
            os.kill(pawand.process.pid, signal.SIGCONT)
    assert child.returncode == 130
    assert "unless it was cancelled in time, the turn goes on in session s: follow it with GET" in errors


def test_ctrl_c_before_the_turn_begins_spares_the_one_that_runs(
    pawand: harness.Process, upstream: OpenAIServer
) -> None:
    upstream.script = [fake.text(*"abcdefghij", pause=0.4), fake.text("xyz", pause=0.5)]
    first = harness.Stream(pawand.url, "/chat/stream", {"message": "first", "session_id": "s"})
    first.read_until("token")
    with chatting(pawand) as child:
        harness.until(lambda: has_socket(child.pid), "the message is sent")
        child.send_signal(signal.SIGINT)
        errors = child.communicate(timeout=20)[1]
    assert child.returncode == 130
    assert errors.startswith(
        "the turn waits for others; it is cancelled when it begins. Ctrl-C again leaves it running\n"
    )
    assert first.read_rest()[-1][0] == "done"
    assert [m["content"] for m in pawand.call("GET", "/sessions/s")[1]["messages"]][:3] == ["first", "abcdefghij", "go"]
    assert pawand.call("GET", "/sessions/s")[1]["active_turn"] is None


def has_socket(pid: int) -> bool:
    try:
        return any(os.readlink(link).startswith("socket:") for link in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:  # closed meanwhile
        return False


@contextmanager
def chatting(pawand: harness.Process, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """`pawand chat go --session s` without a terminal."""
    command = [str(harness.COMMAND), "chat", "go", "--session", "s", *flags]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=pawand.env, cwd=pawand.workspace, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def interrupt(child: subprocess.Popen[str]) -> str:
    """What it says last. A signal in the very moment in which Python begins to wait is seen only with the next one."""
    for _ in range(5):
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.communicate(timeout=4)[1]
    raise AssertionError("it does not end")


def until_line(stream: IO[str], line: str) -> None:
    while (read := stream.readline()) != line:
        assert read, f"it ended before {line}"


def test_cancel_says_whether_something_ran(pawand: harness.Process, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text(*"abcdefghij" * 10, pause=0.2)]
    turn = harness.Stream(pawand.url, "/chat/stream", {"message": "one", "session_id": "s"})
    turn.read_until("token")
    assert pawand.call("POST", "/sessions/s/messages", {"message": "two"})[0] == 202
    done = pawand.cli("cancel", "s", "--all")
    assert (done.returncode, done.stdout) == (0, "cancelled in session s\n")
    assert turn.read_rest()[-1][1]["code"] == "cancelled"
    assert len(upstream.requests) == 1
    done = pawand.cli("cancel", "s")
    assert (done.returncode, done.stdout) == (0, "nothing runs in session s\n")
    assert json.loads(pawand.cli("cancel", "s", "--json").stdout) == {"cancelled": False}
    for id in ("none", "../x"):
        assert pawand.cli("cancel", id).returncode == 1
    assert pawand.cli("cancel", "none").stderr == "pawand: no session none\n"


def test_chat_tells_when_somebody_else_was_quicker(prompting: harness.Process, upstream: OpenAIServer) -> None:
    upstream.script = touch("a")
    with in_terminal(prompting, "chat", "go", "--session", "s") as terminal:
        terminal.read_until("[n]o: ")
        [asked] = prompting.call("GET", "/sessions/s/permissions")[1]
        assert prompting.call("POST", f"/sessions/s/permissions/{asked['id']}", {"decision": "allow"})[0] == 200
        terminal.type("n\n")
        terminal.read_until("no such request is pending")
        terminal.read_until("session s")
    assert (prompting.workspace / "a").exists()


def test_chat_without_a_terminal_says_how_to_answer(prompting: harness.Process, upstream: OpenAIServer) -> None:
    upstream.script = touch("a")

    def allow() -> None:
        [asked] = harness.until(lambda: prompting.call("GET", "/sessions/s/permissions")[1][:1], "the question")
        prompting.call("POST", f"/sessions/s/permissions/{asked['id']}", {"decision": "allow"})

    prompting.call("POST", "/sessions", {"session_id": "s"})
    answering = threading.Thread(target=allow)
    answering.start()
    shown = prompting.cli("chat", "go", "--session", "s")
    answering.join(20)
    assert (shown.returncode, shown.stdout) == (0, "finished\n")
    assert "waits for approval: POST /sessions/s/permissions/" in shown.stderr


def test_chat_json_shows_the_question_as_it_is(tmp_path: Path, env: dict[str, str], upstream: OpenAIServer) -> None:
    upstream.script = [*touch("a"), *touch("b")]
    config = 'permission_timeout_secs = 0.1\n[permissions]\nbash = "prompt"\n'
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=config) as pawand:
        lines = [json.loads(line) for line in pawand.cli("chat", "go", "--json").stdout.splitlines()]
        plain = pawand.cli("chat", "go").stderr
    asked = next(line for line in lines if line["event"] == "permission_request")
    assert (asked["tool"], asked["summary"]) == ("bash", "bash command=touch a")
    assert asked["call_id"]
    assert "denied: nobody answered in time" in plain


def test_sessions_through_the_daemon(pawand: harness.Process) -> None:
    assert "no sessions yet" in pawand.cli("sessions", "list").stdout
    pawand.cli("chat", "a first question", "--session", "one")
    listed = pawand.cli("sessions", "list")
    assert "one" in listed.stdout
    assert "a first question" in listed.stdout
    assert [row["id"] for row in json.loads(pawand.cli("sessions", "list", "--json").stdout)] == ["one"]
    shown = pawand.cli("sessions", "show", "one")
    assert "a first question" in shown.stdout
    assert "Hello you" in shown.stdout
    assert pawand.cli("sessions", "delete", "one").stdout == "deleted one\n"
    missing = pawand.cli("sessions", "show", "one")
    assert (missing.returncode, missing.stderr) == (1, "pawand: no session one\n")
    assert pawand.cli("sessions", "show", "../x").returncode == 1


def test_sessions_of_a_stopped_daemon(tmp_path: Path, upstream: OpenAIServer) -> None:
    env = {"OPENAI_API_URL": upstream.url, "OPENAI_API_KEY": harness.API_KEY, "PAWAN_MODEL": harness.MODEL}
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        pawand.cli("chat", "hello", "--session", "kept")
    assert [row["id"] for row in json.loads(pawand.cli("sessions", "list", "--json").stdout)] == ["kept"]
    assert json.loads(pawand.cli("sessions", "show", "kept", "--json").stdout)["messages"][1]["content"] == "Hello you"
    assert pawand.cli("sessions", "delete", "kept").returncode == 0
    assert json.loads(pawand.cli("sessions", "list", "--json").stdout) == []
    assert pawand.cli("sessions", "delete", "kept").returncode == 1


def test_models_and_agents(pawand: harness.Process) -> None:
    assert json.loads(pawand.cli("models", "--json").stdout) == [
        {"name": harness.MODEL, "provider": "OpenAI", "is_default": True}
    ]
    assert harness.MODEL in pawand.cli("models").stdout
    aegis = Path(os.environ["HOME"]) / ".config" / "aegis" / "aegis-net.toml"
    aegis.parent.mkdir(parents=True)
    aegis.write_text('[peers.zed]\nip = "10.0.0.2"\n[peers.amy]\nip = "10.0.0.1"\ngroups = ["x"]\n')
    found = json.loads(pawand.cli("agents", "--json").stdout)
    assert [peer["name"] for peer in found["peers"]] == ["amy", "zed"]
    assert found["peers"][0] == {
        "name": "amy", "agent_id": "pawan@amy", "ip": "10.0.0.1", "groups": ["x"],
        "port": None, "source": "aegis", "online": None,
    }  # fmt: skip
    assert "10.0.0.2" in pawand.cli("agents").stdout


def test_ids_in_tables_are_whole(pawand: harness.Process) -> None:
    created = pawand.call("POST", "/sessions", {})[1]["session_id"]
    assert created in pawand.cli("sessions", "list").stdout
