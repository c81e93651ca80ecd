"""The daemon's side of systemd: the sockets that it is handed, what it tells, the watchdog.

The protocols are those of sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3). Without systemd nothing is handed,
and what is told goes nowhere.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress

from msgspec import Struct

from pawand.errors import ConfigError

FIRST_DESCRIPTOR = 3
MAX_DESCRIPTORS = 1024
VARIABLES = (
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)
STATUS_SECS = 5.0
TELL_SECS = 1.0
"""How long the loop may stand still for a word that must arrive, should systemd not read."""


class Systemd(Struct, frozen=True, kw_only=True):
    """What it gave this process. `descriptors` are the handed ones with their names."""

    address: str = ""
    watchdog_secs: float | None = None
    descriptors: dict[int, str] = {}

    def sockets(self) -> list[socket.socket]:
        """The handed sockets, not blocking and not inherited. Raises ConfigError for one that is no TCP listener."""
        sockets: list[socket.socket] = []
        try:
            for descriptor, name in self.descriptors.items():
                sockets.append(_listener(descriptor, name))
        except ConfigError:
            for sock in sockets:
                sock.close()
            raise
        return sockets

    def tell(self, *lines: str, wait: bool = True) -> None:
        """Send one message. With `wait=False` it is lost where systemd is behind with reading."""
        if not self.address:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, suppress(OSError):
            sock.settimeout(TELL_SECS if wait else 0)
            sock.sendto("\n".join(lines).encode(), address)

    def tell_reloading(self) -> None:
        """systemd knows by the time that this reload is the one it asked for (Type=notify-reload)."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def tell_stopping(self, secs: float, status: str) -> None:
        """It will be over, or told of again, within `secs`."""
        self.tell("STOPPING=1", f"STATUS={status}", extension(secs))

    async def keep_informed(self, status: Callable[[], str]) -> None:
        """Until cancelled: say what `status` returns when that has changed, and that the event loop goes round."""
        if not self.address:
            return
        beat = ["WATCHDOG=1"] if self.watchdog_secs else []
        pause = min(STATUS_SECS, (self.watchdog_secs or 2 * STATUS_SECS) / 2)
        told, told_at = status(), time.monotonic()
        while True:
            await asyncio.sleep(pause)
            lines = list(beat)
            if status() != told and time.monotonic() - told_at >= STATUS_SECS / 2:
                told, told_at = status(), time.monotonic()
                lines.append(f"STATUS={told}")
            if lines:
                self.tell(*lines, wait=False)


def take(env: MutableMapping[str, str] = os.environ) -> Systemd:
    """What this process was given, removed from `env`: a child would take it for its own."""
    given = {name: env.pop(name, "") for name in VARIABLES}
    ours = (str(os.getpid()), "")
    usec = _number(given["WATCHDOG_USEC"]) if given["WATCHDOG_PID"] in ours else 0
    count = min(_number(given["LISTEN_FDS"]), MAX_DESCRIPTORS) if given["LISTEN_PID"] == ours[0] else 0
    names = given["LISTEN_FDNAMES"].split(":") + [""] * count
    return Systemd(
        address=given["NOTIFY_SOCKET"],
        watchdog_secs=usec / 1e6 or None,
        descriptors={FIRST_DESCRIPTOR + number: names[number] for number in range(count)},
    )


def extension(secs: float) -> str:
    """The line that asks for more time than the unit gives."""
    return f"EXTEND_TIMEOUT_USEC={int(secs * 1e6)}"


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def _listener(descriptor: int, name: str) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise _unusable(descriptor, name, error.strerror or "no socket") from error
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.proto != socket.IPPROTO_TCP:
        fault = "it is no TCP socket: ListenStream= takes an address and a port"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        fault = "it does not listen: Accept= must be off"
    else:
        sock.set_inheritable(False)
        sock.setblocking(False)
        return sock
    sock.close()
    raise _unusable(descriptor, name, fault)


def _unusable(descriptor: int, name: str, fault: str) -> ConfigError:
    return ConfigError(f"descriptor {descriptor} ({name or 'unnamed'}) from systemd cannot be served on: {fault}")
