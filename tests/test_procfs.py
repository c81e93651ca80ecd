"""What /proc tells of other processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pawand import procfs
from pawand.procfs import Program, Unit


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/pawand.service\n", Unit("pawand.service", user=False)),
        (
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/pawand.service\n",
            Unit("pawand.service", user=True),
        ),
        ("0::/system.slice/system-pawand.slice/pawand@a.service/inner\n", Unit("pawand@a.service", user=False)),
        ("4:memory:/x\n1:name=systemd:/system.slice/mine.service\n0::/\n", Unit("mine.service", user=False)),
        ("0::/user.slice/user-0.slice/session-3.scope\n", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/init.scope\n", None),
        ("0::/\n", None),
        ("", None),
    ],
)
def test_the_unit_is_in_the_cgroup(cgroup: str, unit: Unit | None) -> None:
    assert procfs.unit_of(cgroup) == unit


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_who_listens_on_a_port(family: socket.AddressFamily) -> None:
    with socket.socket(family) as sock:
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        port = sock.getsockname()[1]
        assert procfs.listener(port) is None
        sock.listen()
        assert procfs.listener(port) == Program(os.getpid(), Path("/proc/self/comm").read_text().strip())
    assert procfs.listener(port) is None


def test_a_process_that_has_ended_has_not_begun() -> None:
    assert procfs.start_ticks(os.getpid()) == procfs.start_ticks(os.getpid()) is not None
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert isinstance(procfs.start_ticks(child.pid), int)
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert procfs.start_ticks(child.pid) is None  # though its pid is not free yet
    child.wait()
    assert procfs.start_ticks(child.pid) is None
