"""How a running daemon ends and how it takes new settings: SIGTERM once and twice, SIGHUP, as a process."""

from __future__ import annotations

import http.client
import json
import os
import pty
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.harness import Stream, until

HEADERS = {"Content-Type": "application/json"}


def keep_alive(pawand: harness.Process) -> http.client.HTTPConnection:
    """A connection that is open already, as a client's pool has them."""
    address = urlsplit(pawand.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    connection.request("GET", "/health")
    assert connection.getresponse().read()
    return connection


def is_listening(pawand: harness.Process) -> bool:
    address = urlsplit(pawand.url)
    try:
        socket.create_connection((address.hostname or "", address.port or 0), 5).close()
    except ConnectionRefusedError:
        return False
    return True


# --- SIGTERM --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sigterm_lets_the_running_turn_end(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    upstream.script = [fake.text(*"abcdefghij", pause=0.4), fake.text("second")]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        turn = Stream(pawand.url, "/chat/stream", {"message": "one", "session_id": "s"})
        turn.read_until("token")
        waiting = Stream(pawand.url, "/chat/stream", {"message": "two", "session_id": "s"})
        follower = Stream(pawand.url, "/sessions/s/events")
        follower.read_until("token")
        pooled = [keep_alive(pawand) for _ in range(2)]
        pawand.process.send_signal(signal.SIGTERM)
        until(lambda: not is_listening(pawand), "the listener closed")
        # new turns are refused on connections that are open already, and told why
        pooled[0].request("POST", "/chat", json.dumps({"message": "late"}), HEADERS)
        answer = pooled[0].getresponse()
        refusal = json.loads(answer.read())
        assert (answer.status, refusal["code"]) == (503, "unavailable")
        assert "shutting down" in refusal["error"]
        assert answer.headers["Retry-After"]
        # followers end at once, whole, and one that comes back is not given an answer that it would take for final
        follower.read_rest()
        assert "done" not in [name for name, _ in follower.events]
        pooled[1].request("GET", "/sessions/s/events")
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            pooled[1].getresponse()
        for connection in pooled:
            connection.close()
        # what was accepted before goes on to its end
        assert turn.read_rest()[-1][1]["content"] == "abcdefghij"
        assert waiting.read_rest()[-1][1]["content"] == "second"
        assert pawand.process.wait(10) == 0
    assert [m["content"] for m in pawand.stored("s")] == ["one", "abcdefghij", "two", "second"]
    assert not (tmp_path / "s" / "run" / "pawand.json").exists()
    assert not list((tmp_path / "s" / "sessions").glob("*.journal"))


def test_what_does_not_end_in_time_is_cut_and_saved(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    upstream.script = [fake.text(*"abcdefghij" * 10, pause=0.2)]
    config = "[server]\ndrain_secs = 0.5\n"
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=config) as pawand:
        turn = Stream(pawand.url, "/chat/stream", {"message": "one", "session_id": "s"})
        turn.read_until("token")
        accepted = pawand.call("POST", "/sessions/s/messages", {"message": "two"})
        assert accepted[0] == 202
        began = time.monotonic()
        pawand.process.send_signal(signal.SIGTERM)
        events = turn.read_rest()
        assert pawand.process.wait(10) == 0
        assert 0.5 < time.monotonic() - began < 3
    assert (events[-1][0], events[-1][1]["code"]) == ("error", "shutdown")
    stored = pawand.stored("s")
    assert [m["role"] for m in stored] == ["user", "assistant", "user"]
    assert stored[1]["content"] == harness.tokens(events)
    assert stored[1]["interrupted"] is True
    assert stored[2]["content"] == "two"  # accepted with 202, so it is not lost
    assert len(upstream.requests) == 1
    assert not list((tmp_path / "s" / "sessions").glob("*.journal"))


def test_a_chat_that_is_cut_by_the_end_is_503(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    upstream.script = [fake.text(*"abcdefghij" * 10, pause=0.2)]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config="[server]\ndrain_secs = 0\n") as pawand:
        connection = keep_alive(pawand)
        connection.request("POST", "/chat", json.dumps({"message": "x", "session_id": "s"}), HEADERS)
        until(lambda: upstream.requests, "the turn asks")
        pawand.process.send_signal(signal.SIGTERM)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (503, "shutdown")
        connection.close()
        assert pawand.process.wait(10) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once_and_nothing_is_lost(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], number: int
) -> None:
    upstream.script = [fake.text(*"abcdefghij" * 10, pause=0.2), fake.text("again")]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        turn = Stream(pawand.url, "/chat/stream", {"message": "one", "session_id": "s"})
        turn.read_until("token", 3)
        pawand.process.send_signal(number)
        until(lambda: not is_listening(pawand), "the listener closed")
        pawand.process.send_signal(number)
        began = time.monotonic()
        assert pawand.process.wait(5) == 130
        assert time.monotonic() - began < 1
        pawand.expected_code = 130
        turn.read_rest()
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        stored = pawand.stored("s")
        assert stored[1]["content"].startswith(harness.tokens(turn.events))
        assert stored[1]["interrupted"] is True
        assert pawand.call("POST", "/chat", {"message": "two", "session_id": "s"})[1]["content"] == "again"


