"""What the daemon tells systemd, in which order, and what its children learn of it: a socket plays systemd."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pawand.daemon import systemd
from pawand.daemon.systemd import Systemd
from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.harness import Stream, until


class Manager:
    """The receiving end of sd_notify(3)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(20)

    def message(self, but: str = "") -> list[str]:
        """The lines of the next message; those that are `but` alone are passed over."""
        while True:
            lines = self.socket.recv(4096).decode().split("\n")
            if lines != [but]:
                return lines

    def waiting(self) -> list[str]:
        """All lines that have come by now."""
        lines: list[str] = []
        self.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                lines += self.socket.recv(4096).decode().split("\n")
        self.socket.settimeout(20)
        return lines


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.socket.close()


# --- what is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_ready_is_told_when_requests_are_answered(tmp_path: Path, env: dict[str, str], kind: str) -> None:
    manager = Manager(str(tmp_path / "notify") if kind == "path" else f"@pawand-test-{os.getpid()}")
    with harness.serve(tmp_path / "w", tmp_path / "s", env={**env, "NOTIFY_SOCKET": manager.address}) as pawand:
        ready, status = manager.message()
        assert pawand.call("GET", "/health")[0] == 200
        assert ready == "READY=1"
        assert status == f"STATUS=Serving {tmp_path}/w on {pawand.url}, 0 turns running"
    manager.socket.close()


@pytest.mark.slow
def test_the_status_follows_the_turns_to_the_end(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], manager: Manager
) -> None:
    upstream.script = [fake.text(*"abcdefghij", pause=1.2)] * 2
    with harness.serve(tmp_path / "w", tmp_path / "s", env={**env, "NOTIFY_SOCKET": manager.address}) as pawand:
        assert manager.message()[0] == "READY=1"
        streams = [Stream(pawand.url, "/chat/stream", {"message": "x"}) for _ in range(2)]
        [running] = manager.message()
        assert running == f"STATUS=Serving {tmp_path}/w on {pawand.url}, 2 turns running"
        pawand.process.send_signal(signal.SIGTERM)
        stopping, status, extension = manager.message()
        assert (stopping, status) == ("STOPPING=1", "STATUS=Finishing 2 turns")
        assert extension == "EXTEND_TIMEOUT_USEC=30000000"  # 20 s for the turns, 10 for the connections
        assert manager.message() == ["STATUS=Finishing 2 turns"]
        for stream in streams:
            assert stream.read_rest()[-1][0] == "done"
        assert pawand.process.wait(10) == 0
        rest = manager.waiting()
        assert "EXTEND_TIMEOUT_USEC=15000000" in rest
        assert "READY=1" not in rest


def test_a_reload_is_told(tmp_path: Path, env: dict[str, str], manager: Manager) -> None:
    with harness.serve(tmp_path / "w", tmp_path / "s", env={**env, "NOTIFY_SOCKET": manager.address}) as pawand:
        assert manager.message()[0] == "READY=1"
        before = time.monotonic_ns() // 1000
        pawand.process.send_signal(signal.SIGHUP)
        reloading, when = manager.message()
        assert reloading == "RELOADING=1"
        assert before <= int(when.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
        assert manager.message() == ["READY=1"]


def test_a_socket_that_nobody_reads_stops_nothing(tmp_path: Path, env: dict[str, str]) -> None:
    address = {"NOTIFY_SOCKET": str(tmp_path / "nowhere"), "WATCHDOG_USEC": "200000"}
    with harness.serve(tmp_path / "w", tmp_path / "s", env={**env, **address}) as pawand:
        assert pawand.call("GET", "/health")[0] == 200


# --- the watchdog ---------------------------------------------------------------------------------


def test_the_watchdog_hears_nothing_from_a_process_that_stands_still(
    tmp_path: Path, env: dict[str, str], manager: Manager
) -> None:
    given = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    with harness.serve(tmp_path / "w", tmp_path / "s", env={**env, **given}) as pawand:
        assert manager.message()[0] == "READY=1"
        assert [manager.message() for _ in range(3)] == [["WATCHDOG=1"]] * 3
        pawand.process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: _state(pawand.process.pid) == "T", "it stands still")
            manager.waiting()
            time.sleep(0.5)
            assert manager.waiting() == []
        finally:
            pawand.process.send_signal(signal.SIGCONT)
        assert manager.message() == ["WATCHDOG=1"]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_watchdog_hears_of_an_event_loop_that_stands_still(manager: Manager) -> None:
    async def work() -> None:
        informing = asyncio.create_task(
            Systemd(address=manager.address, watchdog_secs=0.1).keep_informed(lambda: "Serving")
        )
        assert await asyncio.to_thread(manager.message) == ["WATCHDOG=1"]
        manager.waiting()
        time.sleep(0.5)  # noqa: ASYNC251 - this is what it is about
        assert manager.waiting() == []
        assert await asyncio.to_thread(manager.message) == ["WATCHDOG=1"]
        informing.cancel()

    asyncio.run(asyncio.wait_for(work(), 10))


@pytest.mark.parametrize(
    ("pid", "secs"), [("", 60.0), ("{own}", 60.0), ("1", None), ("x", None)], ids=["unset", "ours", "other", "garbage"]
)
def test_the_watchdog_of_another_process_is_not_ours(pid: str, secs: float | None) -> None:
    env = {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": pid.format(own=os.getpid())}
    assert systemd.take(env).watchdog_secs == secs


@pytest.mark.parametrize("usec", ["", "0", "-1", "soon", "9" * 30])
def test_a_watchdog_without_a_time_is_none(usec: str) -> None:
    assert systemd.take({"WATCHDOG_USEC": usec}).watchdog_secs is None


# --- what children learn --------------------------------------------------------------------------


def test_nothing_of_it_stays_for_children() -> None:
    env = dict.fromkeys(systemd.VARIABLES, "1") | {"PATH": "/bin"}
    systemd.take(env)
    assert env == {"PATH": "/bin"}


@pytest.mark.parametrize("sandbox", ["auto", "off"])
def test_a_command_of_the_agent_does_not_see_it(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], manager: Manager, sandbox: str
) -> None:
    upstream.script = [fake.calls(("bash", {"command": "env; ls -l /proc/self/fd"})), fake.text("done")]
    given = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "60000000"}
    config = f'[sandbox]\nmode = "{sandbox}"\n'
    with harness.serve(tmp_path / "w", tmp_path / "s", env={**env, **given}, config=config) as pawand:
        assert pawand.call("POST", "/chat", {"message": "x", "session_id": "s"})[1]["content"] == "done"
        output = pawand.stored("s")[2]["tool_result"]["content"]["stdout"]
    assert "PATH=" in output
    assert not [name for name in systemd.VARIABLES if name in output]
