"""The systemd units of an installation: the files of `systemd/`, with its paths filled in."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
import sysconfig
from pathlib import Path

from pawand.errors import ConfigError

SERVICE = "pawand.service"
SOCKET = "pawand.socket"
_HOMES = ("/home", "/root", "/run/user")
_PRIVATE_TMP = ("/tmp", "/var/tmp")  # noqa: S108 - the service has its own
_PLAIN = re.compile(r"[A-Za-z0-9/_.,:@+~-]+")


def template(name: str, *, user: bool) -> str:
    """The unit as it is shipped: beside the package in a checkout, where pip put it otherwise. Raises ConfigError."""
    part = f"user/{name}" if user else name
    checkout = Path(__file__).parents[2] / "systemd" / part
    installed = Path(sysconfig.get_path("data")) / "share/pawand/systemd" / part
    for file in (checkout, _recorded(part), installed):
        if file is not None and file.is_file():
            return file.read_text(encoding="utf-8")
    raise ConfigError(f"this installation has no {part} (looked for {installed}): install pawand with pip again")


def _recorded(part: str) -> Path | None:
    """Where pip says that it put the file: with --user and --prefix that is in no scheme of the interpreter."""
    try:
        files = importlib.metadata.files("pawand") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = next((file for file in files if str(file).endswith(f"share/pawand/systemd/{part}")), None)
    return Path(str(found.locate())) if found is not None else None


def program() -> Path:
    """The `pawand` of this installation. Raises ConfigError."""
    beside = Path(sys.executable).parent / "pawand"
    for path in (beside, Path(sys.argv[0]).absolute()):
        if path.name == "pawand" and path.is_file() and os.access(path, os.X_OK):
            return path
    raise ConfigError(f"there is no pawand beside {sys.executable}: install it with pip, and run it from there")


def service(text: str, program: Path, workspace: Path, *, user: bool) -> tuple[str, list[str]]:
    """The service unit with its paths, and what its user should know. Raises ConfigError for a path it cannot have."""
    notes: list[str] = []
    text = _set(text, "ExecStart", f"{_command_word(program)} serve")
    text = _set(text, "WorkingDirectory", _plain(workspace))
    if user:
        return text, notes
    text = _set(text, "ReadWritePaths", _word(workspace))
    needed = (program, Path(sys.executable), workspace)
    for path in needed:
        if _lies_in(path, _PRIVATE_TMP):
            raise ConfigError(f"the service has a /tmp of its own and does not see {path}: choose another place")
    below_home = [str(path) for path in needed if _lies_in(path, _HOMES)]
    if below_home:
        text = _set(text, "ProtectHome", "read-only")
        notes.append(
            f"home folders are read-only to the service and not hidden, since {' and '.join(below_home)} lie there; "
            "the user pawand must be able to reach them"
        )
    return text, notes


def _set(text: str, key: str, value: str) -> str:
    """With another value in the one line that sets `key`."""
    made, count = re.subn(rf"^{key}=.*$", lambda _: f"{key}={value}", text, flags=re.MULTILINE)
    if count != 1:
        raise ConfigError(f"the unit of this installation sets {key}= {count} times: install pawand with pip again")
    return made


def _lies_in(path: Path, folders: tuple[str, ...]) -> bool:
    return any(path.is_relative_to(folder) or path.resolve().is_relative_to(folder) for folder in folders)


# --- how paths are written (systemd.syntax(7), systemd.service(5)) --------------------------------


def _plain(path: Path) -> str:
    """As a value that is one path: only % has a meaning there.

    Backslashes are refused: versions of systemd do not agree on what they mean.
    """
    text = str(path)
    if text.endswith(" ") or re.search(r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]", text):
        raise ConfigError(
            f"{text!r} cannot be written into a unit (control characters, \\, a blank at the end): rename it"
        )
    return text.replace("%", "%%")


def _word(path: Path) -> str:
    """As one of a list of paths, where quotes and blanks have a meaning."""
    text = _plain(path)
    if _PLAIN.fullmatch(text.replace("%", "")):
        return text
    return "'\"'".join(f'"{part}"' for part in text.split('"'))


def _command_word(path: Path) -> str:
    """As the program of a command line; systemd takes none with quotes, however they are written."""
    text = _plain(path)
    if re.search("[\"']", text):
        raise ConfigError(f"systemd starts no program with quotes in its path: move {path}")
    return f'"{text}"' if " " in text else text