# --- SIGHUP ---------------------------------------------------------------------------------------


def hang_up(pawand: harness.Process, words: str, count: int = 1) -> None:
    pawand.process.send_signal(signal.SIGHUP)
    until(lambda: pawand.log_text().count(words) >= count, words)


def test_sighup_takes_new_settings_and_says_what_must_wait(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    del env["PAWAN_MODEL"]
    upstream.script = [
        fake.text("one"),
        fake.text("two"),
        fake.calls(("bash", {"command": "touch x"})),
        fake.text("three"),
    ]
    config = tmp_path / "s" / "test.toml"
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config='model = "first"\n') as pawand:
        assert pawand.call("POST", "/chat", {"message": "a"})[1]["model"] == "first"
        config.write_text(
            'model = "second"\ntemperature = 0.25\n[permissions]\nbash = "deny"\n'
            "[server]\nagent_id = 'other'\nallowed_hosts = ['mine']\n[limits]\nturns = 3\nbody_bytes = 1024\n"
        )
        hang_up(pawand, "settings read again")
        log = pawand.log_text()
        assert "changed: limits.body_bytes, model, permissions.bash, server.allowed_hosts, temperature\n" in log
        assert "these settings count from the next start: limits.turns, server.agent_id\n" in log
        answer = pawand.call("POST", "/chat", {"message": "b"})[1]
        assert (answer["model"], answer["content"]) == ("second", "two")
        assert upstream.requests[1]["temperature"] == 0.25
        assert pawand.call("GET", "/health", headers={"Host": "mine"})[1]["model"] == "second"
        assert pawand.call("GET", "/models")[1]["models"][0]["name"] == "second"
        assert pawand.call("POST", "/chat", {"message": "x" * 2000})[0] == 413
        pawand.call("POST", "/chat", {"message": "c"})
        assert "denied by [permissions]" in upstream.requests[3]["messages"][-1]["content"]


def test_sighup_keeps_the_old_settings_where_the_new_ones_are_wrong(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    upstream.script = [fake.text("one")]
    config = tmp_path / "s" / "test.toml"
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config="temperature = 0.5\n") as pawand:
        config.write_text("temperature = 'hot'\n")
        hang_up(pawand, "the settings stay as they were")
        assert f"{config}: `temperature`" in pawand.log_text()
        config.unlink()
        hang_up(pawand, "the settings stay as they were", 2)
        assert pawand.call("POST", "/chat", {"message": "a"})[0] == 200
        assert upstream.requests[0]["temperature"] == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\ntoken_file = '~nosuchuser/x'\n", "~nosuchuser/x: there is no such user"),
        ('[sessions]\ndir = "a\\u0000b"\n', "sessions.dir"),
        ("[server]\ntoken_file = '/proc/self/mem'\n", "cannot be read"),
    ],
)
def test_after_a_sighup_that_failed_the_next_one_counts(
    tmp_path: Path, env: dict[str, str], text: str, words: str
) -> None:
    del env["PAWAN_MODEL"]
    config = tmp_path / "s" / "test.toml"
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config="model = 'a'\n") as pawand:
        config.write_text(text)
        hang_up(pawand, "the settings stay as they were")
        assert words in pawand.log_text()
        config.write_text("model = 'b'\n")
        hang_up(pawand, "settings read again")
        assert pawand.call("GET", "/health")[1]["model"] == "b"
        assert "Traceback" not in pawand.log_text()


