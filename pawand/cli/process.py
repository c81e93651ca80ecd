"""The daemon of this state folder as a process: found, started in the background, stopped."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pawand import paths, procfs
from pawand.cli import serve
from pawand.cli.common import Context, say
from pawand.client import Client, read_state_file
from pawand.errors import ConfigError, PawandError, StartError

READY_SECS = 30.0
STOP_SECS = 10.0
"""What a daemon needs to end, besides the time that it gives to running turns."""
NOW_SECS = 5.0
POLL_SECS = 0.05
_SHOWN_LINES = 20

Known = dict[str, Any]
"""What a running daemon says of itself in its state file."""


class LateError(PawandError):
    """The daemon goes on starting."""

    code = "late"


class LeftAloneError(PawandError):
    """The daemon may not be stopped by us, or does not stop."""

    code = "left_alone"


def find(context: Context) -> Known | None:
    """The daemon that runs here. These commands steer a process, so no address may be given."""
    if context.has_url:
        raise click.UsageError("--url does not go with this command: it works on the daemon of this state folder")
    return read_state_file(paths.state_dir())


def answers(known: Known) -> bool:
    try:
        Client(str(known["url"]), known=known).get("/health", "status")
    except PawandError:
        return False
    return True


def log_file(known: Known | None) -> Path | None:
    """Where this daemon logs, or the last one that `pawand start` started; None for one that has no file."""
    if known is None:
        return paths.log_file(paths.state_dir())
    file = known["options"].get("log_file")
    return Path(file) if file else None


def facts(known: Known) -> dict[str, Any]:
    """For the JSON of the commands that start one."""
    log = log_file(known)
    return {name: known[name] for name in ("pid", "url", "version", "workspace")} | {
        "log_file": str(log) if log else None
    }


def systemd_command(known: Known, program: str, *arguments: str) -> list[str] | None:
    """The command line that does it through systemd; None where systemd does not run this daemon."""
    unit = known["systemd"]
    return [program, *(["--user"] if unit["user"] else []), *arguments, unit["name"]] if unit else None


def check_is_ours(known: Known, verb: str) -> None:
    """systemd would start again, or take for failed, what is stopped behind its back. Raises LeftAloneError."""
    if command := systemd_command(known, "systemctl", verb):
        raise LeftAloneError(f"systemd runs this pawand; run: {shlex.join(command)}")


# --- start ----------------------------------------------------------------------------------------


def start(options: Mapping[str, Any]) -> tuple[Known, bool]:
    """Start `pawand serve` in the background and wait until it answers; False where another `start` was quicker.

    Raises ConfigError or StartError where it ends instead, as `serve` would.
    """
    log = Path(options["log_file"])
    output = open_log(log)
    try:
        begin = os.fstat(output).st_size
        child = subprocess.Popen(
            # No module may come from the folder that we are in (-P): it is the workspace, a stranger's.
            [sys.executable, "-P", "-m", "pawand.cli.main", "serve", *serve.arguments(options)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)
    try:
        return _wait_until_ready(child, log, begin)
    except KeyboardInterrupt:
        say(f"pawand goes on starting (pid {child.pid}); its log is {log}", err=True)
        raise


def open_log(log: Path) -> int:
    """A descriptor to add to it. Raises ConfigError."""
    try:
        paths.private_dir(log.parent)
        return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"the log file {log} cannot be written: {error.strerror}") from error


def _wait_until_ready(child: subprocess.Popen[bytes], log: Path, begin: int) -> tuple[Known, bool]:
    state = paths.state_dir()
    began = time.monotonic()
    told = False
    while time.monotonic() < began + READY_SECS:
        known, ended = read_state_file(state), child.poll() is not None
        if known is not None and (ended or known["pid"] == child.pid) and answers(known):
            return known, not ended
        if ended and not _is_held(state, child.pid):
            raise _ended(child.returncode, log, begin)
        if not told and time.monotonic() > began + 2:
            told = True
            say("waiting for pawand to answer …", err=True)
        time.sleep(POLL_SECS)
    if child.poll() is not None:
        raise _ended(child.returncode, log, begin)
    raise LateError(
        f"pawand (pid {child.pid}) does not answer after {READY_SECS:g} s; it goes on starting. Look into {log}"
    )


def _is_held(state: Path, not_by: int) -> bool:
    """Whether another daemon has this state folder: it may be about to answer."""
    try:
        holder = int((state / "run" / "lock").read_text())
    except (OSError, ValueError):
        return False
    return holder != not_by and procfs.start_ticks(holder) is not None


def _ended(code: int, log: Path, begin: int) -> ConfigError | StartError:
    """What it said is on standard error; the error has its exit code, and its last words as a note."""
    with log.open("rb") as file:
        if os.fstat(file.fileno()).st_size >= begin:  # else it was rotated
            file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()[-_SHOWN_LINES:]
    for line in lines:
        say(line, err=True)
    how = f"with exit code {code}" if code >= 0 else f"by signal {-code}"
    message = f"it ended {how} before it was ready; its log is {log}"
    error = ConfigError(message) if code == 2 else StartError(message)
    if lines:
        error.add_note(lines[-1].removeprefix("pawand: "))
    return error


def in_full(error: PawandError) -> str:
    """With what the daemon said last, for those who do not see that."""
    return "; ".join([*getattr(error, "__notes__", []), error.message])


# --- stop -----------------------------------------------------------------------------------------


def stop(known: Known, *, now: bool = False) -> None:
    """End the daemon and wait until it is gone. `now` does not let running turns end. Raises LeftAloneError."""
    with _opened(known) as process:
        if process is None:
            return
        if now:
            _end_at_once(process, known)
        else:
            if not known.get("stopping"):  # a second signal would end its turns
                signal.pidfd_send_signal(process, signal.SIGTERM)
            _wait_until_gone(process, known)


def wait_for_end(known: Known) -> None:
    """Of one that is stopping. Raises LeftAloneError."""
    with _opened(known) as process:
        if process is not None:
            _wait_until_gone(process, known)


@contextmanager
def _opened(known: Known) -> Iterator[int | None]:
    """A descriptor of its process, which from then on can be no other one; None where it is gone."""
    pid = known["pid"]
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield process if procfs.start_ticks(pid) == known["start_ticks"] else None
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise LeftAloneError(f"pawand (pid {pid}) belongs to another user") from error
    except KeyboardInterrupt:
        say(f"pawand (pid {pid}) goes on stopping; `pawand stop --now` ends it at once", err=True)
        raise
    finally:
        os.close(process)


def _wait_until_gone(process: int, known: Known) -> None:
    seconds = known["drain_secs"] + STOP_SECS
    if _is_gone(process, 1):
        return
    say(f"running turns have {known['drain_secs']:g} s to end; `pawand stop --now` does not wait", err=True)
    if not _is_gone(process, seconds - 1):
        raise LeftAloneError(f"pawand (pid {known['pid']}) is still there after {seconds:g} s; try `pawand stop --now`")


def _end_at_once(process: int, known: Known) -> None:
    """A second signal ends it without manners; what holds out against that is killed."""
    end = time.monotonic() + NOW_SECS
    while time.monotonic() < end:
        signal.pidfd_send_signal(process, signal.SIGTERM)  # two that come at the same time are one
        if _is_gone(process, 0.1):
            return
    say(f"pawand (pid {known['pid']}) does not end by itself: it is killed; what was seen of turns is kept", err=True)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    if not _is_gone(process, NOW_SECS):
        raise LeftAloneError(f"pawand (pid {known['pid']}) was killed, but the system holds it: a disk that hangs?")


def _is_gone(process: int, within_secs: float) -> bool:
    poller = select.poll()
    poller.register(process, select.POLLIN)
    return bool(poller.poll(within_secs * 1000))
