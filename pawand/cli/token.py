"""`pawand token`: the token that callers from other machines send."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from pathlib import Path

import click

from pawand import paths, token_file
from pawand.cli.common import as_json, print_json
from pawand.client import read_state_file


@click.group("token")
def command() -> None:
    """Show or make the token for callers from other machines."""


@command.command()
@as_json
def show(as_json: bool) -> None:
    """Print the token, and to standard error where it is.

    Exits 1 where there is none.
    """
    file = _file()
    if not file.exists():
        click.echo(f"pawand: there is no token in {file}; `pawand token new` makes one", err=True)
        sys.exit(1)
    _tell(file, token_file.read(file), as_json)


@command.command()
@as_json
def new(as_json: bool) -> None:
    """Make a token, or another one in its place, and print it.

    The old one counts no more as soon as a running daemon has read the new one, which it is told to do.
    """
    file = _file()
    if file.exists():
        token_file.replace(file)
    else:
        token_file.make(file)
    pid = _daemon()
    told = pid is not None and _told(pid)
    if told:
        note = f"the daemon (pid {pid}) reads it now"
    elif pid is not None:
        note = f"the daemon (pid {pid}) belongs to another user: as that one, run kill -HUP {pid}"
    else:
        note = "it counts from the next start of the daemon"
    _tell(file, token_file.read(file), as_json, note, told=told)


def _tell(file: Path, token: str, as_json: bool, note: str = "", **more: bool) -> None:
    if as_json:
        print_json({"token": token, "file": str(file), **more})
        return
    click.echo(token)
    click.echo(f"{file}{f': {note}' if note else ''}", err=True)


def _file() -> Path:
    """Of the daemon that runs here, else of the settings."""
    known = read_state_file(paths.state_dir())
    if known is not None and isinstance(known.get("token_file"), str):
        return Path(known["token_file"])
    from pawand import config

    return config.token_file(config.load(Path.cwd(), {}).config, paths.state_dir())


def _daemon() -> int | None:
    """The process that owns this state folder. Its lock says that it is one, which a number in a file cannot."""
    known = read_state_file(paths.state_dir())
    if known is None:
        return None
    try:
        with open(paths.state_dir() / "run" / "lock", "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = int(lock.read(64))
                return holder if known.get("pid") == holder else None
    except (OSError, ValueError):
        pass
    return None


def _told(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError:
        return False
    return True
