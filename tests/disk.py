"""A disk so small that a test can fill it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A file system of 64 KiB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        with self._filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 1024)
            except OSError:
                pass

    def free(self) -> None:
        self._filler.unlink()

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)


@contextmanager
def mounted() -> Iterator[SmallDisk]:
    path = Path(tempfile.mkdtemp(prefix="pawand-disk-"))  # not in tmp_path: pytest cannot remove a mount left by a kill
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", path], capture_output=True, text=True
    )
    try:
        if mount.returncode:
            pytest.skip(f"cannot mount a small disk: {mount.stderr.strip()}")
        yield SmallDisk(path)
        subprocess.run(["umount", "--lazy", path], check=True)
    finally:
        path.rmdir()
