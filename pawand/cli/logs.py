"""`pawand logs`."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from pawand.cli import process
from pawand.cli.common import Context, say
from pawand.errors import PawandError

POLL_SECS = 0.2


class NoLogError(PawandError):
    code = "no_log"


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="How many lines to show.")
@click.pass_obj
def command(context: Context, follow: bool, lines: int) -> None:
    """Show the end of the daemon's log.

    That of a daemon which systemd runs is shown by journalctl.
    """
    known = process.find(context)
    file = process.log_file(known)
    if file is None:
        flags = ["-n", str(lines), *(["-f"] if follow else [])]
        if known is not None and (journal := process.systemd_command(known, "journalctl", *flags, "-u")):
            _run(journal)
        raise NoLogError(
            "this daemon logs to where `pawand serve` was started; `pawand restart` puts it into the background"
        )
    try:
        with file.open("rb") as log:
            for line in _last(log, file, lines):
                _show(line)
            if follow:
                for line in _added(log, file):
                    _show(line)
    except FileNotFoundError as error:
        raise NoLogError(
            f"there is no log {file}: `pawand start` makes it (of a service: journalctl -u pawand)"
        ) from error
    except BrokenPipeError:  # of who reads it
        raise
    except OSError as error:
        raise NoLogError(f"the log {file} cannot be read: {error.strerror}") from error


def _run(command: list[str]) -> None:
    """journalctl in our place; does not return."""
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise NoLogError(f"{command[0]} cannot be run ({error.strerror}): {shlex.join(command)}") from error


def _last(log: BinaryIO, file: Path, count: int) -> list[bytes]:
    """The last lines; where the log was rotated just now, those before it as well. `log` is then at its end."""
    lines = deque(log, count)
    if len(lines) < count:
        try:
            with Path(f"{file}.1").open("rb") as older:
                lines.extendleft(reversed(deque(older, count - len(lines))))
        except FileNotFoundError:
            pass
    return list(lines)


def _added(log: BinaryIO, file: Path) -> Iterator[bytes]:
    """What is added from now on, over rotations; never ends."""
    while True:
        yield from log
        sys.stdout.flush()
        time.sleep(POLL_SECS)
        try:
            newest = file.open("rb")
        except FileNotFoundError:  # it is being rotated
            continue
        if os.path.sameopenfile(newest.fileno(), log.fileno()):
            newest.close()
        else:
            yield from log  # what came before it was moved aside
            log.close()
            log = newest


def _show(line: bytes) -> None:
    say(line.decode(errors="replace"), nl=False)
