"""How a file is read, replaced as a whole, written where it need not be a file, and put aside."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from pathlib import Path

TEMPORARY = ".tmp-"


def read(path: Path) -> bytes:
    """Raises OSError, with ELOOP or ENXIO for what is no file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENXIO, "it is not a file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes, like: os.stat_result | None = None) -> None:
    """Atomic: a reader sees the old file or the new one, after a crash too. Raises OSError.

    The file belongs to us alone, or has the owner and mode of the file that `like` is of.
    """
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            if like is not None:
                if (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, like.st_uid, like.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
            write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync(path.parent)


def write(descriptor: int, data: bytes) -> None:
    """All of it, without what a file object asks of the system besides. Raises OSError."""
    while data:
        data = data[os.write(descriptor, data) :]


def put(path: Path, data: bytes) -> None:
    """As `>` of a shell, but that a file is replaced as a whole. Raises OSError.

    What is no file (a pipe, a device) is written to, and a link is followed: neither may be replaced by a file.
    """
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        is_file = True
    if is_file:
        replace(Path(os.path.realpath(path)), data)
    else:
        with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb") as place:
            place.write(data)


def sync(folder: Path) -> None:
    """What was renamed or removed in it stays so after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def aside(path: Path) -> Path:
    """The name for a damaged file that is in the way."""
    return path.with_name(f"{path.name}.corrupt-{int(time.time())}")
