"""What files say: settings as TOML, and secrets, which come from the environment and from credentials too."""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pawand import paths
from pawand.errors import ConfigError

MAX_FILE_BYTES = 1024 * 1024
# A line of `.env`: quotes go, and so does a comment after a blank.
_ASSIGNMENT = re.compile(
    r"""\s*(?:export\s+)?(?P<name>\w+)\s*=\s*(?P<quote>['"]?)(?P<value>.*?)(?P=quote)\s*(?:(?<!\S)#.*)?"""
)


def parse_toml(path: Path) -> dict[str, Any]:
    """The document as plain values. Raises ConfigError naming the file and, for a syntax error, the line."""
    return toml_of(path, read_text(path))


def toml_of(path: Path, text: str) -> dict[str, Any]:
    """What `parse_toml` returns for a file with this text."""
    if text.startswith("\ufeff"):
        raise ConfigError(f"{path}: begins with a byte order mark: save it as UTF-8 without BOM")
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from error


def read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB, so it is no file of settings")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def is_there(path: Path) -> bool:
    """Raises ConfigError for what is no file: reading a device or a FIFO may never end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path}: cannot be read: it is not a file")
    return True


def is_open_to_others(path: Path) -> bool:
    """Whether others can read it. The machine's may be for the group of the service."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return bool(mode & (stat.S_IROTH if path == paths.SYSTEM_CONFIG else stat.S_IROTH | stat.S_IRGRP))


def load_secrets(names: list[str], env: Mapping[str, str], warnings: list[str]) -> dict[str, str]:
    """The values of `names` from the environment, systemd credentials, or a 0600 `~/.config/pawan/.env`.

    A blank value counts as none. Raises ConfigError for a credential that cannot be read.
    """
    layers = [
        _dotenv(paths.user_config_dir(env) / ".env", warnings),
        _credentials(Path(env["CREDENTIALS_DIRECTORY"]), names) if env.get("CREDENTIALS_DIRECTORY") else {},
        env,
    ]
    return {name: layer[name].strip() for layer in layers for name in names if layer.get(name, "").strip()}


def _dotenv(path: Path, warnings: list[str]) -> dict[str, str]:
    try:
        if not is_there(path):
            return {}
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path} is readable by others and is ignored; run: chmod 600 {path}")
        lines = read_text(path).splitlines()
    except ConfigError as error:
        warnings.append(error.message)
        return {}
    return {match["name"]: match["value"] for match in map(_ASSIGNMENT.fullmatch, lines) if match}


def _credentials(folder: Path, names: list[str]) -> dict[str, str]:
    """What systemd put there for us, a file for each (systemd.exec(5), "Credentials")."""
    return {name: read_text(folder / name) for name in names if is_there(folder / name)}
