"""Where files live: the state and configuration folders and what is in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pawand.errors import ConfigError

SYSTEM_CONFIG = Path("/etc/pawan/pawan.toml")
CONFIG_NAME = "pawan.toml"
NO_HOME = Path("/nonexistent")  # the name that Debian gives it


def state_dir(env: Mapping[str, str] = os.environ) -> Path:
    """`$PAWAND_STATE_DIR`, else systemd's `$STATE_DIRECTORY` (the first of a list), else `~/.pawan`."""
    for value in (env.get("PAWAND_STATE_DIR"), env.get("STATE_DIRECTORY", "").split(":")[0]):
        if value:
            return expand(value).absolute()
    return _own_home("PAWAND_STATE_DIR") / ".pawan"


def config_home(env: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CONFIG_HOME`, else `~/.config` (XDG Base Directory: a relative value is ignored)."""
    value = env.get("XDG_CONFIG_HOME", "")
    return Path(value) if value.startswith("/") else _own_home("XDG_CONFIG_HOME") / ".config"


def home() -> Path:
    """The user's; for one who has none, a folder that nobody has."""
    try:
        return Path.home()
    except RuntimeError:
        return NO_HOME


def _own_home(instead: str) -> Path:
    if home() == NO_HOME:
        raise ConfigError(f"this user has no home folder: set HOME, or {instead}")
    return home()


def user_config_dir(env: Mapping[str, str] = os.environ) -> Path:
    return config_home(env) / "pawan"


def aegis_file(env: Mapping[str, str] = os.environ) -> Path:
    return config_home(env) / "aegis" / "aegis-net.toml"


def state_file(state: Path) -> Path:
    """Who runs here (docs/operations.md, "The state folder"), from when the port answers until the end."""
    return state / "run" / "pawand.json"


def log_file(state: Path) -> Path:
    """Where a daemon that `pawand start` has started logs."""
    return state / "logs" / "pawand.log"


def expand(path: str | Path) -> Path:
    """With `~` and `~user` as the folders they stand for. Raises ConfigError for a user who is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: there is no such user, or no home folder") from error


def private_dir(path: Path) -> Path:
    """Make `path` (and its parents) if it is missing, readable by its owner alone."""
    if not path.parent.exists():  # mkdir's own `parents` ignores the mode
        private_dir(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    return path
