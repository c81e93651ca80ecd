"""Keeps the keys of this process from its children and from other programs of the same user (Linux)."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable
from pathlib import Path

_PR_SET_DUMPABLE = 4
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_ENV_START, _ENV_END = 50, 51  # fields of proc_pid_stat(5); what follows the name begins with field 3


def forbid_dumps() -> None:
    """No core dumps, no ptrace, no /proc/<pid>/environ or mem for other programs (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def leave_keyring() -> None:
    """A session keyring of our own (keyctl(2)): what the user's login session keeps there is not for our children."""
    number = _KEYCTL.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None)


def forget_environment(names: Iterable[str]) -> None:
    """Remove the variables, and wipe their values where /proc/<pid>/environ would still show them."""
    values = [os.environb.pop(name.encode()) for name in names if name.encode() in os.environb]
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_ENV_START - 3]), int(fields[_ENV_END - 3])
    except (OSError, IndexError, ValueError):
        return
    if not 0 < start < end:
        return
    block = ctypes.string_at(start, end - start)
    for value in filter(None, values):
        at = block.find(value)
        while at != -1:
            ctypes.memset(start + at, 0, len(value))
            at = block.find(value, at + 1)
