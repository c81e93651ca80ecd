"""The keys of a process, seen from outside: what /proc shows, and what children get."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pawand import hardening

KEY = "sk-hardening-0123456789"
CHILD = """
import ctypes, os, subprocess, sys
from pawand import hardening
if "nobody" in sys.argv:
    os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, which setuid has taken
hardening.forget_environment(["SECRET_KEY", "EMPTY_KEY", "ABSENT_KEY"])
if "dumps" in sys.argv:
    hardening.forbid_dumps()
print("SECRET_KEY" in os.environ, "EMPTY_KEY" in os.environ, os.environ["KEPT"], flush=True)
print(subprocess.run(["env"], capture_output=True, text=True).stdout.encode(), flush=True)
sys.stdin.read()
"""


NOBODY = 65534


@contextmanager
def running(*arguments: str) -> Iterator[tuple[int, list[str]]]:
    """A process that has hardened itself, and its two lines of output."""
    env = {**os.environ, "SECRET_KEY": KEY, "EMPTY_KEY": "", "COPY": f"x{KEY}x", "KEPT": "kept"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdin is not None
        yield child.pid, [child.stdout.readline().strip(), child.stdout.readline().strip()]
        child.stdin.close()
        assert child.wait(10) == 0


def environ_as_same_user(pid: int) -> bytes:
    """What another program of the child's user reads."""
    as_root = os.geteuid() == 0
    if as_root:
        os.seteuid(NOBODY)
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    finally:
        if as_root:
            os.seteuid(0)


def test_the_environment_forgets_the_keys_and_nothing_else() -> None:
    with running() as (pid, (own, inherited)):
        block = Path(f"/proc/{pid}/environ").read_bytes()
    assert own == "False False kept"
    assert "KEPT=kept" in inherited
    assert "SECRET_KEY" not in inherited
    assert KEY.encode() not in block
    assert b"\0KEPT=kept\0" in block
    assert b"\0COPY=x" + bytes(len(KEY)) + b"x\0" in block


def test_a_process_without_dumps_is_closed_to_programs_of_its_own_user() -> None:
    user = ["nobody"] if os.geteuid() == 0 else []
    with running(*user) as (pid, _):
        assert b"KEPT=kept" in environ_as_same_user(pid)
    with running("dumps", *user) as (pid, (own, _)), pytest.raises(PermissionError):
        environ_as_same_user(pid)
    assert own == "False False kept"


def test_forgetting_what_is_not_there_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT_BY_TEST", "kept")
    before = dict(os.environ)
    hardening.forget_environment(["ABSENT_KEY"])
    assert dict(os.environ) == before


KEYRING = """
import ctypes, platform, sys
from pawand import hardening
libc = ctypes.CDLL(None, use_errno=True)
add, ctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[platform.machine()]
session = -3
libc.syscall(ctl, 1, None)  # one of this test's own
if libc.syscall(add, b"user", b"pawand-test", b"secret", 6, session) < 0:
    sys.exit(77)
found = lambda: libc.syscall(ctl, 10, session, b"user", b"pawand-test", 0) > 0
assert found()
hardening.leave_keyring()
assert not found()
"""


def test_the_keys_of_the_login_session_are_left_behind() -> None:
    child = subprocess.run([sys.executable, "-c", KEYRING], capture_output=True, text=True, check=False)
    if child.returncode == 77:
        pytest.skip("there are no keyrings here")
    assert child.returncode == 0, child.stderr
