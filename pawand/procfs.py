"""What /proc tells of other processes: whether one is still the same, who listens on a port, which unit one is of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_LISTEN = "0A"  # state of a socket in /proc/net/tcp
_STATE, _START = 3, 22  # fields of proc_pid_stat(5); what follows the name begins with field 3


class Program(NamedTuple):
    pid: int
    name: str


class Unit(NamedTuple):
    """A unit of systemd; `user` says whether it is of the user's own manager."""

    name: str
    user: bool


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot: with the pid it is one process and no other.

    None where there is none, or one that has ended and waits to be collected.
    """
    try:
        fields = _stat(pid)
        return None if fields[_STATE - 3] in "ZX" else int(fields[_START - 3])
    except (OSError, IndexError, ValueError):
        return None


def is_halted(pid: int) -> bool:
    """Whether a signal or a debugger holds it, so that it does nothing at all."""
    try:
        return _stat(pid)[_STATE - 3] in "Tt"
    except (OSError, IndexError):
        return False


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def listener(port: int) -> Program | None:
    """Who listens on a TCP port; None where nobody does, or somebody whom we may not look at. Blocks."""
    inodes = {f"socket:[{inode}]" for file in ("tcp", "tcp6") for inode in _listening(Path("/proc/net", file), port)}
    if not inodes:
        return None
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        try:
            if any(_link(pid, descriptor) in inodes for descriptor in os.listdir(f"/proc/{pid}/fd")):
                return Program(pid, Path(f"/proc/{pid}/comm").read_text(errors="replace").strip())
        except OSError:  # ended meanwhile, or another user's
            continue
    return None


def _link(pid: int, descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{descriptor}")
    except FileNotFoundError:  # closed meanwhile
        return ""


def _listening(table: Path, port: int) -> list[str]:
    """The inodes of the sockets that listen on `port`."""
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port]


def unit_of(cgroup: str) -> Unit | None:
    """The service that the text of a /proc/PID/cgroup names; None where it names none, as in most containers."""
    for line in cgroup.splitlines():
        folders = line.split(":", 2)[-1].split("/")
        services = [folder for folder in folders if folder.endswith(".service")]
        if services and not services[-1].startswith("user@"):  # the manager's own, above what it runs
            return Unit(services[-1], user=any(folder.startswith("user@") for folder in services))
    return None
