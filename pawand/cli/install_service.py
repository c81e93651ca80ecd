"""`pawand install-service`: writes the systemd units, and says what to do with them."""

from __future__ import annotations

import difflib
import os
import pwd
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import click

from pawand import paths
from pawand.cli import units
from pawand.cli.common import as_json, print_json, say
from pawand.errors import ConfigError, StartError

USER = "pawand"
STATE = Path("/var/lib/pawand")
WORKSPACE = Path("/srv/pawand")
SYSTEM_UNITS = Path("/etc/systemd/system")


class _Unit(NamedTuple):
    path: Path
    text: str
    state: str
    """`new`, `unchanged` or `differs`."""
    diff: str


@click.command("install-service")
@click.option("--user", is_flag=True, help="A service of yours, in place of one of the machine.")
@click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    help=f"Folder the agent works in.  [default: {WORKSPACE}; with --user this folder]",
)
@click.option("--socket", is_flag=True, help="Also a socket unit: no connection is refused while the daemon restarts.")
@click.option("--dry-run", is_flag=True, help="Show the units and write nothing.")
@click.option("--force", is_flag=True, help="Replace units that differ.")
@as_json
def command(user: bool, workspace: Path | None, socket: bool, dry_run: bool, force: bool, as_json: bool) -> None:
    """Write the systemd units of this installation, and print the commands that start it.

    Drop-ins (`systemctl edit pawand`) are left alone. A unit that is there and differs is shown and kept.
    """
    if not user and not dry_run and os.geteuid() != 0:
        raise ConfigError("only root can install a service of the machine: use sudo, or --user for a service of yours")
    workspace = Path(os.path.abspath(paths.expand(workspace or (Path.cwd() if user else WORKSPACE))))
    _check(workspace, user=user)
    wanted, notes = _wanted(workspace, user=user, socket=socket)
    found = [_look_at(path, text) for path, text in wanted.items()]
    refused = not force and any(unit.state == "differs" for unit in found)
    write = not dry_run and not refused
    if write:
        for unit in found:
            if unit.state != "unchanged":
                _write(unit)
    answer: dict[str, Any] = {
        "written": write,
        "files": [{"path": str(u.path), "state": u.state, "diff": u.diff, "text": u.text} for u in found],
        "notes": notes,
        "next": _next(workspace, [unit.state for unit in found], user=user, socket=socket),
    }
    if as_json:
        print_json(answer)
    else:
        _print(found, answer, dry_run=dry_run)
    if refused and not dry_run:
        if not as_json:
            say("pawand: nothing was written: units that are there differ (--force replaces them)", err=True)
        sys.exit(1)


def _check(workspace: Path, *, user: bool) -> None:
    """Refuse now what the daemon would refuse at its start. Raises ConfigError."""
    from pawand.tools.workspace import check_place

    home = paths.home() if user else STATE
    private = [paths.SYSTEM_CONFIG.parent, home / ".config/pawan", home / ".pawan" if user else STATE]
    if workspace.is_dir():
        check_place(workspace, private)
    elif workspace.exists():
        raise ConfigError(f"the workspace {workspace} is no folder")


def _wanted(workspace: Path, *, user: bool, socket: bool) -> tuple[dict[Path, str], list[str]]:
    """Path → text of each unit, and what to say about them."""
    folder = paths.config_home() / "systemd/user" if user else SYSTEM_UNITS
    template = units.template(units.SERVICE, user=user)
    service, notes = units.service(template, units.program(), workspace, user=user)
    wanted = {folder / units.SERVICE: service}
    if socket:
        wanted[folder / units.SOCKET] = units.template(units.SOCKET, user=user)
    if not user and workspace.is_dir() and (uid := _uid()) is not None and workspace.stat().st_uid != uid:
        notes.append(f"{workspace} does not belong to {USER}, who must be able to write there")
    if user and os.environ.get("PAWAND_STATE_DIR"):
        notes.append(
            "PAWAND_STATE_DIR is set in this shell and not in the service, which keeps its state in ~/.pawan: "
            "commands find it where the variable is not set"
        )
    return wanted, notes


def _uid() -> int | None:
    """Of the service's user, None where there is none."""
    with suppress(KeyError):
        return pwd.getpwnam(USER).pw_uid
    return None


def _look_at(path: Path, text: str) -> _Unit:
    if not path.exists() and not path.is_symlink():
        return _Unit(path, text, "new", "")
    try:
        there = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error.strerror}") from error
    if there == text and not path.is_symlink():
        return _Unit(path, text, "unchanged", "")
    name = f"{path} -> {path.readlink()}" if path.is_symlink() else str(path)  # masked, or linked to by systemctl
    diff = difflib.unified_diff(there.splitlines(True), text.splitlines(True), name, "new")
    return _Unit(path, text, "differs", "".join(diff))


def _write(unit: _Unit) -> None:
    """Whole or not at all; a link is replaced, not followed."""
    temporary = unit.path.with_name(f".{unit.path.name}.{os.getpid()}")
    try:
        unit.path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(unit.text, encoding="utf-8")
        temporary.chmod(0o644)
        temporary.replace(unit.path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StartError(f"{unit.path} cannot be written: {error.strerror}") from error


def _next(workspace: Path, states: list[str], *, user: bool, socket: bool) -> list[str]:
    """The commands that make the service run; `states` are those of the units before, the service's first."""
    folder = shlex.quote(str(workspace))
    systemctl = "systemctl --user" if user else "systemctl"
    commands = []
    if not user and _uid() is None:
        commands.append(f"useradd --system --home-dir {STATE} --shell /usr/sbin/nologin {USER}")
    if not workspace.is_dir():
        commands.append(f"mkdir -p {folder}" if user else f"install -d -o {USER} -g {USER} {folder}")
    commands.append(f"{systemctl} daemon-reload")
    names = "pawand.socket pawand.service" if socket else "pawand"
    if socket and states[0] != "new":
        commands.append(f"{systemctl} stop {names}")  # a socket does not start under a service that runs
    commands.append(f"{systemctl} enable --now {names}")
    if not socket and "differs" in states:
        commands.append(f"{systemctl} restart {names}")
    if user:
        commands.append("loginctl enable-linger")
    return commands


def _print(found: list[_Unit], answer: dict[str, Any], *, dry_run: bool) -> None:
    for unit in found:
        done = "written" if answer["written"] and unit.state != "unchanged" else unit.state
        say(f"{done:9}  {unit.path}")
        if not answer["written"] and unit.state == "differs":
            say(unit.diff)
        elif dry_run and unit.state == "new":
            say(unit.text)
    for note in answer["notes"]:
        say(f"note: {note}")
    if answer["written"] or dry_run:
        say("\nNow run:\n")
        for line in answer["next"]:
            say(f"  {line}")
