"""What signals ask of the daemon: to end, to end at once, to read the settings again."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys


def listen(stop: asyncio.Event, reload: asyncio.Event) -> None:
    """Set `stop` at SIGTERM and SIGINT, `reload` at SIGHUP; a second signal to stop ends the process."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_stop, stop)
    at_terminal = sys.stdin is not None and sys.stdin.isatty()  # it may have been closed: <&-
    loop.add_signal_handler(signal.SIGHUP, _on_hang_up, at_terminal, stop, reload)


def _on_hang_up(at_terminal: bool, stop: asyncio.Event, reload: asyncio.Event) -> None:
    """The request to read the settings again; or the end of the terminal that the daemon was started in."""
    if at_terminal and _is_gone(sys.stdin.fileno()):
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            if _is_gone(stream.fileno()):
                os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        _on_stop(stop)
    else:
        reload.set()


def _is_gone(descriptor: int) -> bool:
    """Whether it is a terminal that was closed."""
    try:
        os.tcgetpgrp(descriptor)
    except OSError as error:
        return error.errno == errno.EIO
    return False


def _on_stop(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(130)  # asked twice: no more manners
    stop.set()
