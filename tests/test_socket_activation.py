"""Sockets that systemd holds: what is taken and what is refused, and restarts that lose no connection.

The test plays systemd: it listens, and passes the socket on as descriptor 3.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pawand.daemon import system
from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.harness import Stream, until

FIRST = 3


class Activated:
    """`pawand serve` with handed sockets, started again and again."""

    def __init__(self, folder: Path, env: dict[str, str], sockets: list[socket.socket], *flags: str) -> None:
        self.state = folder / "s"
        self.log = folder / "log"
        (folder / "w").mkdir(exist_ok=True)
        self._environ = harness.environment(Path(os.environ["HOME"]), self.state, **env)
        self._environ |= {"LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": ":".join("pawand" for _ in sockets)}
        self._sockets = sockets
        self._command = [str(harness.COMMAND), "serve", "--workspace", str(folder / "w"), *flags]
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        # Moved out of the way first: one of them may be 3 already, or become what another must be.
        high = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, 100) for sock in self._sockets]
        moves = " ".join(f"{FIRST + number}<&{fd} {fd}<&-" for number, fd in enumerate(high))
        # The shell becomes the daemon, so that its pid is the one that is handed the sockets.
        script = f'exec {moves}; LISTEN_PID=$$ exec "$@"'
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                ["bash", "-c", script, "bash", *self._command],
                env=self._environ,
                pass_fds=high,
                stdout=output,
                stderr=output,
            )
        for fd in high:
            os.close(fd)
        return self.process

    def ready(self) -> dict[str, Any]:
        """The state file of the process that runs now."""

        def written() -> dict[str, Any] | None:
            assert self.process.poll() is None, self.log.read_text()
            try:
                found: dict[str, Any] = json.loads((self.state / "run" / "pawand.json").read_bytes())
            except (OSError, ValueError):
                return None
            return found if found["pid"] == self.process.pid else None

        found: dict[str, Any] = until(written, "the daemon is ready", 30)
        return found

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def activated(folder: Path, env: dict[str, str], sockets: list[socket.socket], *flags: str) -> Iterator[Activated]:
    daemon = Activated(folder, env, sockets, *flags)
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.stop()
        for sock in sockets:
            sock.close()


def links(pid: int) -> set[str]:
    """What its descriptors are; some come and go."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(link))
    return found


def listener(address: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family, backlog=1024)


def shown(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- what is taken --------------------------------------------------------------------------------


def test_handed_sockets_are_served_and_nothing_is_bound(tmp_path: Path, env: dict[str, str]) -> None:
    sockets = [listener(), listener("::1")]
    with activated(tmp_path, env, sockets) as daemon:
        assert daemon.ready()["url"] == f"http://{shown(sockets[0])}"
        for sock in sockets:
            assert asyncio.run(get(sock.getsockname()))[0] == 200
        assert listening(daemon.process.pid) == {sock.getsockname()[1] for sock in sockets}
        log = daemon.log.read_text()
        assert f"systemd holds the sockets: {shown(sockets[0])}, {shown(sockets[1])}" in log
        assert "do not count" not in log
        assert daemon.stop() == 0


def listening(pid: int) -> set[int]:
    """The TCP ports that a process listens on."""
    inodes = links(pid)
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


def test_settings_that_say_otherwise_do_not_count_and_that_is_said(tmp_path: Path, env: dict[str, str]) -> None:
    sock = listener()
    with activated(tmp_path, env, [sock], "--port", "4711") as daemon:
        daemon.ready()
        assert f"[server] host and port do not count: systemd holds {shown(sock)}" in daemon.log.read_text()
        assert listening(daemon.process.pid) == {sock.getsockname()[1]}


def test_beyond_loopback_follows_from_the_socket(tmp_path: Path, env: dict[str, str]) -> None:
    sock = listener("0.0.0.0")
    with activated(tmp_path, env, [sock]) as daemon:
        assert daemon.ready()["url"] == f"http://127.0.0.1:{sock.getsockname()[1]}"
        assert (daemon.state / "token").stat().st_mode & 0o777 == 0o600
        harness.until(lambda: f"systemd holds the sockets: {shown(sock)}" in daemon.log.read_text(), "the log says so")


def test_others_are_told_the_port_that_they_reach() -> None:
    with ExitStack() as stack:
        inner, first, second = (
            stack.enter_context(socket.create_server((host, 0))) for host in ("127.0.0.1", "0.0.0.0", "0.0.0.0")
        )
        assert system.announced([inner, first, second]) == (first.getsockname()[1], ["0.0.0.0"])
        assert system.announced([inner]) == (inner.getsockname()[1], ["127.0.0.1"])


def test_sockets_for_another_process_are_left_alone(tmp_path: Path, env: dict[str, str]) -> None:
    given = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    with harness.serve(tmp_path / "w", tmp_path / "s", env={**env, **given}) as pawand:
        assert pawand.call("GET", "/health")[0] == 200
        assert "systemd holds" not in pawand.log_text()


def test_a_command_of_the_agent_has_neither_the_variables_nor_the_socket(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    command = "env; ls -l /proc/self/fd"
    upstream.script = [fake.calls(("bash", {"command": command})), fake.text("done")]
    config = tmp_path / "c.toml"
    config.write_text('[sandbox]\nmode = "off"\n')
    with activated(tmp_path, env, [listener()], "--config", str(config)) as daemon:
        url = daemon.ready()["url"]
        Stream(url, "/chat/stream", {"message": "x", "session_id": "s"}).read_rest()
        stored = json.loads((daemon.state / "sessions" / "s.json").read_bytes())["messages"]
    output = stored[2]["tool_result"]["content"]["stdout"]
    assert "PATH=" in output
    assert "LISTEN_" not in output
    assert "socket:" not in output


# --- what is refused ------------------------------------------------------------------------------


def _unix() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")
    sock.listen()
    return sock


def _datagrams() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def _connected() -> socket.socket:
    with listener() as server:
        return socket.create_connection(server.getsockname())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_unix, "it is no TCP socket: ListenStream= takes an address and a port"),
        (_datagrams, "it is no TCP socket"),
        (_connected, "it does not listen: Accept= must be off"),
    ],
)
def test_other_sockets_end_the_start_with_what_to_change(
    tmp_path: Path, env: dict[str, str], make: Any, words: str
) -> None:
    with activated(tmp_path, env, [listener(), make()]) as daemon:
        assert daemon.process.wait(30) == 2
        log = daemon.log.read_text()
    assert f"descriptor 4 (pawand) from systemd cannot be served on: {words}" in log
    assert "Traceback" not in log


