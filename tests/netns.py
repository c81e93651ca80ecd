"""A network of its own: hosts in network namespaces on one switch, which only the test that made them sees."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pytest

_CLONE_NEWNET = 0x40000000
_NAMESPACES = Path("/run/netns")


@dataclass(frozen=True)
class Host:
    """A machine of the network; `eth0` is on the switch, and loopback works."""

    namespace: str
    ip: str
    ip6: str

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be on this host: sockets that this thread opens, and programs and threads that it starts, belong to it for
        good, whatever is done with them after the block. So `harness.serve`, `Process.call` and `OpenAIServer` work
        as they are."""
        with open("/proc/thread-self/ns/net") as home, open(_NAMESPACES / self.namespace) as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def run(self, *command: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """A program on this host, to its end."""
        with self.inside():
            return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


class Lan:
    """`with Lan(3) as lan:` gives `lan.hosts`, 10.77.0.1 and so on, gone at the end; skips where that is impossible."""

    def __init__(self, hosts: int = 2) -> None:
        prefix = f"pawan-{secrets.token_hex(4)}"
        self._switch = f"{prefix}-switch"
        self.hosts = [Host(f"{prefix}-{n}", f"10.77.0.{n}", f"fd77::{n}") for n in range(1, hosts + 1)]

    def __enter__(self) -> Lan:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("network namespaces need root and iproute2")
        probe = subprocess.run(["ip", "netns", "add", self._switch], capture_output=True, text=True, check=False)
        if probe.returncode:
            pytest.skip(f"no network namespaces here: {probe.stderr.strip()}")
        try:
            self._build()
        except BaseException:
            self._delete()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._delete()

    def unplug(self, host: Host) -> None:
        """From the switch; the host itself sees nothing of it."""
        _ip("-n", self._switch, "link", "set", f"port{self.hosts.index(host)}", "nomaster")

    def plug(self, host: Host) -> None:
        _ip("-n", self._switch, "link", "set", f"port{self.hosts.index(host)}", "master", "switch")

    def _build(self) -> None:
        _ip("-n", self._switch, "link", "add", "switch", "type", "bridge", "mcast_snooping", "0")
        _ip("-n", self._switch, "link", "set", "switch", "up")
        for number, host in enumerate(self.hosts):
            _ip("netns", "add", host.namespace)
            self._plug(host, f"port{number}")

    def _plug(self, host: Host, port: str) -> None:
        there = ("-n", host.namespace)
        with host.inside():  # an address that is still being checked for duplicates cannot be bound
            Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
        _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _ip("-n", self._switch, "link", "set", port, "master", "switch", "up")
        _ip(*there, "link", "set", "lo", "up")
        _ip(*there, "address", "add", f"{host.ip}/24", "dev", "eth0")
        _ip(*there, "address", "add", f"{host.ip6}/64", "dev", "eth0", "nodad")
        _ip(*there, "link", "set", "eth0", "up")

    def _delete(self) -> None:
        """What is not there is no trouble: the network may be half built."""
        for namespace in [*(host.namespace for host in self.hosts), self._switch]:
            if (_NAMESPACES / namespace).exists():
                _ip("netns", "delete", namespace)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def _enter(descriptor: int) -> None:
    """Of this thread only (setns(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
