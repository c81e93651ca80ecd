"""`pawand token`: the token that callers from other machines send."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from pawand import paths, token_file
from pawand.cli.common import as_json, print_json, say
from pawand.client import Client, RefusedError, read_state_file
from pawand.errors import PawandError

READ_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.5)
"""Between questions to a daemon that reads a token. Few: where it has not yet, each is a wrong token to it."""


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
        say(f"pawand: there is no token in {file}; `pawand token new` makes one", err=True)
        sys.exit(1)
    _tell(file, token_file.read(file), as_json)


@command.command()
@as_json
def new(as_json: bool) -> None:
    """Make a token, or another one in its place, and print it.

    A running daemon is told to read it, and asked whether it counts. Exits 1 where it does not: the file is written all
    the same.
    """
    file = _file()
    if file.exists():
        token_file.replace(file)
    else:
        token_file.make(file)
    token = token_file.read(file)
    known = _daemon()
    counts = known is not None and _told(known["pid"]) and _counts(str(known["url"]), token)
    note = _note(known, counts)
    _tell(file, token, as_json, note, told=counts)
    if known is not None and not counts:
        if as_json:
            say(f"pawand: {note}", err=True)
        sys.exit(1)


def _note(known: dict[str, Any] | None, counts: bool) -> str:
    if known is None:
        return "it counts from the next start of the daemon"
    pid = known["pid"]
    if counts:
        return f"it counts now: the daemon (pid {pid}) has read it"
    return (
        f"it is written, but the daemon (pid {pid}) does not take it yet: see why with `pawand logs`, put that right, "
        f"and run kill -HUP {pid} as the user of the daemon, or restart it"
    )


def _tell(file: Path, token: str, as_json: bool, note: str = "", **more: bool) -> None:
    if as_json:
        print_json({"token": token, "file": str(file), **more})
        return
    say(token)
    say(f"{file}{f': {note}' if note else ''}", err=True)


def _file() -> Path:
    """Of the daemon that runs here, else of the settings."""
    known = read_state_file(paths.state_dir())
    if known is not None and isinstance(known.get("token_file"), str):
        return Path(known["token_file"])
    from pawand import config

    return config.token_file(config.load(Path.cwd(), {}).config, paths.state_dir())


def _daemon() -> dict[str, Any] | None:
    """What the owner of this state folder says of itself. Its lock says that it is one, as no number in a file can."""
    known = read_state_file(paths.state_dir())
    if known is None:
        return None
    try:
        with open(paths.state_dir() / "run" / "lock", "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = int(lock.read(64))
                return known if known["pid"] == holder else None
    except (OSError, ValueError):
        pass
    return None


def _told(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError:
        return False
    return True


def _counts(url: str, token: str) -> bool:
    """Whether the daemon takes it, within the time that reading it needs."""
    # A caller of this machine may be let in without one, or with any; one through a proxy never is.
    client = Client(url, token, headers={"Via": "1.1 pawand"}, answer_secs=sum(READ_PAUSES))
    for pause in READ_PAUSES:
        time.sleep(pause)
        try:
            client.get("/models", "models")
            return True
        except RefusedError:
            continue
        except PawandError:  # it does not answer
            break
    return False
