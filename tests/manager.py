"""A systemd for tests: a real one, as the manager of root's own units, with mounts and processes of its own.

It starts what the units say, as the system's would: user, capabilities, system calls, read-only mounts, sockets, the
watchdog. What a test may see of it lies in `/srv` of its namespace, which is a folder of the test's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SYSTEMD = Path("/usr/lib/systemd/systemd")
SOURCE = Path(__file__).parents[1]
"""In `/srv/source` there: it may lie where the service does not look, as in /tmp."""
USER = "nobody"
START_SECS = 20
# Programs that lie in a home are shown to everybody: the service is another user.
_SCRIPT = r"""
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd/system /run/user/0 /run/kept
for folder in "$@"; do
  mkdir -p "/run/kept$folder"
  mount --bind "$folder" "/run/kept$folder"
done
mount -t tmpfs -o mode=755 tmpfs /root
for folder in "$@"; do
  mkdir -p "$folder"
  mount --bind "/run/kept$folder" "$folder"
done
mkdir -p "$SRV/source"
mount --bind "$SOURCE" "$SRV/source"
mount --rbind "$SRV" /srv
mount -t tmpfs -o mode=755 tmpfs /var/lib
install -d -m 0700 -o nobody /var/lib/pawand  # StateDirectory= changes no owner for a user's manager
env -i PATH="$PATH" HOME=/root XDG_RUNTIME_DIR=/run/user/0 XDG_CONFIG_HOME=/var/lib XDG_STATE_HOME=/var/lib \
  SYSTEMD_UNIT_PATH=/srv/units:/usr/lib/systemd/user SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=info \
  "$SYSTEMD" --user --unit=empty.target &
wait $!
"""


class Manager:
    """`srv` is /srv of its units, and `srv/units` where they are."""

    def __init__(self, srv: Path, pid: int) -> None:
        self.srv = srv
        self._pid = pid

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        command = ["nsenter", "--target", str(self._pid), "--mount", "--pid", "env", "XDG_RUNTIME_DIR=/run/user/0"]
        ended = subprocess.run(
            [*command, "systemctl", "--user", *arguments], capture_output=True, text=True, timeout=60, cwd="/"
        )
        if check:
            why = "" if ended.returncode == 0 else self.systemctl("status", "--no-pager", "pawand.service", check=False)
            assert ended.returncode == 0, f"{ended.stderr}\n{why}\n{self.log()}"
        return ended.stdout.strip()

    def show(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", "--property", name, unit)

    def log(self) -> str:
        return "".join(file.read_text() for file in sorted(self.srv.glob("*.log")))


def is_open_to_all(path: Path) -> bool:
    """Whether `running` shows it to another user and its units do."""
    folders = [path, *path.parents]
    return not path.is_relative_to("/tmp") and all(f == Path("/root") or f.stat().st_mode & 0o001 for f in folders)


@contextmanager
def running(folder: Path, units: dict[str, str]) -> Iterator[Manager]:
    """With `units`, by their names; drop-ins too (`pawand.service.d/test.conf`). Skips where that cannot be had."""
    if os.geteuid() != 0 or not SYSTEMD.exists():
        pytest.skip("a systemd of our own needs root, and systemd to be installed")
    if shutil.which("nsenter") is None:
        pytest.skip("nsenter is not installed")
    srv = folder / "srv"
    for name, text in {**units, "empty.target": "[Unit]\nDescription=Nothing\n"}.items():
        file = srv / "units" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    kept = [str(path) for path in {Path(sys.base_prefix), Path(sys.prefix)} if path.is_relative_to("/root")]
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with (srv / "manager.log").open("wb") as output:
        child = subprocess.Popen(
            [*unshare, "sh", "-c", _SCRIPT, "sh", *kept],
            env={"PATH": os.environ["PATH"], "SRV": str(srv), "SYSTEMD": str(SYSTEMD), "SOURCE": str(SOURCE)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
        )
    try:
        yield Manager(srv, _wait(child, srv / "manager.log"))
    finally:
        child.kill()  # of unshare: --kill-child ends all others
        child.wait(20)


def _wait(child: subprocess.Popen[bytes], log: Path) -> int:
    """The pid of the manager, once it takes commands."""
    end = time.monotonic() + START_SECS
    while time.monotonic() < end and child.poll() is None:
        inner = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        runtime = Path("/proc", inner[0], "root", "run/user/0/systemd") if inner else None
        if runtime is not None and (runtime / "private").exists():
            for path in (runtime, runtime / "notify"):
                path.chmod(0o777)  # the system's own is open to all users
            return int(inner[0])
        time.sleep(0.02)
    if child.poll() is None:
        child.kill()
        child.wait(20)
    pytest.skip(f"systemd cannot be started here: {log.read_text()[-300:]}")