# --- restarts -------------------------------------------------------------------------------------


async def get(address: tuple[Any, ...], path: str = "/health", wait: float = 60) -> tuple[int, dict[str, Any]]:
    """One request on a connection of its own; an error where it is refused or cut."""
    async with asyncio.timeout(wait):
        reader, writer = await asyncio.open_connection(*address[:2])
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().partition("content-length: ")[2].split()[0])
            return int(head.split()[1]), json.loads(await reader.readexactly(length))
        finally:
            writer.close()


async def ask_all_the_time(address: tuple[Any, ...], over: asyncio.Event) -> list[Any]:
    """A connection every 10 ms until it is over; the status or the error of each."""
    asked = []
    due = time.monotonic()
    while not over.is_set():
        asked.append(asyncio.create_task(get(address)))
        due += 0.01
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return [answer if isinstance(answer, BaseException) else answer[0] for answer in answers]


@pytest.mark.slow
def test_restarts_lose_no_connection(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    upstream.script = [fake.text(*"abcdefghij", pause=0.3)]
    sock = listener()

    async def restart(daemon: Activated) -> list[Any]:
        over = asyncio.Event()
        asking = asyncio.create_task(ask_all_the_time(sock.getsockname(), over))
        url = daemon.ready()["url"]
        turn = await asyncio.to_thread(Stream, url, "/chat/stream", {"message": "x", "session_id": "s"})
        await asyncio.to_thread(turn.read_until, "token")
        for number in range(3):  # the first of them in the middle of the turn
            assert await asyncio.to_thread(daemon.stop) == 0
            daemon.start()
            await asyncio.to_thread(daemon.ready)
            if number == 0:
                assert (await asyncio.to_thread(turn.read_rest))[-1][1]["content"] == "abcdefghij"
            await asyncio.sleep(0.3)
        over.set()
        return await asking

    with activated(tmp_path, env, [sock]) as daemon:
        answers = asyncio.run(restart(daemon))
    assert len(answers) > 300
    assert [answer for answer in answers if answer != 200] == []
    assert len(upstream.requests) == 1
    assert daemon.log.read_text().count("stopping") >= 3


def test_who_has_connected_before_the_end_is_answered(tmp_path: Path, env: dict[str, str]) -> None:
    """Accepted, and nothing sent yet at SIGTERM: a GET gets its answer, a new turn its 503, a silent client no more."""
    sock = listener()
    with activated(tmp_path, env, [sock]) as daemon:
        url = daemon.ready()["url"]
        address = urlsplit(url)
        clients = [socket.create_connection((address.hostname, address.port), 10) for _ in range(4)]
        pooled, asking, sending, silent = clients
        pooled.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b" 200 " in pooled.recv(65536)
        body = b'{"message": "late"}'
        head = b"POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n"
        sending.sendall(head + body[:5])
        until(lambda: accepted(daemon.process.pid, address.port or 0) == 4, "all are accepted")
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in daemon.log.read_text(), "it stops")
        asking.sendall(b"GET /sessions HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        sending.sendall(body[5:])
        answered, refused = whole(asking), whole(sending)
        assert answered.startswith("HTTP/1.1 200 ")
        assert "Connection: close" in answered
        assert refused.startswith("HTTP/1.1 503 ")
        assert "Retry-After: " in refused
        assert "shutting down" in refused
        assert whole(silent) == whole(pooled) == ""
        assert daemon.process.wait(10) == 0
        assert time.monotonic() - began < 5
        for client in clients:
            client.close()


def accepted(pid: int, port: int) -> int:
    """How many connections to a port a process holds."""
    inodes = links(pid)
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        int(row[1].partition(":")[2], 16) == port and row[3] == "01" and f"socket:[{row[9]}]" in inodes for row in rows
    )


def whole(client: socket.socket) -> str:
    """All that comes until the daemon closes."""
    data = b""
    while piece := client.recv(65536):
        data += piece
    return data.decode()
