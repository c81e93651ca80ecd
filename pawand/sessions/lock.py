"""Who owns a folder: a lock file that the kernel frees when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from pawand import paths
from pawand.errors import StartError


def acquire(file: Path, what: str) -> int:
    """Lock `file` (made with its folder) and return the descriptor to keep; children do not inherit it.

    Raises StartError that says who holds `what`.
    """
    try:
        paths.private_dir(file.parent)
        descriptor = os.open(file, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartError(f"{what} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 64).decode(errors="replace").strip()
        os.close(descriptor)
        raise StartError(
            f"{what} belongs to a running pawand (pid {holder or 'unknown'}); "
            "stop it, or set PAWAND_STATE_DIR to another folder"
        ) from error
    with contextlib.suppress(OSError):  # a full disk keeps nobody from reading
        file.write_text(str(os.getpid()))  # not held open for writing: the disk may be made read-only meanwhile
    return descriptor