def test_an_answer_that_is_being_sent_is_sent_to_its_end(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    upstream.script = [fake.text(*["x" * 100_000] * 120, pause=0.005)]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        connection = keep_alive(pawand)
        connection.request("POST", "/chat", json.dumps({"message": "x", "session_id": "s"}), HEADERS)
        until(lambda: upstream.requests, "the turn asks")
        pawand.process.send_signal(signal.SIGTERM)
        answer = connection.getresponse()
        received = 0
        while data := answer.read(400_000):
            received += len(data)
            time.sleep(0.05)  # a slow reader
        assert received == int(answer.headers["Content-Length"]) > 12_000_000
        connection.close()
        assert pawand.process.wait(10) == 0


def test_a_turn_that_runs_keeps_its_settings(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    other = OpenAIServer([fake.text("from the other")])
    upstream.script = [
        fake.Reply([*fake.calls(("bash", {"command": "true"})).parts[:-1], 1.0, fake.DONE]),
        fake.text("from the first"),
    ]
    del env["OPENAI_API_URL"]
    env["PAWAND_DEBUG"] = "1"  # its descriptors are looked at
    config = tmp_path / "s" / "test.toml"
    first = f'base_url = "{upstream.url}"\nprovider = "openai"\n'
    with other, harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=first) as pawand:
        turn = Stream(pawand.url, "/chat/stream", {"message": "a", "session_id": "s"})
        turn.read_until("start")
        until(lambda: upstream.requests, "the turn asks")
        config.write_text(f'base_url = "{other.url}"\nprovider = "openai"\n')
        hang_up(pawand, "settings read again")
        assert pawand.call("POST", "/chat", {"message": "b", "session_id": "t"})[1]["content"] == "from the other"
        assert turn.read_rest()[-1][1]["content"] == "from the first"
        first_port = int(urlsplit(upstream.url).port or 0)
        until(lambda: not connections_to(pawand.process.pid, first_port), "the first provider's connections closed")
        assert connections_to(pawand.process.pid, int(urlsplit(other.url).port or 0))


def connections_to(pid: int, port: int) -> int:
    """How many of a process are open to a port of this machine."""
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[2].partition(":")[2], 16) == port and f"socket:[{row[9]}]" in inodes for row in rows)


def test_sighup_reads_the_token_again(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    token = tmp_path / "s" / "token"
    token.parent.mkdir()
    token.touch(0o600)
    token.write_text("a-token-of-the-first-kind")
    old, new = ({"Authorization": f"Bearer a-token-of-the-{kind}-kind"} for kind in ("first", "second"))
    config = '[server]\nlocal_auth = "token"\n'
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=config) as pawand:
        assert pawand.call("GET", "/models", headers=old)[0] == 200
        token.write_text("a-token-of-the-second-kind")
        hang_up(pawand, "settings read again")
        assert pawand.call("GET", "/models", headers=old)[0] == 401
        assert pawand.call("GET", "/models", headers=new)[0] == 200


def test_a_daemon_in_a_terminal_ends_with_it(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    (tmp_path / "w").mkdir()
    environ = harness.environment(Path(os.environ["HOME"]), tmp_path / "s", **env)
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(tmp_path / "w")
        os.execve(harness.COMMAND, ["pawand", "serve", "--port", "0"], environ)
    until((tmp_path / "s" / "run" / "pawand.json").exists, "the daemon is ready")
    os.kill(pid, signal.SIGHUP)
    seen = b""
    while b"settings read again" not in seen:
        seen += os.read(master, 4096)
    os.close(master)  # the window is closed
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
