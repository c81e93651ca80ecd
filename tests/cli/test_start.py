"""`pawand start`, `stop`, `restart`: a daemon in the background, as a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.cli.background import Shell, shell
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.harness import Stream, until


@pytest.fixture
def sh(tmp_path: Path, env: dict[str, str]) -> Iterator[Shell]:
    with shell(tmp_path, env) as made:
        yield made


# --- start ----------------------------------------------------------------------------------------


def test_start_says_where_it_runs_once_it_answers(sh: Shell) -> None:
    shown = sh.ok("start")
    known = sh.known()
    assert known is not None
    assert shown == (
        f"pawand runs at {known['url']} (pid {known['pid']})\n  workspace {sh.workspace}\n  log       {sh.log}\n"
    )
    assert sh.call("GET", "/health")[0] == 200
    assert os.getsid(known["pid"]) == known["pid"]  # a session of its own: the shell's end is not its end
    assert os.readlink(f"/proc/{known['pid']}/fd/0") == os.devnull
    assert sh.log.parent.stat().st_mode & 0o777 == 0o700
    assert sh.log.stat().st_mode & 0o777 == 0o600
    assert f"on {known['url']}, workspace {sh.workspace}" in sh.log.read_text()


def test_start_of_one_that_runs_says_so(sh: Shell) -> None:
    first = sh.json("start", "--model", "a")
    assert (first["running"], first["started"], first["workspace"]) == (True, True, str(sh.workspace))
    again = sh.run("start", "--model", "a")
    assert again.returncode == 0
    assert again.stdout.startswith(f"pawand runs already at {first['url']} (pid {first['pid']})\n")
    assert again.stderr == ""
    assert "`pawand restart` takes new ones" in sh.run("start", "--model", "b").stderr
    assert sh.json("start") == {**first, "started": False}
    assert sh.daemons() == [first["pid"]]


def test_a_port_that_another_program_has_is_told_with_its_name(sh: Shell, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = sh.run("start", "--port", port)
        as_json = sh.run("start", "--port", port, "--json")
    name = Path("/proc/self/comm").read_text().strip()
    assert (done.returncode, done.stdout) == (1, "")
    told, summary = done.stderr.splitlines()
    assert told.startswith(
        f"pawand: port {port} on 127.0.0.1 is in use by another program ({name}, pid {os.getpid()}): stop it, or"
    )
    assert summary == f"pawand: it ended with exit code 1 before it was ready; its log is {sh.log}"
    assert as_json.returncode == 1
    shown = json.loads(as_json.stdout)
    assert shown["running"] is False
    assert shown["error"] == f"{told.removeprefix('pawand: ')}; {summary.removeprefix('pawand: ')}"
    assert told in sh.log.read_text()
    assert not sh.daemons()


def test_wrong_settings_exit_2_and_are_shown(sh: Shell, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("temperature = 'hot'\n")
    done = sh.run("start", "--config", "../c.toml")
    assert done.returncode == 2
    assert f"{tmp_path}/w/../c.toml: `temperature` is 'hot'" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_interpreter_says_at_its_end_is_in_the_log_and_shown(sh: Shell, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "tornado.py").write_text("raise RuntimeError('broken installation')")
    sh.env["PYTHONPATH"] = f"{evil}:{sh.env.get('PYTHONPATH', '')}"
    done = sh.run("start")
    assert done.returncode == 1
    for text in (done.stderr, sh.log.read_text()):
        assert "RuntimeError: broken installation" in text


def test_no_module_comes_from_the_workspace(sh: Shell) -> None:
    for name in ("pawand", "click", "json", "tornado", "sitecustomize"):
        (sh.workspace / f"{name}.py").write_text("open('ran', 'w')")
    (sh.workspace / "pawand").mkdir()
    (sh.workspace / "pawand" / "__init__.py").write_text("open('ran', 'w')")
    sh.ok("start")
    sh.ok("restart")
    sh.ok("stop")
    assert not (sh.workspace / "ran").exists()


def test_of_two_starts_one_wins_and_both_say_the_truth(sh: Shell) -> None:
    children = [sh.popen("start", "--json") for _ in range(2)]
    answers = []
    for child in children:
        output, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
        answers.append(json.loads(output))
    assert sorted(answer["started"] for answer in answers) == [False, True]
    assert answers[0]["pid"] == answers[1]["pid"]
    assert sh.daemons() == [answers[0]["pid"]]


def test_start_where_the_log_cannot_be_written(sh: Shell) -> None:
    sh.log.parent.mkdir(parents=True)
    sh.log.mkdir()
    done = sh.run("start")
    assert (done.returncode, done.stderr) == (2, f"pawand: the log file {sh.log} cannot be written: Is a directory\n")


def test_ctrl_c_while_it_starts_leaves_it_starting(sh: Shell, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        f"if 'serve' in sys.orig_argv and not os.path.exists({str(slow / 'go')!r}):\n"
        f"    open({str(slow / 'here')!r}, 'w')\n"
        f"    while not os.path.exists({str(slow / 'go')!r}): time.sleep(0.02)\n"
    )
    sh.env["PYTHONPATH"] = f"{slow}:{sh.env.get('PYTHONPATH', '')}"
    child = sh.popen("start")
    until((slow / "here").exists, "the daemon begins")
    child.send_signal(signal.SIGINT)
    errors = child.communicate(timeout=30)[1]
    (slow / "go").touch()
    assert (child.returncode, "pawand goes on starting (pid " in errors) == (130, True)
    until(sh.known, "the daemon is ready")


def test_url_does_not_go_with_the_commands_for_a_process(sh: Shell) -> None:
    for command in (["start"], ["stop"], ["restart"], ["logs"], ["doctor"]):
        done = sh.run("--url", "http://127.0.0.1:9", *command)
        assert (done.returncode, "--url does not go with this command" in done.stderr) == (2, True)


# --- stop -----------------------------------------------------------------------------------------


def test_stop_waits_until_it_is_gone(sh: Shell) -> None:
    pid = sh.json("start")["pid"]
    assert sh.ok("stop") == f"pawand (pid {pid}) has ended\n"
    assert not sh.daemons()
    assert sh.log.read_text().endswith("INFO    stopping\n")
    again = sh.run("stop")
    assert (again.returncode, again.stderr) == (3, "pawand: no daemon runs here\n")


def begin_a_turn(sh: Shell, upstream: OpenAIServer, words: int = 100) -> Stream:
    upstream.script = [fake.text(*"a" * words, pause=0.2)]
    known = sh.known()
    assert known is not None
    turn = Stream(known["url"], "/chat/stream", {"message": "one", "session_id": "s"})
    turn.read_until("token")
    return turn


def check_that_nothing_was_lost(sh: Shell, turn: harness.Stream) -> None:
    """Of a turn whose daemon was ended at once; the next one is started."""
    seen = harness.tokens(turn.read_rest())
    sh.ok("start")
    kept = sh.call("GET", "/sessions/s")[1]["messages"][1]
    assert kept["interrupted"]
    assert kept["content"].startswith(seen)


def test_stop_lets_turns_end_and_ctrl_c_leaves_it_stopping(sh: Shell, upstream: OpenAIServer) -> None:
    sh.ok("start")
    turn = begin_a_turn(sh, upstream)
    stopping = sh.popen("stop")
    assert stopping.stderr is not None
    assert stopping.stderr.readline() == "running turns have 20 s to end; `pawand stop --now` does not wait\n"
    stopping.send_signal(signal.SIGINT)
    errors = stopping.communicate(timeout=20)[1]
    assert (stopping.returncode, "goes on stopping" in errors) == (130, True)
    [pid] = sh.daemons()
    assert sh.ok("stop", "--now") == f"pawand (pid {pid}) has ended\n"
    assert turn.read_rest()[-1][0] == "token"
    assert not sh.daemons()


def test_stop_now_does_not_wait_and_loses_nothing_that_was_seen(sh: Shell, upstream: OpenAIServer) -> None:
    sh.ok("start")
    turn = begin_a_turn(sh, upstream)
    began = time.monotonic()
    sh.ok("stop", "--now")
    assert time.monotonic() - began < 10  # the turn would take twice as long
    check_that_nothing_was_lost(sh, turn)


@pytest.mark.slow
def test_a_second_stop_is_no_second_signal(sh: Shell, upstream: OpenAIServer) -> None:
    sh.ok("start")
    turn = begin_a_turn(sh, upstream, 25)
    stopping = sh.popen("stop")
    until(lambda: (sh.known() or {}).get("stopping"), "it stops")
    sh.ok("stop")
    assert turn.read_rest()[-1][0] == "done"
    assert stopping.wait(20) == 0
    stopping.communicate()


# --- one that does not answer ---------------------------------------------------------------------


@pytest.mark.slow
def test_one_that_was_halted_is_told_of_at_once_and_killed_by_stop_now(sh: Shell, upstream: OpenAIServer) -> None:
    pid = sh.json("start")["pid"]
    turn = begin_a_turn(sh, upstream)
    os.kill(pid, signal.SIGSTOP)
    told = f"pawand (pid {pid}) runs but does not answer, because it was halted (SIGSTOP): `kill -CONT {pid}` lets"
    began = time.monotonic()
    for command in (["start"], ["models"], ["chat", "hello"]):
        done = sh.run(*command)
        assert (done.returncode, told in done.stderr) == (1, True)
    status = sh.run("status")
    assert (status.returncode, status.stdout.startswith(f"not answering: {told}")) == (1, True)
    status = sh.run("status", "--json")
    shown = json.loads(status.stdout)
    assert (status.returncode, shown["running"], shown["answering"], shown["pid"]) == (1, True, False, pid)
    assert time.monotonic() - began < 10  # which is how long an answer is waited for
    assert f"pid {pid} does not answer" in sh.run("doctor").stdout
    done = sh.run("stop", "--now")
    assert (done.returncode, done.stdout) == (0, f"pawand (pid {pid}) has ended\n")
    assert f"pawand (pid {pid}) does not end by itself: it is killed" in done.stderr
    check_that_nothing_was_lost(sh, turn)


@pytest.mark.slow
def test_one_that_hangs_is_told_of(sh: Shell) -> None:
    pid = sh.json("start")["pid"]
    url = (sh.known() or {})["url"]
    with socket.create_server(("127.0.0.1", 0)) as mute:  # connects, as to a loop that stands still, and says nothing
        file = sh.state / "run" / "pawand.json"
        told = f"pawand (pid {pid}) runs but does not answer at http://127.0.0.1:{mute.getsockname()[1]}"
        file.write_text(file.read_text().replace(url, f"http://127.0.0.1:{mute.getsockname()[1]}"))
        children = [sh.popen(command) for command in ("start", "status", "agents")]
        answers = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [1, 1, 1]
    for answer in answers:
        assert told in "".join(answer)
        assert "`pawand stop --now` ends it" in "".join(answer)


# --- one that is stopping -------------------------------------------------------------------------


@pytest.mark.slow
def test_one_that_is_stopping_is_told_of_and_start_waits_for_it(sh: Shell, upstream: OpenAIServer) -> None:
    pid = sh.json("start")["pid"]
    turn = begin_a_turn(sh, upstream, 40)
    os.kill(pid, signal.SIGTERM)
    until(lambda: (sh.known() or {}).get("stopping"), "it stops")
    status = sh.run("status", "--json")
    shown = json.loads(status.stdout)
    assert (status.returncode, shown["running"], shown["answering"], shown["stopping"]) == (1, True, False, True)
    assert sh.run("status").stdout.startswith(f"stopping: pawand (pid {pid}) is stopping")
    done = sh.run("agents")
    assert (done.returncode, f"pawand (pid {pid}) is stopping" in done.stderr) == (1, True)
    assert "is stopping" in sh.run("doctor").stdout
    again = sh.json("start")
    assert again["started"]
    assert again["pid"] != pid
    assert turn.read_rest()[-1][0] == "done"
    assert sh.daemons() == [again["pid"]]


def test_a_process_that_has_the_pid_by_chance_is_left_alone(sh: Shell) -> None:
    sh.ok("start")
    known = sh.known()
    assert known is not None
    os.kill(known["pid"], signal.SIGKILL)
    until(lambda: sh.known() is None, "it has ended")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        file = sh.state / "run" / "pawand.json"
        file.write_text(json.dumps({**known, "pid": other.pid}))
        assert sh.run("stop").returncode == 3
        assert sh.run("status").returncode == 3
        assert sh.json("start")["started"]  # and it is in nobody's way
        assert other.poll() is None
        other.communicate(b"\n")
        assert other.returncode == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1, "start_ticks": null}', '{"pid": "x"}', "\x00"])
def test_a_state_file_that_says_nothing_is_no_daemon(sh: Shell, text: str) -> None:
    file = sh.state / "run" / "pawand.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    done = sh.run("stop")
    assert (done.returncode, done.stderr) == (3, "pawand: no daemon runs here\n")


# --- restart --------------------------------------------------------------------------------------


def test_restart_keeps_workspace_and_options_unless_others_are_given(sh: Shell, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "c.toml").write_text("[server]\nagent_id = 'mine'\n")
    first = sh.json("start", "--workspace", "../other", "--config", "../c.toml", "--model=-m", "--log-format", "json")
    sh.workspace.joinpath("deep").mkdir()
    sh.workspace = sh.workspace / "deep"  # paths meant what they did where they were written
    again = sh.json("restart")
    assert again["started"]
    assert again["pid"] != first["pid"]
    assert again["workspace"] == f"{tmp_path}/w/../other"
    status = sh.json("status")
    assert (status["agent_id"], status["model"]) == ("mine", "-m")
    assert json.loads(sh.log.read_text().splitlines()[-1])["level"]
    sh.ok("restart", "--model", "b", "--workspace", ".")
    status = sh.json("status")
    assert (status["agent_id"], status["model"], status["workspace"]) == ("mine", "b", str(sh.workspace))
    assert sh.daemons() == [status["pid"]]
    assert harness.API_KEY not in (sh.state / "run" / "pawand.json").read_text()


def test_restart_with_what_cannot_start_leaves_the_old_one(sh: Shell) -> None:
    pid = sh.json("start")["pid"]
    done = sh.run("restart", "--workspace", "/nowhere")
    assert (done.returncode, "/nowhere does not exist" in done.stderr) == (2, True)
    assert sh.json("status")["pid"] == pid


def test_restart_looks_before_it_stops(sh: Shell, tmp_path: Path) -> None:
    first = sh.json("start")
    (tmp_path / "folder").mkdir()
    (tmp_path / "short").write_text("short")
    (tmp_path / "c.toml").write_text(f"[server]\ntoken_file = '{tmp_path}/short'\n")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for option, value, code, told in (
            ("--host", "192.0.2.77", 1, "cannot listen on 192.0.2.77"),
            ("--host", "no such host", 2, "cannot listen on no such host"),
            ("--log-file", "../folder", 2, "folder cannot be written: Is a directory"),
            ("--config", "../c.toml", 2, "short has 5 characters; at least 16 are needed"),
            ("--port", str(port), 1, f"port {port} on 127.0.0.1 is in use by another program"),
        ):
            done = sh.run("restart", option, value)
            assert (done.returncode, told in done.stderr) == (code, True), done.stderr
    status = sh.json("status")
    assert (status["pid"], status["url"]) == (first["pid"], first["url"])


def test_restart_on_the_port_that_it_has(sh: Shell) -> None:
    first = sh.json("start")
    port = first["url"].rpartition(":")[2]
    assert sh.json("restart", "--port", port, "--host", "127.0.0.1")["url"] == first["url"]
    assert sh.json("restart", "--model", "b")["url"] == first["url"]


def test_where_the_new_one_ends_after_all_the_old_one_comes_back(sh: Shell, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "sitecustomize.py").write_text(
        "import sys\nif 'serve' in sys.orig_argv and '--model=trap' in sys.orig_argv: sys.exit('it is a trap')\n"
    )
    sh.env["PYTHONPATH"] = f"{trap}:{sh.env.get('PYTHONPATH', '')}"
    first = sh.json("start", "--model", "a")
    done = sh.run("restart", "--model", "trap")
    assert (done.returncode, done.stdout) == (1, "")
    second = sh.json("status")
    assert (second["model"], second["pid"] != first["pid"]) == ("a", True)
    told = done.stderr.splitlines()[-1]
    assert "it is a trap; it ended with exit code 1" in told
    assert f"it runs again with the options it had, at {second['url']} (pid {second['pid']})" in told
    done = sh.run("restart", "--model", "trap", "--json")
    shown = json.loads(done.stdout)
    assert (done.returncode, shown["running"], shown["started"]) == (1, True, False)
    assert shown["pid"] == sh.json("status")["pid"]


def test_restart_of_none_starts_one(sh: Shell) -> None:
    assert sh.json("restart")["started"]


def test_restart_puts_one_of_a_terminal_into_the_background(tmp_path: Path, env: dict[str, str]) -> None:
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand, shell(tmp_path, env) as sh:
        again = sh.json("restart")
        assert pawand.process.wait(10) == 0
        assert again["workspace"] == str(tmp_path / "w")
        assert again["log_file"] == str(sh.log)


# --- systemd --------------------------------------------------------------------------------------

AS_SYSTEMD = ("sh", "-c", 'SYSTEMD_EXEC_PID=$$ exec "$@"', "sh")


@pytest.mark.parametrize(("manager", "flag"), [({}, ""), ({"MANAGERPID": "7"}, "--user ")])
def test_one_that_systemd_runs_is_left_to_it(
    tmp_path: Path, env: dict[str, str], manager: dict[str, str], flag: str
) -> None:
    with (
        shell(tmp_path, env) as sh,
        harness.serve(tmp_path / "w", tmp_path / "s", env={**env, **manager}, prefix=AS_SYSTEMD) as pawand,
    ):
        for verb in ("stop", "restart"):
            done = sh.run(verb)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == f"pawand: systemd runs this pawand; run: systemctl {flag}{verb} pawand.service\n"
        assert sh.run("stop", "--now").returncode == 1
        assert sh.json("start")["pid"] == pawand.process.pid
        assert sh.json("status")["unit"] == {"name": "pawand.service", "user": bool(flag)}
        assert "unit      pawand.service of systemd" in sh.ok("status")
        assert pawand.process.poll() is None


def test_the_variable_of_a_shell_that_systemd_runs_means_nothing(sh: Shell) -> None:
    sh.env["SYSTEMD_EXEC_PID"] = str(os.getpid())
    sh.ok("start")
    sh.ok("stop")
