"""Avahi, the mDNS of Debian, on a host of a test's network: a program of other people that must understand us."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.netns import Host

PROGRAMS = ("avahi-daemon", "avahi-browse", "avahi-publish-service", "dbus-daemon", "unshare")
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""
_SETTINGS = """[server]
host-name=outsider
use-ipv6=no
[wide-area]
enable-wide-area=no
[publish]
publish-hinfo=no
publish-workstation=no
"""


class Avahi:
    """A running avahi-daemon."""

    def __init__(self, host: Host, bus: Path) -> None:
        self._host = host
        self._env = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}", "LC_ALL": "C"}

    def browse(self) -> list[list[str]]:
        """What is resolved of our service within a second or so: interface, protocol, name, …, address, port, TXT."""
        command = ("avahi-browse", "--resolve", "--terminate", "--parsable", "_pawan._tcp")
        with self._host.inside():
            done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=30, check=True)
        return [line.split(";")[1:] for line in done.stdout.splitlines() if line.startswith("=")]

    @contextmanager
    def publish(self, name: str, port: int, *text: str) -> Iterator[None]:
        with self._host.inside():
            command = ["avahi-publish-service", name, "_pawan._tcp", str(port), *text]
            child = subprocess.Popen(command, env=self._env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            _end(child)


@contextmanager
def running(host: Host, folder: Path) -> Iterator[Avahi]:
    """Avahi with a bus of its own on `host`; skips where it is not installed."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    bus = folder / "bus"
    (folder / "bus.conf").write_text(_BUS.format(socket=bus))
    (folder / "avahi.conf").write_text(_SETTINGS)
    private = "mkdir -p /run/avahi-daemon && mount -t tmpfs tmpfs /run/avahi-daemon && exec "
    daemon = f"avahi-daemon --no-drop-root --no-chroot --no-rlimits -f {folder / 'avahi.conf'}"
    commands = (
        ["dbus-daemon", f"--config-file={folder / 'bus.conf'}", "--nofork"],
        ["unshare", "--mount", "sh", "-c", private + daemon],
    )
    found = Avahi(host, bus)
    with ExitStack() as stack, (folder / "avahi.log").open("wb") as log:
        for command in commands:
            with host.inside():
                child = subprocess.Popen(command, env=found._env, stdout=log, stderr=log)
            stack.callback(_end, child)
            _wait_for((folder / "avahi.log"), bus if command[0] == "dbus-daemon" else None)
        yield found


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(10)


def _wait_for(log: Path, socket: Path | None) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if socket.exists() if socket else "Server startup complete" in log.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"avahi does not start: {log.read_text()}")
