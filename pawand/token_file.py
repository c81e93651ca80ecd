"""The file with the token that callers from other machines send: made, replaced, and read in one way."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from pawand import paths
from pawand.errors import ConfigError

MIN_CHARS = 16


def make(path: Path) -> None:
    """A new token in a file that must not be there yet. Raises ConfigError."""
    try:
        paths.private_dir(path.parent)
        _write(path, path.parent)
    except OSError as error:
        raise ConfigError(f"the token file {path} cannot be made: {error.strerror}") from error


def replace(path: Path) -> None:
    """Another token in the place of the old one; who reads meanwhile gets the one or the other. Raises ConfigError."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        try:
            _write(temporary, path)
            temporary.rename(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise ConfigError(f"the token file {path} cannot be replaced: {error.strerror}") from error


def read(path: Path) -> str:
    """The token, white space around it taken off. Raises ConfigError for one that cannot be read or is too short."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {path} cannot be read: {error}") from error
    if len(token) < MIN_CHARS:
        raise ConfigError(f"the token in {path} has {len(token)} characters; at least {MIN_CHARS} are needed")
    return token


def is_open_to_others(path: Path) -> bool:
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def _write(path: Path, like: Path) -> None:
    """A new file of its own, for its owner alone; root makes it for the owner of `like`, who must read it."""
    owner = like.stat()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        if os.geteuid() == 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        file.write(secrets.token_urlsafe(32) + "\n")
        file.flush()
        os.fsync(descriptor)
