"""The units that are shipped, run by a real systemd: restrictions, sandbox, sockets, reload, restart, watchdog."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from pawand.cli import units
from tests import harness, manager
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.harness import until
from tests.test_socket_activation import ask_all_the_time, get

pytestmark = [pytest.mark.slow, pytest.mark.alone]


class Service:
    """A `pawand.service` with its socket that runs under `systemd`."""

    def __init__(self, systemd: manager.Manager, address: tuple[str, int]) -> None:
        self.systemd = systemd
        self.address = address

    @property
    def pid(self) -> int:
        """As this test's namespace counts."""
        inner = self.systemd.show("pawand.service", "MainPID")
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
            except OSError:
                continue
            if f"\nNSpid:\t{status.parent.name}\t{inner}\n" in text and "Name:\tpawand\n" in text:
                return int(status.parent.name)
        raise AssertionError(f"no process of ours is {inner} there")

    def call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        url = f"http://{self.address[0]}:{self.address[1]}{path}"
        with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=60) as response:
            return json.loads(response.read())

    def status(self, name: str) -> str:
        """A line of the daemon's /proc/<pid>/status."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


@pytest.fixture
def service(tmp_path: Path, env: dict[str, str]) -> Iterator[Service]:
    needed = {harness.COMMAND, Path(sys.base_prefix) / "bin"}
    if not all(map(manager.is_open_to_all, needed)):
        pytest.skip(f"another user cannot run {harness.COMMAND}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text, _ = units.service(units.template(units.SERVICE, user=False), harness.COMMAND, Path("/srv/pawand"), user=False)
    variables = {**env, "PYTHONPATH": "/srv/source", "LC_ALL": "C.UTF-8"}
    lines = [f'Environment="{name}={value}"' for name, value in variables.items()]
    drop_in = ["[Service]", f"User={manager.USER}", "StandardError=append:/srv/pawand.log", "WatchdogSec=4", *lines]
    drop_in.append("ProtectHome=read-only")  # what covers folders lies itself in one of them, for a user's manager
    folder = tmp_path / "srv/pawand"
    folder.mkdir(parents=True)
    shutil.chown(folder, manager.USER)
    files = {
        units.SERVICE: text,
        units.SOCKET: units.template(units.SOCKET, user=False),
        "pawand.service.d/test.conf": "\n".join(drop_in) + "\n",
        "pawand.socket.d/test.conf": f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n",
    }
    with manager.running(tmp_path, files) as systemd:
        systemd.systemctl("start", units.SOCKET, units.SERVICE)
        yield Service(systemd, ("127.0.0.1", port))


def test_the_service_is_restricted_and_its_sandbox_works(service: Service, upstream: OpenAIServer) -> None:
    command = "id -u; touch /etc/made; touch made; mount -t tmpfs x /mnt; cat /proc/self/status"
    upstream.script = [fake.calls(("bash", {"command": command})), fake.text("done")]
    assert service.call("/health")["sandbox"] == "bwrap"
    assert service.call("/chat", {"message": "x", "session_id": "s"})["content"] == "done"
    result = service.call("/sessions/s")["messages"][2]["tool_result"]["content"]
    assert result["stdout"].startswith("65534\n")
    assert "NoNewPrivs:\t1\n" in result["stdout"]
    assert "Seccomp:\t2\n" in result["stdout"]
    assert "/etc/made" in result["stderr"]
    assert (service.systemd.srv / "pawand/made").stat().st_uid == 65534
    # the daemon itself
    assert service.status("Uid").split() == ["65534"] * 4
    assert service.status("CapBnd") == service.status("CapEff") == "0" * 16
    assert (service.status("NoNewPrivs"), service.status("Seccomp")) == ("1", "2")
    mounts = Path(f"/proc/{service.pid}/mountinfo").read_text().splitlines()
    assert [line.split()[5].split(",")[0] for line in mounts if line.split()[4] == "/"] == ["ro"]


def test_systemd_reads_its_status_and_reloads_it(service: Service) -> None:
    shown = {name: service.systemd.show(units.SERVICE, name) for name in ("ActiveState", "StatusText")}
    address = f"{service.address[0]}:{service.address[1]}"
    assert shown == {"ActiveState": "active", "StatusText": f"Serving /srv/pawand on http://{address}, 0 turns running"}
    assert f"systemd holds the sockets: {address}" in service.systemd.log()
    service.systemd.systemctl("reload", units.SERVICE)
    until(lambda: "settings read again" in service.systemd.log(), "it read its settings")
    service.systemd.systemctl("stop", units.SERVICE)
    assert service.systemd.show(units.SERVICE, "Result") == "success"


def test_systemctl_restart_loses_no_connection(service: Service) -> None:
    async def restart() -> list[Any]:
        over = asyncio.Event()
        asking = asyncio.create_task(ask_all_the_time(service.address, over))
        for _ in range(2):
            await asyncio.to_thread(service.systemd.systemctl, "restart", units.SERVICE)
        over.set()
        return await asking

    answers = asyncio.run(restart())
    assert len(answers) > 20
    assert [answer for answer in answers if answer != 200] == []


def test_the_socket_starts_the_service(service: Service) -> None:
    service.systemd.systemctl("stop", units.SERVICE)
    assert asyncio.run(get(service.address))[0] == 200


def test_other_addresses_count_when_both_were_stopped(service: Service) -> None:
    drop_in = service.systemd.srv / "units/pawand.socket.d/test.conf"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    drop_in.write_text(f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n")
    service.systemd.systemctl("daemon-reload")
    for command in ("stop", "start"):
        service.systemd.systemctl(command, units.SOCKET, units.SERVICE)
    assert asyncio.run(get(("127.0.0.1", port)))[0] == 200
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(get(service.address))


def test_one_that_stands_still_is_started_again(service: Service) -> None:
    before = service.pid
    os.kill(before, signal.SIGSTOP)
    until(lambda: service.systemd.show(units.SERVICE, "NRestarts") == "1", "systemd notices", 30)
    assert asyncio.run(get(service.address))[0] == 200
    assert service.pid != before
